"""What was found in the data, what was mended and what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from common.words import counted
from llava.data.pictures import Check
from llava.data.rules import RULES

_SHOWN = 20


@dataclass
class FileReport:
    """One file of conversations.

    Args:
        path: the file.
        image_root: the folder of its pictures.
        index: folder in which its indices are kept.
        read: rows of the file.
        used: conversations that can be used, by source (first folder of the picture's path, or `text-only`).
        pictures: how many different pictures there are.
        check: how closely they were looked at.
        moved: pictures that lie under another ending than the file says.
        rules: how often each rule was applied.
        skipped: (id or line, reason) of every row that is left out.
        shortened: conversations that lose rounds at their end, None where lengths were not counted in tokens.
        cut: conversations whose only answer is cut.
        unit: what lengths are counted in.
        lengths: edges and counts of a histogram of the used conversations' lengths.
        content: hash of the rows and of which of them are used.
    """

    path: str
    image_root: str
    index: str
    read: int
    used: dict[str, int]
    pictures: int
    check: Check
    moved: int
    rules: dict[str, int]
    skipped: list[tuple[str, str]]
    shortened: int | None = None
    cut: int | None = None
    unit: str = "tokens"
    lengths: dict[str, list[int]] = field(default_factory=dict)
    content: str = ""

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason, the most frequent first."""
        # Without what differs from file to file: "image file is truncated (12 bytes not processed)".
        kinds = (re.sub(r" \([^()]*\d[^()]*\)$", "", reason) for _, reason in self.skipped)
        return dict(Counter(kinds).most_common())

    def lines(self) -> list[str]:
        """The report as people read it."""
        total = sum(self.used.values())
        rows = [
            ("file", self.path),
            ("pictures", f"{self.image_root} ({self.pictures:,} different ones, {_LOOKED[self.check]})"),
            ("rows", f"{self.read:,}"),
            ("used", f"{total:,}"),
            *((f"  {source}", f"{count:,}") for source, count in self.used.items()),
            ("left out", f"{len(self.skipped):,}"),
            *((f"  {count:,}", reason) for reason, count in list(self.reasons.items())[:_SHOWN]),
        ]
        lines = [f"{key:<14}{value}" for key, value in rows]
        if len(self.reasons) > _SHOWN:
            lines.append(f"  ... and {counted(len(self.reasons) - _SHOWN, 'reason')} more")
        mended = {RULES[name]: count for name, count in self.rules.items()}
        if self.moved:
            mended["pictures lie under another ending than the file says, and are found there"] = self.moved
        if mended:
            lines.append("mended")
            lines += [f"  {count:<12,}{text}" for text, count in mended.items()]
        if self.shortened or self.cut:
            lines.append(
                f"{'shortened':<14}rounds lost at the end: {self.shortened:,}; part of an answer: {self.cut:,}"
            )
        if self.lengths:
            lines.append(f"{'length':<14}{summary(self.lengths)} {self.unit}")
        lines += [f"  left out {name}: {reason}" for name, reason in self.skipped[:_SHOWN]]
        if len(self.skipped) > _SHOWN:
            lines.append(f"  ... and {len(self.skipped) - _SHOWN:,} more (the JSON report has them all)")
        return lines


_LOOKED = {
    "decode": "all of them unpacked",
    "header": "their headers read; `mosgoat llava check-data` unpacks them",
    "none": "not opened",
}


@dataclass
class DataReport:
    """The files of a run.

    Args:
        train: the training file.
        validation: the file whose loss is measured, if there is one.
    """

    train: FileReport
    validation: FileReport | None = None

    @property
    def files(self) -> list[FileReport]:
        """One or two reports."""
        return [self.train] if self.validation is None else [self.train, self.validation]

    @property
    def content(self) -> str:
        """Hash of what is trained and measured on."""
        return "-".join(file.content for file in self.files)

    @property
    def counts(self) -> dict[str, int]:
        """Conversations used for training by source, and those for validation."""
        held = {} if self.validation is None else {"validation": sum(self.validation.used.values())}
        return {**self.train.used, **held}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(id or line, reason) of every row that is left out."""
        return [skip for file in self.files for skip in file.skipped]

    def to_json(self) -> str:
        """All of it, with `content`, `counts` and `skipped` of all files on top."""
        content: dict[str, Any] = {"content": self.content, "counts": self.counts, "skipped": self.skipped}
        files = {"train": self.train, "validation": self.validation}
        for name, file in files.items():
            content[name] = file and {**asdict(file), "reasons": file.reasons}
        return json.dumps(content, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return "\n\n".join("\n".join(file.lines()) for file in self.files)


def histogram(lengths: Sequence[int] | np.ndarray, bins: int = 40) -> dict[str, list[int]]:
    """Edges (bins + 1) and counts (bins) of whole numbers; edges are whole and evenly spaced."""
    values = np.asarray(lengths)
    if not len(values):
        return {}
    step = max(1, -(-(int(values.max()) + 1) // bins))
    edges = np.arange(0, int(values.max()) + 1 + step, step)
    counts, _ = np.histogram(values, edges)
    ordered = np.sort(values)
    percentiles = [int(ordered[min(len(ordered) - 1, len(ordered) * share // 100)]) for share in (0, 50, 95, 100)]
    return {"edges": edges.tolist(), "counts": counts.tolist(), "percentiles_0_50_95_100": percentiles}


def summary(lengths: dict[str, list[int]]) -> str:
    """A histogram in a few words."""
    least, median, most_of, longest = lengths["percentiles_0_50_95_100"]
    return f"{least:,} to {longest:,}, half of them up to {median:,}, 95 % up to {most_of:,}"
