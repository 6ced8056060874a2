"""Sets of generated pictures and feature extractors of a few thousand random weights, as they lie on a disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from dreambooth.manifest import Manifest, PictureEntry, picture_name, write_manifest
from tests.dreambooth.tiny import make_tokenizer

PROMPTS = ("a {token} {class} in the jungle", "a purple {token} {class}")
SIDE = 32


def tiny_dino(folder: Path, *, seed: int = 3, pooler: bool = False) -> Path:
    """A vision transformer without the pooler that DINO's has not either."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIDE,
            patch_size=8,
            initializer_range=0.3,
        )
        ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, *, seed: int = 4) -> Path:
    """A CLIP with its tokenizer, whose tokens are letters."""
    tokenizer = make_tokenizer(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPConfig(
            text_config={**common, **ids, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
            vision_config={**common, "image_size": SIDE, "patch_size": 8},
            projection_dim=12,
        )
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw(path: Path, seed: int, side: int = 40) -> Path:
    """A picture of smooth noise; the same seed gives the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def make_set(
    root: Path,
    adapter: str = "lora",
    subject: str = "duck",
    *,
    seeds: Sequence[int] = (0, 1),
    prompts: Sequence[str] = PROMPTS,
    first: int = 100,
    class_word: str = "toy",
) -> Path:
    """A folder of generated pictures, drawn from `first` on, and three real ones of their subject."""
    folder = root / adapter / subject
    real = [draw(root / "real" / subject / f"{number:02}.png", number + sum(map(ord, subject))) for number in range(3)]
    pictures = {}
    for number, (prompt, seed) in enumerate((prompt, seed) for prompt in range(len(prompts)) for seed in seeds):
        name = picture_name(prompt, seed)
        draw(folder / name, first + number)
        pictures[name] = PictureEntry(prompt, seed, "test")
    manifest = Manifest(
        adapter=adapter,
        subject=subject,
        class_word=class_word,
        token="zqx",
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        references=tuple(str(path) for path in real),
        pictures=pictures,
    )
    write_manifest(folder, manifest)
    return folder


def change_manifest(folder: Path, **values: object) -> None:
    """Write other values into a manifest, sound or not."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
