"""What the tests of the two commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import eval.vlm.evaluation
from eval.vlm.answering import Asked
from eval.vlm.predict import Speaker
from eval.vlm.question import Question
from tests.eval.vlm.tables import mmbench_rows, mme_rows, mmvet_rows, write_choice, write_tsv

Say = Callable[[Question], str]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Say], None]:
    """Put other words into the model's mouth."""

    def put(say: Say) -> None:
        def answer(self: Speaker, batch: Sequence[Asked]) -> list[dict[str, Any]]:
            return [{"prediction": say(asked.question)} for asked in batch]

        monkeypatch.setattr(Speaker, "answer", answer)

    return put


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval.vlm.evaluation, "open_model", lambda options: pytest.fail("the model was loaded"))


@pytest.fixture
def mmbench(tmp_path: Path) -> Path:
    rows = mmbench_rows(6)
    for at, row in enumerate(rows):
        row["l2-category"] = ("coarse_perception", "attribute_reasoning", "logic_reasoning")[
            row["index"] % 1_000_000 % 3
        ]
        row["source"] = "=1+1" if at else "None"
    return write_tsv(tmp_path / "any name.tsv", rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of four benchmarks; five of the nine are missing."""
    root = tmp_path / "LMUData"
    root.mkdir()
    write_tsv(root / "MMBench_DEV_EN.tsv", mmbench_rows(3))
    write_choice(root / "AI2D_TEST.tsv", 4)
    write_tsv(root / "MME.tsv", mme_rows(1))
    write_tsv(root / "MMVet.tsv", mmvet_rows())
    return root
