"""How many of the drawn test questions a model answers, by the likelihood of the options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava.conversation import Turn
from llava.demo.scenes import KINDS
from llava.generation import generate
from llava.likelihood import Choice, score_options
from llava.model import LlavaBase


@dataclass(frozen=True)
class Answer:
    """What a model said to one question.

    Args:
        id: of the question.
        image: file of the picture, under the folder of the sets.
        kind: what is asked for.
        question: text.
        options: the answers to choose from.
        answer: the right one.
        chosen: the option of the largest mean log-likelihood per token.
        said: the greedy answer in the model's own words; empty where it was not asked for.
    """

    id: str
    image: str
    kind: str
    question: str
    options: Sequence[str]
    answer: str
    chosen: str
    said: str = ""

    @property
    def right(self) -> bool:
        """Whether the right option was chosen."""
        return self.chosen == self.answer


@dataclass(frozen=True)
class Measured:
    """A model's answers to the test questions.

    Args:
        answers: one for each question.
    """

    answers: Sequence[Answer]

    def accuracy(self, kind: str | None = None) -> float:
        """Share of right choices in [0, 1], of all questions or of one kind."""
        chosen = [each.right for each in self.answers if kind in (None, each.kind)]
        return sum(chosen) / max(len(chosen), 1)

    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy over all questions."""
        n, p, z = len(self.answers), self.accuracy(), 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return middle - half, middle + half

    def to_json(self) -> dict[str, Any]:
        """Accuracies and every answer, as plain values."""
        low, high = self.interval()
        return {
            "accuracy": self.accuracy(),
            "interval": [low, high],
            "by_kind": {kind: self.accuracy(kind) for kind in KINDS},
            "n": len(self.answers),
            "answers": [asdict(each) for each in self.answers],
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Measured:
        """What `to_json` gave."""
        return cls([Answer(**each) for each in content["answers"]])


def measure(base: LlavaBase, folder: Path, *, spoken: int = 12, description: str = "test questions") -> Measured:
    """Put every test question to a model.

    Args:
        base: the model.
        folder: of the drawn sets.
        spoken: so many of the first questions are answered in the model's own words as well.
        description: in front of the progress bar.
    """
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [Image.open(folder / each["image"]).convert("RGB") for each in asked]
    choices = [Choice(each["text"], each["options"], picture) for each, picture in zip(asked, pictures, strict=True)]
    scores = score_options(base, choices, batch_size=25, description=description)
    prompts = [base.prompt([Turn("human", each["text"], image=True)]) for each in asked[:spoken]]
    said = generate(base, prompts, pictures[:spoken], max_new_tokens=24, batch_size=12)
    answers = []
    for number, (each, options) in enumerate(zip(asked, scores, strict=True)):
        best = max(range(len(options)), key=lambda i: options[i].mean)
        answers.append(
            Answer(
                id=each["id"],
                image=each["image"],
                kind=each["kind"],
                question=each["text"],
                options=each["options"],
                answer=each["answer"],
                chosen=each["options"][best],
                said=said[number] if number < spoken else "",
            )
        )
    return Measured(answers)
