"""How much the demo's pictures show the character, and whether they still show what was asked for.

DreamBooth's protocol (Ruiz et al. 2022, section 4.1) with the features of `dreambooth.demo.encoder`: subject similarity
is the mean cosine between a generated picture and every real one of the subject.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.demo.encoder import Encoder, Reading
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES
from dreambooth.manifest import read_manifest


@dataclass(frozen=True)
class Shown:
    """One generated picture.

    Args:
        prompt: number of its prompt.
        seed: of its noise.
        similarity: mean cosine to the real pictures, in [-1, 1].
        figure: whether it shows the class word's figure.
        background: whether it shows the background that the prompt asks for; None where it asks for none.
    """

    prompt: int
    seed: int
    similarity: float
    figure: bool
    background: bool | None


@dataclass(frozen=True)
class Measured:
    """The pictures of one adapter.

    Args:
        adapter: what made them; `base` for the model without one.
        shown: picture by picture.
    """

    adapter: str
    shown: Sequence[Shown]

    @property
    def similarity(self) -> float:
        """Subject similarity: the mean over all pictures."""
        return statistics.fmean(each.similarity for each in self.shown)

    @property
    def figure(self) -> float:
        """Share of the pictures that show the class word's figure."""
        return statistics.fmean(each.figure for each in self.shown)

    @property
    def background(self) -> float | None:
        """Share of the pictures that show the background asked for; None where none was."""
        asked = [each.background for each in self.shown if each.background is not None]
        return statistics.fmean(asked) if asked else None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "adapter": self.adapter,
            "similarity": self.similarity,
            "figure": self.figure,
            "background": self.background,
            "shown": [asdict(each) for each in self.shown],
        }


def measure(folder: Path, encoder: Encoder) -> Measured:
    """Measure the pictures that `mosgoat dreambooth generate` put into a folder.

    Args:
        folder: with `manifest.json`.
        encoder: what looks at them.
    """
    manifest = read_manifest(folder)
    names = list(manifest.pictures)
    said = encoder.read([Image.open(folder / name) for name in names])
    real = encoder.features([Image.open(folder / path) for path in manifest.references])
    similar = (said.identity @ real.T).mean(1)  # (N,)
    shown = []
    for row, entry in enumerate(manifest.pictures.values()):
        figure, background = _named(said, row)
        asked = next((place for place in BACKGROUNDS if place in manifest.prompts[entry.prompt]), None)
        shown.append(
            Shown(
                entry.prompt,
                entry.seed,
                float(similar[row]),
                figure == manifest.class_word,
                None if asked is None else background == asked,
            )
        )
    return Measured(manifest.adapter, shown)


def real_similarity(files: Sequence[Path], encoder: Encoder) -> float:
    """Mean cosine between two different real pictures: what could be reached at best."""
    features = encoder.features([Image.open(file) for file in files])
    near, count = features @ features.T, len(files)
    return float((near.sum() - near.trace()) / (count * (count - 1)))


def gains(measured: Mapping[str, Measured], base: str = "base") -> dict[str, float]:
    """Adapter -> how much more similar its pictures are to the subject than the base's from the same noise."""
    return {name: each.similarity - measured[base].similarity for name, each in measured.items() if name != base}


def _named(said: Reading, row: int) -> tuple[str, str]:
    return FIGURES[int(said.figure[row].argmax())], BACKGROUNDS[int(said.background[row].argmax())]
