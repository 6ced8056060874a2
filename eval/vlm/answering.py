"""Put every question of a table to a model: in batches, over several processes, going on where it was stopped.

Answers are appended to a file of JSON lines as they come, each with a mark of all that it depends on: the weights, the
settings, the words and the picture. What a killed evaluation leaves is used again where its marks are still right, by
any number of processes. Every process but the first writes a part file beside the output; in the end the output has
them all, in the order of the table.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from tqdm import tqdm

from common.commands import say
from common.errors import UserError
from common.files import append_json_line, atomic_write, read_json_lines
from common.training import processes
from common.write_errors import writing_is_explained
from eval.vlm.question import Question
from eval.vlm.table import Table
from llava.answers import MARK, mark
from llava.data.pictures import within_square

_AHEAD = 2  # batches whose pictures are decoded while the model is at work

Row = dict[str, Any]
Prompt = list[int] | str


class Asked(NamedTuple):
    """A question that is put to the model.

    Args:
        question: the question.
        prompt: what `Answerer.prompt` gave for it.
        picture: its picture.
        key: what tells the picture from others.
    """

    question: Question
    prompt: Prompt
    picture: Image.Image
    key: bytes


class Answerer(Protocol):
    """A way of answering: in the model's own words, or by ranking what is given."""

    @property
    def description(self) -> str:
        """In front of the progress bar."""

    def prompt(self, question: Question) -> Prompt:
        """What the model reads beside the picture; questions with prompts of like length share a batch."""

    def answer(self, batch: Sequence[Asked]) -> list[Row]:
        """For each question `prediction`, and what else is to be kept of the answer."""


@dataclass(frozen=True)
class Answered:
    """The answers to a table.

    Args:
        rows: index of the question -> its line of the file: `index`, `prediction`, further entries and the mark; in
            the order of the table.
        reused: how many of them were in the file already.
        dropped: how many lines of the file were answers of other weights, settings or questions.
        seconds: that the others took.
    """

    rows: Mapping[Any, Row]
    reused: int
    dropped: int
    seconds: float

    @property
    def predictions(self) -> dict[Any, str]:
        """Index of the question -> what was answered."""
        return {index: row["prediction"] for index, row in self.rows.items()}

    @property
    def per_second(self) -> float | None:
        """Questions answered in a second by all processes; None where all were answered before."""
        new = len(self.rows) - self.reused
        return new / self.seconds if new and self.seconds else None


@dataclass(frozen=True)
class _Plan:
    waiting: list[int]  # positions in the table, longest prompt first
    kept: list[Row] = field(default_factory=list)
    dropped: int = 0


def answer_all(answerer: Answerer, table: Table, *, key: str, output: Path, batch_size: int) -> Answered:
    """Answer all of a table's questions that `output` does not answer yet; a collective call.

    Args:
        answerer: the way of answering.
        table: the questions.
        key: names the weights and every setting that an answer depends on.
        output: file of JSON lines; its folder is made.
        batch_size: questions at once in one process; it changes an answer by no more than rounding.

    Raises:
        UserError: the output cannot be written, or a batch does not fit into memory.
    """
    plan = processes.on_main(lambda: _plan(answerer, table, key, output))
    # Whole batches, so that questions about one picture stay together; smaller ones where processes would have none.
    size = min(batch_size, math.ceil(len(plan.waiting) / processes.world_size())) or 1
    batches = [plan.waiting[start : start + size] for start in range(0, len(plan.waiting), size)]
    file, new, began = _own_file(output), [], time.perf_counter()
    with _bar(answerer.description, len(table.questions), len(plan.kept)) as bar:
        for batch in _ahead(answerer, table, batches[processes.rank() :: processes.world_size()]):
            with _memory_is_explained(batch_size):
                answers = answerer.answer(batch)
            for asked, answer in zip(batch, answers, strict=True):
                row = {"index": asked.question.index, **answer, MARK: mark(key, asked.prompt, asked.key)}
                with writing_is_explained(output.parent):
                    append_json_line(file, row)
                new.append(row)
            bar.update(min(len(batch) * processes.world_size(), len(table.questions) - bar.n))
    parts = processes.gather(new)
    seconds = time.perf_counter() - began
    rows = processes.on_main(lambda: _finish(table, output, [*plan.kept, *itertools.chain.from_iterable(parts)]))
    return Answered(rows, len(plan.kept), plan.dropped, seconds)


