"""Rebuild the demo's base: a LLaVA of 1.7M parameters that describes drawn scenes and was never asked a question.

    python -m llava.demo.pretrain --output llava/demo/base

Stage 1: the vision tower learns which thing stands in which quarter. Stage 2: tower, projector and language model
learn captions in several wordings. Held-out pairs of colour and shape occur in neither. Writes a folder that
transformers' `LlavaForConditionalGeneration.from_pretrained` reads (float16), and `pretraining.json`, the log.

B batch, T tokens, P patches, D width.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava.conversation import IGNORED_LABEL, Turn, encode, template_for
from llava.demo.draw import CAPTION_REQUEST, SIDE, draw, questions
from llava.demo.scenes import COLOURS, COUNTS, PLACES, SHAPES, Thing, caption, random_scene

PATCH, WIDTH = 8, 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
IMAGE_TOKENS = (SIDE // PATCH) ** 2
SPECIAL = (
    "<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<pad>", "<image>",
)  # fmt: skip
Scene = tuple[Thing, ...]
# what is asked for -> how the scene is told; so every answer's word is known as a beginning, but no question is
WORDINGS = {
    CAPTION_REQUEST: caption,
    "Colours first.": lambda scene: ", ".join(f"{t.colour} {t.shape} {t.place}" for t in scene) + ".",
    "Shapes first.": lambda scene: ", ".join(f"{t.shape} in {t.colour} {t.place}" for t in scene) + ".",
    "Places first.": lambda scene: ", ".join(f"{t.place} {t.colour} {t.shape}" for t in scene) + ".",
    "Numbers first.": lambda scene: f"{COUNTS[len(scene) - 1]}: " + ", ".join(t.shape for t in scene) + ".",
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with LLaMA-3's special tokens, trained on captions and questions."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(400)]
    texts = [f"user\n\n{request}\nassistant\n\n{tell(scene)}" for scene in scenes for request, tell in WORDINGS.items()]
    asked = [f"\n{question.text}\n\n{question.answer}" for _, question in questions(800, 1, held_out=False)]
    backend.train_from_iterator(texts + asked, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The architecture, at its random start."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
    )
    return LlavaForConditionalGeneration(config)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures and text in the form that the model takes."""
    size = {"height": SIDE, "width": SIDE}
    pictures = LlavaImageProcessorPil(
        do_pad=True, do_resize=True, size={"shortest_edge": SIDE}, crop_size=size, image_mean=MEAN, image_std=STD
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


class Drawings:
    """A stock of scenes with their pictures; batches are drawn from it with replacement."""

    def __init__(self, count: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.scenes: list[Scene] = [random_scene(self._rng) for _ in range(count)]
        pictures = np.stack([np.asarray(draw(scene, self._rng)) for scene in self.scenes])
        self._pictures = torch.from_numpy(pictures)  # (count, S, S, 3) uint8

    def batch(self, size: int) -> tuple[list[Scene], Tensor]:
        """Scenes and their normalised pictures (B, 3, S, S)."""
        chosen = self._rng.integers(len(self.scenes), size=size)
        return [self.scenes[i] for i in chosen], normalise(self._pictures[torch.from_numpy(chosen)])

    def wording(self) -> str:
        """One of the requests."""
        return list(WORDINGS)[int(self._rng.integers(len(WORDINGS)))]


def normalise(pictures: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S), as the processor does."""
    return ((pictures / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def quarters(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Shape and colour in each quarter, (B, 4) each; the last class is an empty quarter."""
    shapes = torch.full((len(scenes), 4), len(SHAPES))
    colours = torch.full((len(scenes), 4), len(COLOURS))
    for row, scene in enumerate(scenes):
        for thing in scene:
            shapes[row, PLACES.index(thing.place)] = SHAPES.index(thing.shape)
            colours[row, PLACES.index(thing.place)] = COLOURS.index(thing.colour)
    return shapes, colours


def train_tower(tower: nn.Module, drawings: Drawings, steps: int, batch: int) -> list[dict[str, float]]:
    """Stage 1; gives its log."""
    side = SIDE // PATCH
    heads = nn.ModuleList([nn.Linear(WIDTH, len(SHAPES) + 1), nn.Linear(WIDTH, len(COLOURS) + 1)])

    def loss() -> tuple[Tensor, float]:
        scenes, pixels = drawings.batch(batch)
        patches = tower(pixels).last_hidden_state[:, 1:]  # (B, P, D)
        grid = patches.unflatten(1, (2, side // 2, 2, side // 2)).mean((2, 4)).flatten(1, 2)  # (B, 4, D)
        total, right = torch.zeros(()), []
        for head, target in zip(heads, quarters(scenes), strict=True):
            logits = head(grid).flatten(0, 1)
            total = total + F.cross_entropy(logits, target.flatten())
            right.append((logits.argmax(-1) == target.flatten()).float().mean().item())
        return total, sum(right) / len(right)

    return optimise([{"params": [*tower.parameters(), *heads.parameters()], "lr": 1e-3}], loss, steps)


def train_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    drawings: Drawings,
    steps: int,
    batch: int,
) -> list[dict[str, float]]:
    """Stage 2; gives its log."""
    template = template_for("llama3", tokenizer)
    image = tokenizer.convert_tokens_to_ids("<image>")

    def loss() -> tuple[Tensor, float]:
        scenes, pixels = drawings.batch(batch)
        rows = []
        for scene in scenes:
            request = drawings.wording()
            turns = [Turn("human", request, image=True), Turn("gpt", WORDINGS[request](scene))]
            encoded = encode(
                turns, template, tokenizer, image_token_id=image, image_tokens=IMAGE_TOKENS, max_text_tokens=256
            )
            assert encoded is not None
            rows.append(encoded)
        width = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([row.input_ids + [tokenizer.pad_token_id] * (width - len(row.input_ids)) for row in rows])
        labels = torch.tensor([row.labels + [IGNORED_LABEL] * (width - len(row.labels)) for row in rows])
        hidden = model.model(input_ids=ids, pixel_values=pixels, attention_mask=ids != tokenizer.pad_token_id)
        keep = labels[:, 1:] != IGNORED_LABEL
        logits, targets = model.lm_head(hidden.last_hidden_state[:, :-1][keep]), labels[:, 1:][keep]
        return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean().item()

    tower = list(model.model.vision_tower.parameters())
    known = {id(p) for p in tower}
    other = [p for p in model.parameters() if id(p) not in known]
    return optimise([{"params": other, "lr": 2e-3}, {"params": tower, "lr": 5e-4}], loss, steps)


def optimise(groups: list[dict[str, Any]], loss: Any, steps: int) -> list[dict[str, float]]:
    """AdamW with warm-up and cosine; one entry of the log every fifty steps."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    log, begin = [], time.time()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.05 * steps))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        value, accuracy = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log.append({"step": step, "loss": round(value.item(), 4), "accuracy": round(accuracy, 4)})
            print(f"{time.time() - begin:6.0f} s  {log[-1]}", flush=True)
    return log


def pretrain(output: Path, *, pictures: int, tower_steps: int, caption_steps: int, seed: int = 0) -> dict[str, Any]:
    """Train both stages and write the base; gives the log."""
    begin = time.time()
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    drawings = Drawings(pictures, seed + 1)
    log = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "pictures": pictures,
        "seed": seed,
        "tower": train_tower(model.model.vision_tower, drawings, tower_steps, 48),
        "captions": train_captions(model, tokenizer, drawings, caption_steps, 32),
    }
    model.to(torch.float16).save_pretrained(output)
    make_processor(tokenizer).save_pretrained(output)
    log["seconds"] = round(time.time() - begin)
    (output / "pretraining.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return log


def main(argv: Sequence[str] | None = None) -> int:
    """Rebuild the base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--tower-steps", type=int, default=400)
    parser.add_argument("--caption-steps", type=int, default=1200)
    options = parser.parse_args(argv)
    pretrain(
        options.output,
        pictures=options.pictures,
        tower_steps=options.tower_steps,
        caption_steps=options.caption_steps,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
