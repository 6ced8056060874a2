"""A run's samples: pictures, questions and answers that show what it has learnt, beside the numbers.

RUN/samples/samples.json and small pictures beside it. A pipeline writes them at the end of its training; a report
shows them. In the file:

    {"kind": "labels", "about": "12 of the 360 test pictures, ...",
     "samples": [{"picture": "samples/00.webp", "question": "", "answer": "stop", "expected": "stop", "right": true}]}
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from common.errors import UserError
from common.files import atomic_write, write_json
from common.pictures import encoded
from common.reporting.runs import read_json

FOLDER, FILE = "samples", "samples.json"
SAMPLES = f"{FOLDER}/{FILE}"
SIDE = 224  # most pixels of a picture's longer side
_KEEPS_EDGES = 64  # pictures up to this side are kept without loss

# labels: pictures with what they were taken for.  chat: questions and answers.  pictures: what was drawn for prompts.
Kind = Literal["labels", "chat", "pictures"]


@dataclass(frozen=True)
class Sample:
    """One of them.

    Args:
        picture: path under the run directory, or the pixels that are to be written there; None: none.
        question: the question, or the prompt of a drawn picture; empty for pictures that were classified.
        answer: what the model said; empty for a drawn picture.
        expected: the known answer; empty: none is known.
        right: whether the answer is right; None where nobody has judged it.
    """

    picture: str | Image.Image | None
    question: str = ""
    answer: str = ""
    expected: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Samples:
    """The samples of a run.

    Args:
        kind: what they are.
        about: how they were chosen, in a sentence or two.
        items: in their order.
    """

    kind: Kind
    about: str
    items: Sequence[Sample]


def write_samples(run: Path, samples: Samples) -> None:
    """Write the samples of a run, in place of earlier ones; the main process only.

    Args:
        run: the run directory.
        samples: their pictures as pixels, which are made small, or as paths under `run`, which are kept as they are.
    """
    folder = run / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for number, sample in enumerate(samples.items):
        picture = sample.picture
        if isinstance(picture, Image.Image):
            file = folder / f"{number:02}.webp"
            atomic_write(file, _small(picture))
            picture = f"{FOLDER}/{file.name}"
        told = {key: getattr(sample, key) for key in ("question", "answer", "expected", "right")}
        entries.append({"picture": picture, **told})
    write_json(folder / FILE, {"kind": samples.kind, "about": samples.about, "samples": entries})


def _small(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return encoded(small, "WEBP", quality=85, lossless=max(small.size) <= _KEEPS_EDGES)


def read_samples(run: Path) -> Samples | None:
    """The samples of a run; None where it wrote none.

    Raises:
        UserError: the file is damaged or holds something else, or names a picture outside the run.
    """
    file = run / FOLDER / FILE
    if not file.is_file():
        return None
    content = read_json(file)
    entries = content.get("samples") if isinstance(content, dict) else None
    known = isinstance(content, dict) and content.get("kind") in get_args(Kind)
    if not known or not isinstance(entries, list) or not all(map(_is_sample, entries)):
        raise UserError(f"{file} holds no samples as `mosgoat` writes them; delete the folder {run / FOLDER}")
    for entry in entries:
        if entry["picture"] is not None and not _lies_in(run, entry["picture"]):
            raise UserError(f"{file}: the picture {entry['picture']!r} lies outside the run; was the file changed?")
    return Samples(content["kind"], str(content.get("about", "")), [Sample(**entry) for entry in entries])


def _is_sample(entry: Any) -> bool:
    texts = ("question", "answer", "expected")
    return (
        isinstance(entry, dict)
        and set(entry) == {"picture", "right", *texts}
        and isinstance(entry["picture"], str | None)
        and isinstance(entry["right"], bool | None)
        and all(isinstance(entry[key], str) for key in texts)
    )


def _lies_in(run: Path, picture: str) -> bool:
    # no path from a data file leaves its root, not through a link either
    return "\0" not in picture and (run / picture).resolve().is_relative_to(run.resolve())
