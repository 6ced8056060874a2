"""Rebuild the demo's base: a tiny SDXL that draws plain figures before backgrounds.

    python -m dreambooth.demo.pretrain --output dreambooth/demo/base

Stage 1: the VAE (half resolution, four channels). Stage 2: the UNet and both text encoders together, v-prediction,
a tenth of the prompts dropped by zeroing their embeddings, as classifier-free guidance does. Writes a folder that
diffusers' `StableDiffusionXLPipeline.from_pretrained` opens (float16) and `pretraining.jsonl`, the log. A run that
was killed goes on from `--work`, with the same batches as one that was not.

B batch, T tokens, S side of a picture in pixels, h side of its latents, D width of the prompt embeddings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.files import atomic_write
from dreambooth.demo.architecture import TIME_IDS_FROM, make_pipeline
from dreambooth.demo.draw import SIDE, draw
from dreambooth.demo.scenes import Look, Scene, caption, random_scene

DROPPED, KL, EMA = 0.1, 2e-7, 0.999
BATCH = 16
LOG = "pretraining.jsonl"
Log = list[dict[str, Any]]
SHOWN = (
    "a photo of a red cat in the snow",
    "a photo of a blue dog on the beach",
    "a yellow bird at night",
    "a photo of a pink fish in the jungle",
    "a picture of a green car with a city in the background",
    "a white house on the grass",
    "a photo of a cat",
    "a photo of ikat dog on the beach",
)


@dataclass(frozen=True)
class Stock:
    """Drawn scenes, to draw batches from with replacement.

    Args:
        scenes: what each picture shows, N of them.
        pictures: (N, 3, S, S) uint8.
        time_ids: (N, 6), SDXL's size and crop conditioning.
    """

    scenes: Sequence[Scene]
    pictures: Tensor
    time_ids: Tensor


def draw_stock(count: int, seed: int) -> Stock:
    """Scenes at random; one in six is drawn larger and cropped, so that the crop's conditioning has a meaning."""
    rng = np.random.default_rng(seed)
    scenes, pictures, ids = [], [], []
    for _ in range(count):
        scene = random_scene(rng)
        if rng.random() < 1 / 6:
            large = int(rng.integers(SIDE + 1, SIDE * 3 // 2))
            top, left = (int(v) for v in rng.integers(0, large - SIDE + 1, 2))
            picture = draw(scene.figure, Look.plain(scene.colour), scene.background, rng, large)
            picture = picture.crop((left, top, left + SIDE, top + SIDE))
        else:
            top = left = 0
            picture = draw(scene.figure, Look.plain(scene.colour), scene.background, rng)
        original = round(SIDE * 2 ** rng.uniform(0, TIME_IDS_FROM))  # of a photograph reduced to this size
        scenes.append(scene)
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
        ids.append((original, original, top, left, SIDE, SIDE))
    return Stock(scenes, torch.from_numpy(np.stack(pictures)), torch.tensor(ids, dtype=torch.float32))


def batches(stock: Stock, stage: int, seed: int, steps: range) -> Iterator[tuple[int, Tensor, np.random.Generator]]:
    """Step, chosen rows (B,), and a generator, all of which depend on seed, stage and step alone."""
    for step in steps:
        rng = np.random.default_rng([seed, stage, step])
        torch.manual_seed(int(rng.integers(2**31)))
        yield step, torch.from_numpy(rng.integers(len(stock.scenes), size=BATCH)), rng


class Schedule:
    """AdamW over some modules with warm-up and cosine; its state and theirs are kept in one file."""

    def __init__(self, modules: nn.ModuleDict, file: Path, steps: int, peak: float, save_every: int = 200) -> None:
        self.modules, self.file, self.steps, self.peak, self.save_every = modules, file, steps, peak, save_every
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=peak, weight_decay=0.0, fused=True)
        self.mean = {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}
        self.begun, self._clock = 0, time.time()
        self.log: Log = []
        self._recent: list[float] = []
        if file.is_file():
            kept = torch.load(file, weights_only=True)
            modules.load_state_dict(kept["modules"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.mean, self.begun, self.log = kept["mean"], kept["step"], kept["log"]

    def step(self, step: int, loss: Tensor, told: float) -> None:
        """One optimizer step, the moving average of the weights, and now and then a line of the log and the file.

        Args:
            step: number of steps done before.
            loss: what is made smaller.
            told: what the log tells, as a mean over a hundred steps.
        """
        warm = min(1.0, (step + 1) / min(200, 0.1 * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, tensor in self.modules.state_dict().items():
                self.mean[name].lerp_(tensor, 1 - keep) if tensor.is_floating_point() else self.mean[name].copy_(tensor)
        self._recent.append(told)
        if (step + 1) % 100 == 0 or step + 1 == self.steps:
            mean = round(sum(self._recent) / len(self._recent), 5)
            self.log.append({"stage": self.file.stem, "step": step + 1, "of": self.steps, "loss": mean})
            print(self.log[-1], f"{time.time() - self._clock:.0f} s", flush=True)
            self._recent = []
        if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
            state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state | {"mean": self.mean, "step": step + 1, "log": self.log}, self.file.with_suffix(".new"))
            os.replace(self.file.with_suffix(".new"), self.file)

    def averaged(self) -> dict[str, Tensor]:
        """Put the averaged weights into the modules; gives the others back."""
        raw = {name: tensor.clone() for name, tensor in self.modules.state_dict().items()}
        self.modules.load_state_dict(self.mean)
        return raw


def train_vae(pipe: Any, stock: Stock, work: Path, steps: int, seed: int) -> Log:
    """Stage 1: absolute error and a little KL; gives its log."""
    vae = pipe.vae.train()
    plan = Schedule(nn.ModuleDict({"vae": vae}), work / "vae.pt", steps, 3e-3)
    for step, rows, _ in batches(stock, 1, seed, range(plan.begun, steps)):
        pixels = stock.pictures[rows].float() / 127.5 - 1  # (B, 3, S, S)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            shown = vae.decode(posterior.sample()).sample
        error = (shown.float() - pixels).abs().mean()
        plan.step(step, error + KL * posterior.kl().float().mean(), error.item())
    plan.averaged()
    vae.eval()
    return plan.log


@torch.no_grad()
def encode(pipe: Any, stock: Stock) -> Tensor:
    """Normalised latents of the whole stock, (N, 4, h, h); sets the VAE's `latents_mean` and `latents_std`."""
    parts = [pipe.vae.encode(some.float() / 127.5 - 1).latent_dist.mode() for some in stock.pictures.split(64)]
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    pipe.vae.register_to_config(
        latents_mean=[round(v, 4) for v in mean.tolist()], latents_std=[round(v, 4) for v in std.tolist()]
    )
    return (latents - mean[:, None, None]) / std[:, None, None]


def embed(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts as SDXL sees them: (B, T, D) of both encoders' last layers but one, and the second's pooled (B, P)."""
    hidden = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        said = encoder(ids, output_hidden_states=True)
        hidden.append(said.hidden_states[-2])
    return torch.cat(hidden, -1), said.text_embeds


def train_unet(pipe: Any, stock: Stock, work: Path, steps: int, seed: int) -> Log:
    """Stage 2: v-prediction, Salimans & Ho 2022: v = √ᾱ·ε − √(1−ᾱ)·x; gives its log."""
    latents = encode(pipe, stock)
    parts = {name: getattr(pipe, name).train() for name in ("unet", "text_encoder", "text_encoder_2")}
    plan = Schedule(nn.ModuleDict(parts), work / "unet.pt", steps, 7e-4)
    kept = pipe.scheduler.alphas_cumprod  # (1000,)
    for step, rows, rng in batches(stock, 2, seed, range(plan.begun, steps)):
        clean = latents[rows]
        noise, times = torch.randn_like(clean), draw_times(len(kept))
        root, rest = kept[times].sqrt()[:, None, None, None], (1 - kept[times]).sqrt()[:, None, None, None]
        dropped = torch.from_numpy(rng.random(BATCH) < DROPPED)
        with torch.autocast("cpu", torch.bfloat16):
            embeds, pooled = embed(pipe, [caption(stock.scenes[row], rng) for row in rows])
            told = {"text_embeds": pooled.masked_fill(dropped[:, None], 0), "time_ids": stock.time_ids[rows]}
            said = pipe.unet(
                root * clean + rest * noise,
                times,
                embeds.masked_fill(dropped[:, None, None], 0),
                added_cond_kwargs=told,
            ).sample
        loss = F.mse_loss(said.float(), root * noise - rest * clean)
        plan.step(step, loss, loss.item())
        if (step + 1) % 400 == 0:
            raw = plan.averaged()
            show(pipe, work / f"samples-{step + 1:05d}.png")
            plan.modules.load_state_dict(raw)
            for part in parts.values():
                part.train()
    plan.averaged()
    return plan.log


def draw_times(count: int) -> Tensor:
    """Timesteps (B,), most of them where the shapes are decided: logit-normal (Esser et al. 2024), a fifth uniform."""
    middle = (count * torch.sigmoid(torch.randn(BATCH) - 0.7)).long()
    return torch.where(torch.rand(BATCH) < 0.2, torch.randint(count, (BATCH,)), middle)


@torch.no_grad()
def show(pipe: Any, file: Path) -> None:
    """Four pictures for each of some prompts, one prompt a row, three times as large as they are."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(pipe, name).eval()
    draws = [torch.Generator().manual_seed(i % 4) for i in range(4 * len(SHOWN))]
    prompts = [prompt for prompt in SHOWN for _ in range(4)]
    made = pipe(prompts, num_inference_steps=25, guidance_scale=3.0, generator=draws).images
    sheet = Image.new("RGB", (4 * 100, len(SHOWN) * 100), (90, 90, 90))
    for i, picture in enumerate(made):
        sheet.paste(picture.resize((96, 96), Image.Resampling.NEAREST), (i % 4 * 100, i // 4 * 100))
    sheet.save(file)


def pretrain(output: Path, work: Path, *, pictures: int, vae_steps: int, steps: int, seed: int = 0) -> None:
    """Train both stages and write the base.

    Args:
        output: the diffusers folder.
        work: where an unfinished run is kept, with samples on the way.
        pictures: drawn scenes.
        vae_steps: optimizer steps of stage 1.
        steps: optimizer steps of stage 2.
        seed: of weights, scenes and batches.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    log: Log = [
        {"module": name, "parameters": sum(p.numel() for p in getattr(pipe, name).parameters()), "seed": seed}
        for name in ("vae", "unet", "text_encoder", "text_encoder_2")
    ]
    stock = draw_stock(pictures, seed + 1)
    with sdpa_kernel(SDPBackend.MATH):  # the fused backward is several times slower at this size
        log += train_vae(pipe, stock, work, vae_steps, seed)
        log += train_unet(pipe, stock, work, steps, seed)
    write_base(pipe, output)
    log.append({"pictures": pictures, "batch": BATCH})
    atomic_write(output / LOG, "".join(json.dumps(line) + "\n" for line in log))


def write_base(pipe: Any, output: Path) -> None:
    """Write the pipeline in float16, to be opened in float32 where nobody says otherwise."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float16)
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):  # what the last call asked for would be saved with it
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    pipe.save_pretrained(output)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers would open them as they were saved, and diffusers the UNet in float32
        file = output / name / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        atomic_write(file, json.dumps(content | {"dtype": "float32"}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Rebuild the base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/drawn-sdxl"), help="default: runs/drawn-sdxl")
    parser.add_argument("--pictures", type=int, default=16_000)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=6000)
    options = parser.parse_args(argv)
    pretrain(options.output, options.work, pictures=options.pictures, vae_steps=options.vae_steps, steps=options.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
