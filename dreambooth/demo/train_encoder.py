"""Rebuild the network that measures the demo.

    python -m dreambooth.demo.train_encoder --output dreambooth/demo/encoder_weights

Each batch shows characters of random figures, colours and markings, every one in two places. For the features the
other picture of a character must be nearer than the pictures of all others (InfoNCE, van den Oord et al. 2018), half
of the time among characters of one figure only; the two heads learn to name figure and background. The colours near
those of the demo's characters are left out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from common.files import atomic_write
from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.draw import draw
from dreambooth.demo.encoder import Encoder, to_pixels
from dreambooth.demo.scenes import BACKGROUNDS, COLOURS, FIGURES, Look

PAIRS, TEMPERATURE, AWAY = 40, 0.1, 60.0


def random_look(rng: np.random.Generator) -> Look:
    """Any two colours and markings, or one of the world's plain looks; never both colours of a demo character."""
    if rng.random() < 0.25:
        return Look.plain(list(COLOURS)[int(rng.integers(len(COLOURS)))])
    while True:
        body, accent = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
        if all(
            math.dist(body, known.body) > AWAY or math.dist(accent, known.accent) > AWAY
            for _, known in CHARACTERS.values()
        ):
            return Look(body, accent, ("none", "stripes", "spots")[int(rng.integers(3))])  # type: ignore[arg-type]


def batch(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (2 · `PAIRS`, 3, S, S), the second half of the same characters as the first; figures, backgrounds."""
    one = int(rng.integers(len(FIGURES)))
    figures = [one] * PAIRS if rng.random() < 0.5 else rng.integers(0, len(FIGURES), PAIRS).tolist()
    looks = [random_look(rng) for _ in figures]
    places = rng.integers(0, len(BACKGROUNDS), 2 * PAIRS).tolist()
    pictures = [
        draw(FIGURES[figure], look, BACKGROUNDS[place], rng)
        for figure, look, place in zip([*figures, *figures], [*looks, *looks], places, strict=True)
    ]
    return disturbed(to_pixels(pictures), rng), torch.tensor([*figures, *figures]), torch.tensor(places)


def disturbed(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures with the small faults that generated ones have: noise, softness, tones that are a little off."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32))

    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, soft, uniform(0, 0.8, 1, 1, 1))
    pixels = pixels * uniform(0.9, 1.1, 1, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
    return (pixels + noise * uniform(0, 0.12, 1, 1, 1)).clamp(-1, 1)


def contrast(identity: Tensor) -> tuple[Tensor, float]:
    """The InfoNCE loss of pairs (i, i + half), and how often the partner is the nearest."""
    count = len(identity)
    near = identity @ identity.T / TEMPERATURE
    near.fill_diagonal_(-math.inf)
    partner = torch.arange(count).roll(count // 2)
    return F.cross_entropy(near, partner), (near.argmax(1) == partner).float().mean().item()


def train(output: Path, steps: int, seed: int = 0) -> None:
    """Train and write `encoder.safetensors` (float16) and `training.json`, the log."""
    torch.manual_seed(seed)
    encoder = Encoder()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=1e-2)
    log, recent = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        pixels, figures, places = batch(np.random.default_rng([seed, step]))
        said = encoder(pixels)
        loss, nearest = contrast(said.identity)
        right = [
            (head.argmax(1) == true).float().mean().item()
            for head, true in ((said.figure, figures), (said.background, places))
        ]
        loss = loss + F.cross_entropy(said.figure, figures) + F.cross_entropy(said.background, places)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        recent.append((loss.item(), nearest, *right))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            means = [round(sum(column) / len(recent), 4) for column in zip(*recent, strict=True)]
            log.append(
                dict(zip(("loss", "partner_nearest", "figure", "background"), means, strict=True)) | {"step": step + 1}
            )
            print(log[-1], flush=True)
            recent.clear()
    output.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.half().contiguous() for name, tensor in encoder.state_dict().items()},
        output / "encoder.safetensors",
    )
    facts = {"parameters": sum(p.numel() for p in encoder.parameters()), "seed": seed, "log": log}
    atomic_write(output / "training.json", json.dumps(facts, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Rebuild the network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(argv)
    train(options.output, options.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