def _plan(answerer: Answerer, table: Table, key: str, output: Path) -> _Plan:
    """What is still to be done; the files are left with what is of use in them, in the output alone."""
    prompts = [answerer.prompt(question) for question in table.questions]
    marks = {
        str(question.index): mark(key, prompt, table.picture_key(question))
        for question, prompt in zip(table.questions, prompts, strict=True)
    }
    with writing_is_explained(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        files = [output, *_part_files(output)]
        found = [row for file in files for row in read_json_lines(file)]
        kept = {
            str(row["index"]): row
            for row in found
            if row.get(MARK) is not None and marks.get(str(row.get("index"))) == row[MARK]
        }
        _write(output, kept.values())  # without a line that a crash has cut
        for file in files[1:]:
            file.unlink()
    dropped = len(found) - sum(marks.get(str(row.get("index"))) == row.get(MARK) for row in found)
    if kept:
        say(f"{len(kept):,} of {len(prompts):,} questions are answered in {output} already")
    if dropped:
        say(f"{dropped:,} answers of other weights, settings or questions were dropped from {output}")
    waiting = [i for i, question in enumerate(table.questions) if str(question.index) not in kept]
    return _Plan(_sorted(table, waiting, [len(prompt) for prompt in prompts]), list(kept.values()), dropped)


def _sorted(table: Table, waiting: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """By length, the longest first, so that what does not fit into memory shows at once; questions about one picture
    stand together, by the longest of them."""
    keys = {i: table.picture_key(table.questions[i]) for i in waiting}
    longest: dict[bytes, int] = {}
    for i in waiting:
        longest[keys[i]] = max(longest.get(keys[i], 0), lengths[i])
    return sorted(waiting, key=lambda i: (-longest[keys[i]], keys[i], -lengths[i]))


def _finish(table: Table, output: Path, rows: Iterable[Row]) -> dict[Any, Row]:
    """Write all answers in the order of the table."""
    found = {str(row["index"]): row for row in rows}
    whole = {question.index: found[str(question.index)] for question in table.questions}
    with writing_is_explained(output.parent):
        _write(output, whole.values())
        for file in _part_files(output):
            file.unlink()
    return whole


def _write(output: Path, rows: Iterable[Row]) -> None:
    atomic_write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _own_file(output: Path) -> Path:
    rank = processes.rank()
    return output if rank == 0 else output.with_name(f"{output.stem}.part-{rank}{output.suffix}")


def _part_files(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{output.stem}.part-*{output.suffix}"))


def _ahead(answerer: Answerer, table: Table, batches: Sequence[list[int]]) -> Iterator[list[Asked]]:
    """Batches with their prompts and pictures, read while the model is at work on earlier ones."""

    def load(at: list[int]) -> list[Asked]:
        pictures: dict[bytes, Image.Image] = {}
        found = []
        for question in (table.questions[i] for i in at):
            key = table.picture_key(question)
            if key not in pictures:
                pictures[key] = within_square(table.picture(question))
            found.append(Asked(question, answerer.prompt(question), pictures[key], key))
        return found

    with ThreadPoolExecutor(1) as pool:  # one thread: nobody else touches the table meanwhile
        waiting: deque[Future[list[Asked]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(load, batch))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _memory_is_explained(batch_size: int) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(error):
            raise
        advice = (
            f"give a smaller one, such as --batch-size {batch_size // 2}; the answers so far are kept"
            if batch_size > 1
            else "even one question does not fit; give --precision bf16, another --device or more processes' memory"
        )
        raise UserError(f"out of memory with --batch-size {batch_size}: {advice}") from error


def _bar(description: str, total: int, done: int) -> tqdm:
    main = processes.is_main()
    return tqdm(total=total, initial=done, desc=description, unit=" questions", disable=None if main else True)
