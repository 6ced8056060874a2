"""`builtin:drawn-mmbench`: the test questions of the llava demo as a table in MMBench's form, for trying an evaluation.

The pictures and questions are those of `llava.demo.draw`, so that the score is one of drawn shapes and never MMBench's:
the benchmark has a name of its own, `DrawnQuestions`, and the table's only split is called `drawn`. Every question is
there once for each rotation of its options, and the four kinds of questions are the abilities of the radar.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.cache import locked
from common.errors import UserError
from common.files import atomic_write
from common.write_errors import writing_is_explained
from eval.vlm.benchmarks import DRAWN, Benchmark
from eval.vlm.question import ROTATION
from llava.demo import PREFIX, drawn_sets

TABLE = "builtin:drawn-mmbench"
LETTERS = "ABCD"
COLUMNS = ("index", "image", "question", *LETTERS, "answer", "category", "l2-category", "split")


def is_drawn(data: Path | None) -> bool:
    """Whether `--data` names the drawn table.

    Raises:
        UserError: it names another table that would have to ship with the suite.
    """
    if data is None or not str(data).startswith(PREFIX):
        return False
    if str(data) != TABLE:
        raise UserError(f"--data={data} does not ship with mosgoat; did you mean {TABLE}?")
    return True


def require_drawn(benchmark: Benchmark) -> None:
    """Refuse to score the drawn table under the name of a published benchmark."""
    if benchmark != DRAWN:
        raise UserError(
            f"--data={TABLE} holds drawn questions and no {benchmark.name}; leave --benchmark out, or give the table "
            f"of {benchmark.name} as --data"
        )


def drawn_table(cache_dir: str | None = None) -> Path:
    """The table's file, written on first use.

    Args:
        cache_dir: where it is kept; None: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = drawn_sets(cache_dir)
    file = folder / DRAWN.file_name
    if not file.is_file():
        with writing_is_explained(folder), locked(folder, "the drawn table"):
            atomic_write(file, table_text(folder))
    return file


def table_text(folder: Path) -> str:
    """The table of the test questions in a folder of `llava.demo.draw.write_sets`."""
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for index, line in enumerate(lines):
        asked = json.loads(line)
        picture = base64.b64encode((folder / asked["image"]).read_bytes()).decode()
        writer.writerows(rotations(index, asked, picture))
    return text.getvalue()


def rotations(index: int, asked: Mapping[str, Any], picture: str) -> Iterator[dict[str, Any]]:
    """A question's rows: its options moved on by 0, 1, 2 and 3 places.

    Args:
        index: of the question; rotation k has `index + k · 1 000 000`, and refers to this row for its picture.
        asked: line of `questions.jsonl`.
        picture: base64 of the file.
    """
    options, count = asked["options"], len(asked["options"])
    things = asked["caption"].count(" and ") + 1
    for turn in range(count):
        turned = [options[(at - turn) % count] for at in range(count)]
        yield {
            "index": index + turn * ROTATION,
            "image": picture if turn == 0 else str(index),
            "question": asked["text"],
            **dict(zip(LETTERS, turned, strict=True)),
            "answer": LETTERS[turned.index(asked["answer"])],
            "category": f"{asked['kind']}, {things} thing{'s' if things > 1 else ''} in the picture",
            "l2-category": asked["kind"],
            "split": "drawn",
        }
