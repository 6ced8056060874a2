"""Rebuild the demo's tiny base: a 0.5M parameter vision transformer that has learned 24 drawn signs.

    python -m vit_classify.demo.pretrain --output vit_classify/demo/base

Plain supervised cross entropy on freshly drawn pictures of the pretraining classes; the linear layer on the mean
of the patch tokens is thrown away at the end, as is the text tower's meaning (it stays random: the demo uses a
trained linear head). Writes what open_clip's `local-dir:` reads (`open_clip_config.json` and
`open_clip_model.safetensors`, float16) and `pretraining.json`, the log of the run.

B: batch, S: side in pixels, L: patches, D: width.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_classify.demo.classes import PRETRAINING
from vit_classify.demo.draw import SIDE, draw

MEAN, STD = (0.4, 0.4, 0.4), (0.25, 0.25, 0.25)
MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "patch_size": 4, "width": 96, "layers": 4, "head_width": 32},
    # The smallest text tower that open_clip's tokenizer can feed.
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
POOL = 50  # pictures per class that are drawn, used once and forgotten


def patch_mean(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """Mean of the patch tokens after the last block, which is what `vit_classify.head.LinearHead` reads.

    Args:
        tower: open_clip's VisionTransformer.
        pixel_values: float32 (B, 3, S, S), normalised.

    Returns:
        float32 (B, D).
    """
    visual: Any = tower
    tokens = visual.transformer(visual._embeds(pixel_values))  # (B, 1 + L, D)
    return tokens[:, 1:].mean(dim=1)


def normalise(pictures: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S) in units of the base's training data."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((pictures / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def batches(size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of fresh drawings: normalised pictures (B, 3, S, S) and classes int64 (B,)."""
    while True:
        pictures = np.concatenate([draw(sign, POOL, rng) for sign in PRETRAINING])
        labels = np.arange(len(PRETRAINING)).repeat(POOL)
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield normalise(torch.from_numpy(pictures[chosen])), torch.from_numpy(labels[chosen])


def pretrain(steps: int, batch_size: int, learning_rate: float, seed: int) -> tuple[CLIP, list[dict[str, float]]]:
    """Train a fresh model.

    Args:
        steps: optimizer steps.
        batch_size: pictures in a step.
        learning_rate: peak of a one-cycle schedule of AdamW.
        seed: seeds the weights and the drawings.

    Returns:
        The model and the log: step, loss, accuracy on the (never seen) pictures of the step, seconds.
    """
    torch.manual_seed(seed)
    model = CLIP(**MODEL)
    head = nn.Linear(MODEL["vision_cfg"]["width"], len(PRETRAINING))
    tower = model.visual
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    source = batches(batch_size, np.random.default_rng(seed))
    log, began, losses, hits = [], time.perf_counter(), 0.0, 0.0
    every = max(1, steps // 20)
    for step in range(1, steps + 1):
        pixel_values, labels = next(source)
        logits = head(patch_mean(tower, pixel_values))
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses += loss.item()
        hits += (logits.argmax(1) == labels).float().mean().item()
        if step % every == 0:
            seconds = time.perf_counter() - began
            log.append({"step": step, "loss": losses / every, "accuracy": hits / every, "seconds": seconds})
            print(
                f"step {step}/{steps}  loss {losses / every:.3f}  accuracy {hits / every:.3f}  {seconds:.0f} s",
                flush=True,
            )
            losses = hits = 0.0
    return model, log


def save(model: CLIP, output: Path, report: dict[str, Any]) -> None:
    """Write the model in open_clip's local-dir form, weights in float16, and the report beside it."""
    output.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, output / "open_clip_model.safetensors")
    preprocess = {
        "size": [SIDE, SIDE],
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (output / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain and write the base; see the module's description."""
    parser = argparse.ArgumentParser(prog="python -m vit_classify.demo.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    model, log = pretrain(**arguments)
    classes = [sign.name for sign in PRETRAINING]
    save(model, output, {**arguments, "classes": classes, "torch": torch.__version__, "log": log})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
