"""What measures the demo: a small network that tells drawn characters apart, and knows figures and backgrounds.

DreamBooth measures with DINO and CLIP, which know photographs and are not there offline. On 32 × 32 drawings a network
of the same purpose takes their place: its features are near for two pictures of one character in different places,
and far for two characters in the same place. It was trained on characters of random colours and markings
(`python -m dreambooth.demo.train_encoder`), on none of the demo's, and neither the base nor an adapter ever learns
from it. Its two other outputs name the figure and the background, so that the demo can also say whether a picture
still shows what its prompt asks for.

N pictures, S their side, D width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreambooth.demo.draw import SIDE
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES

FILE = Path(__file__).resolve().parent / "encoder_weights" / "encoder.safetensors"
WIDTH = 64


class Reading(NamedTuple):
    """What the network says of pictures.

    Args:
        identity: (N, D) unit vectors; the cosine of two says how much the same character they show.
        figure: (N, figures) logits, in the order of `scenes.FIGURES`.
        background: (N, backgrounds) logits, in the order of `scenes.BACKGROUNDS`.
    """

    identity: Tensor
    figure: Tensor
    background: Tensor


class Encoder(nn.Module):
    """Four convolutions and three linear heads, 0.13 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 64, 96)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())  # (N, 3, S, S) -> (N, 96 · (S/16)²)
        inner = widths[-1] * (SIDE // 16) ** 2
        self.identity = nn.Linear(inner, WIDTH)
        self.figure = nn.Linear(inner, len(FIGURES))
        self.background = nn.Linear(inner, len(BACKGROUNDS))

    def forward(self, pixels: Tensor) -> Reading:
        """Read pictures (N, 3, S, S) in [-1, 1]."""
        inner = self.trunk(pixels)
        return Reading(F.normalize(self.identity(inner), dim=-1), self.figure(inner), self.background(inner))

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image]) -> Reading:
        """Read pictures of any size."""
        return self(to_pixels(pictures))

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The identity features (N, D) of pictures of any size: the form that `eval subjects` measures with."""
        return self.read(pictures).identity


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures, reduced to the drawings' size where they are larger, as (N, 3, S, S) float32 in [-1, 1]."""
    small = [picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(each) for each in small])).permute(0, 3, 1, 2) / 127.5 - 1


def load_encoder(file: Path = FILE) -> Encoder:
    """The network that ships."""
    encoder = Encoder()
    encoder.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return encoder.eval()
