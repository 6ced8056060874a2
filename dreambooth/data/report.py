"""What was found in a subject's folder, what was done about it and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from common.words import counted, listed
from dreambooth.data.subjects import Findings

_SHOWN = 8


@dataclass
class FolderReport:
    """One folder of pictures.

    Args:
        folder: its path.
        used: how many pictures are trained on.
        findings: see there.
    """

    folder: str
    used: int
    findings: Findings

    def lines(self, what: str) -> list[str]:
        """The folder as people read it."""
        found = self.findings
        lines = [_line(what, f"{self.used} in {self.folder}")]
        lines += [_line("  left out", f"{name}: {reason}") for name, reason in found.skipped]
        if found.ignored:
            lines.append(_line("  passed over", f"{len(found.ignored)} that are no pictures: {listed(found.ignored)}"))
        lines += [
            _line(f"  {len(names)} of them", f"{text} ({listed(names)})") for text, names in found.remarks.items()
        ]
        return lines


@dataclass
class DataReport:
    """What a run is trained on; see `common.training.data_report`.

    Args:
        subject: its name.
        class_word: what it is.
        pictures: of the subject.
        prior: the class pictures, None without prior preservation.
        generated: how many of them the model has made.
        prompts: prompt -> how many pictures it goes with.
        cut: prompt -> its end that the text encoders do not see.
        crops: variants of the subject's pictures, all together.
        content: hash of what is trained on.
    """

    subject: str
    class_word: str
    pictures: FolderReport
    prior: FolderReport | None = None
    generated: int = 0
    prompts: dict[str, int] = field(default_factory=dict)
    cut: dict[str, str] = field(default_factory=dict)
    crops: int = 0
    content: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        """Pictures by what they are."""
        prior = {} if self.prior is None else {"class pictures": self.prior.used}
        return {"pictures": self.pictures.used, **prior}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of every picture that is left out."""
        return [*self.pictures.findings.skipped, *([] if self.prior is None else self.prior.findings.skipped)]

    def to_json(self) -> str:
        """All of it, with `counts` and `skipped`."""
        content: dict[str, Any] = {**asdict(self), "counts": dict(self.counts), "skipped": self.skipped}
        return json.dumps(content, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [_line("subject", f"{self.subject}, a {self.class_word}"), *self.pictures.lines("pictures")]
        lines.append(_line("  crops", f"{self.crops}, mirrored ones counted"))
        if self.prior is not None:
            lines += self.prior.lines("class pictures")
            lines.append(_line("  generated", str(self.generated)))
        shown = list(self.prompts.items())[:_SHOWN]
        lines += [_line("prompt", f"{prompt!r} for {count}") for prompt, count in shown]
        if len(self.prompts) > _SHOWN:
            lines.append(_line("", f"... and {len(self.prompts) - _SHOWN} more (the JSON report has them all)"))
        if self.cut:
            lines.append(
                _line("too long", f"{counted(len(self.cut), 'prompt')} of more than 77 tokens, cut at the end:")
            )
            lines += [_line("", f"...{end!r} of {prompt[:40]!r}...") for prompt, end in list(self.cut.items())[:_SHOWN]]
        return "\n".join(lines)


def _line(key: str, value: str) -> str:
    return f"{key:<16}{value}"
