"""`builtin:drawn-encoder`: what stands in the places of DINO and CLIP where the pictures are the dreambooth demo's.

DINO and CLIP know photographs and have to be fetched. The demo's own network (`dreambooth.demo.encoder`) knows its
32 × 32 drawings, so that `mosgoat eval subjects` can be tried and tested offline:

- in DINO's place: its identity features, near for two pictures of one character wherever it stands;
- in CLIP's: which of the six figures and which of the six backgrounds a picture shows. CLIP-I compares this between
  pictures, as CLIP compares their content; CLIP-T compares it with the figure and the background that a prompt names.

The numbers are cosines like the protocol's and comparable with each other, never with those of DINO and CLIP: tables
and `results.json` call them by other names and show no published row.

N: pictures or texts. D: width of the features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import xxhash
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.words import did_you_mean
from dreambooth.demo.builtin import PREFIX
from dreambooth.demo.encoder import FILE, load_encoder
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES
from eval.subjects.extractors import Extractor, Extractors

ENCODER = "builtin:drawn-encoder"
DINO_LABELS = {"dino": "drawn identity"}
CLIP_LABELS = {"clip_i": "drawn content", "clip_t": "content asked for"}
ABOUT = (
    f"{ENCODER} is a small network for the demo's drawings. “Drawn identity” is the cosine of its identity features, "
    "in DINO's place; “drawn content” that of the figure and background it recognises, in CLIP-I's; “content asked "
    "for” compares these with what the prompt names, in CLIP-T's. Not comparable with figures of DINO and CLIP."
)


def is_drawn(name: str, key: str) -> bool:
    """Whether an option names the drawn encoder.

    Args:
        name: the option's value.
        key: the option, for the message.

    Raises:
        UserError: it names another thing that would have to ship with the suite.
    """
    if not name.startswith(PREFIX):
        return False
    if name != ENCODER:
        short = name.removeprefix(PREFIX)
        raise UserError(
            f"{key}={name} does not ship with mosgoat; {did_you_mean(short, [ENCODER.removeprefix(PREFIX)])}"
        )
    return True


def with_drawn_dino(others: Extractors) -> Extractors:
    """`others`, with identity features (N, 64) in DINO's place; always on the CPU."""
    dino = Extractor(load_encoder().features, _fingerprint("identity"))
    return replace(others, dino=dino, labels={**others.labels, **DINO_LABELS}, about=ABOUT)


def drawn_clip() -> Extractors:
    """Content features (N, 12) of pictures and texts in CLIP's place; always on the CPU.

    A picture has two blocks of unit length, its probabilities of the figures and of the backgrounds; a text the same
    with a one for what it names. So the cosine of two is the mean of the blocks' cosines.
    """
    encoder = load_encoder()

    def of_images(images: Sequence[Image.Image]) -> Tensor:
        read = encoder.read(images)
        return torch.cat([F.normalize(logits.softmax(-1), dim=-1) for logits in (read.figure, read.background)], -1)

    clip = Extractor(of_images, _fingerprint("content"))
    return Extractors(clip=clip, texts=text_content, labels=CLIP_LABELS, about=ABOUT)


def text_content(texts: Sequence[str]) -> Tensor:
    """What prompts name, (N, 12): a one for the figure, and one for the background.

    Raises:
        UserError: a prompt names no figure or no background, or several.
    """
    rows = []
    for text in texts:
        named: list[bool] = []
        for what, words in (("figure", FIGURES), ("background", BACKGROUNDS)):
            found = [re.search(rf"\b{re.escape(word)}\b", text) is not None for word in words]
            if sum(found) != 1:
                raise UserError(
                    f"--clip={ENCODER} cannot read the prompt {text!r}: it must name one {what} of {', '.join(words)}; "
                    "--only dino measures without prompts"
                )
            named += found
        rows.append(named)
    return torch.tensor(rows, dtype=torch.float32)


def _fingerprint(part: str) -> str:
    return xxhash.xxh3_128(f"drawn {part}".encode() + FILE.read_bytes()).hexdigest()
