"""`mosgoat llava predict`: answers to a file of questions, in batches; goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from common.commands import require_between, require_one_process, say
from common.errors import UserError
from common.files import append_json_line, atomic_write, read_json_lines
from common.pictures import DecodeError
from common.words import counted
from common.write_errors import writing_is_explained
from llava.answers import MARK, mark
from llava.conversation import Turn
from llava.data.pictures import find, load_picture, problem_of
from llava.data.reading import read_records
from llava.data.rules import Defect, normalise, turns_of
from llava.generation import generate
from llava.model_open import add_model_options, identity, open_model

PROG = "mosgoat llava predict"
_SHOWN = 10


@dataclass(frozen=True)
class Question:
    """One row of the input that can be answered.

    Args:
        row: as it was read.
        turn: what is asked.
        image: path of its picture under the image root as it is on the disk, None without one.
    """

    row: dict[str, Any]
    turn: Turn
    image: str | None

    @property
    def id(self) -> str:
        """What names it in the output."""
        return str(self.row["id"])


@dataclass(frozen=True)
class _Prompt:
    question: Question
    ids: list[int]
    mark: str


def main(argv: Sequence[str] | None = None) -> int:
    """Answer; exit status 1 when some rows could not be."""
    options = _parser().parse_args(list(argv or []))
    require_one_process(PROG, "split the questions into files, and give each a --device")
    for key in ("batch_size", "max_new_tokens"):
        require_between(f"--{key.replace('_', '-')}", getattr(options, key))
    root = os.path.realpath(options.image_root or options.questions.parent)
    questions, problems = read_questions(options.questions, root)
    for problem in problems[:_SHOWN]:
        say(f"left out: {problem}")
    if len(problems) > _SHOWN:
        say(f"and {len(problems) - _SHOWN} more")
    say(f"{counted(len(questions), 'question')}; rows left out: {len(problems):,}")
    _prepare(options.output)
    failed = predict(options, questions, root)
    return int(bool(problems or failed))


def read_questions(path: Path, root: str) -> tuple[list[Question], list[str]]:
    """The rows of a file of questions that can be answered, and in a line each why the others cannot.

    Args:
        path: JSON lines (or a list) of `{"id", "question", "image"?}`; further keys are kept.
        root: folder of the pictures, without links in its path.

    Raises:
        UserError: the file cannot be read, or not one row can be answered.
    """
    questions, problems, seen = [], [], set()
    for record in read_records(path, "--questions"):
        try:
            if record.problem is not None:
                raise Defect(record.problem, f"line {record.line}")
            question = _question(record.value, record.line, root)
            if question.id in seen:
                raise Defect("its id was there before", question.id)
        except Defect as defect:
            problems.append(f"line {record.line} (id {defect.row_id}): {defect.reason}")
            continue
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise UserError(f"--questions={path} has no row that can be answered; " + "; ".join(problems[:3]))
    return questions, problems


def _question(value: Any, line: int, root: str) -> Question:
    if not isinstance(value, dict):
        raise Defect("the row is not an object", f"line {line}")
    asked = value.get("question")
    if not isinstance(asked, str) or not asked.strip():
        raise Defect("question is missing or empty", str(value.get("id", f"line {line}")))
    if "id" not in value:
        raise Defect("id is missing", f"line {line}")
    # the rules of the training data, so that a question means the same in both
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": "-"}]
    row, _ = normalise({"id": value["id"], "image": value.get("image"), "conversations": said}, line)
    name = None
    if row.image is not None:
        stamp = find(root, row.image)
        problem = problem_of(root, stamp, "header")
        if problem:
            raise Defect(f"picture {row.image}: {problem}", row.id)
        name = stamp.name
    return Question(value, turns_of(row.texts, row.image_turn)[0], name)


def _prepare(output: Path) -> None:
    # before the model is loaded: the first answer may be minutes away
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; give the path of a file")
    with writing_is_explained(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))


def predict(options: argparse.Namespace, questions: Sequence[Question], root: str) -> int:
    """Answer what `options.output` does not hold yet; the file is in the order of the questions in the end.

    Returns:
        How many questions could not be answered after all; each is reported.

    Raises:
        UserError: the model cannot be opened, or the output holds other answers.
    """
    base = open_model(options)
    model = f"{identity(options, base)} {base.template} {base.precision} {options.max_new_tokens}"
    prompts, failed = [], 0
    for question in questions:
        ids = base.prompt([question.turn])
        prompts.append(_Prompt(question, ids, mark(model, ids, _content(root, question.image))))
    done = _answered(options.output, prompts, options.overwrite)
    waiting = sorted((p for p in prompts if p.question.id not in done), key=lambda prompt: -len(prompt.ids))
    if done:
        say(f"{counted(len(done), 'question')} answered in {options.output} already")
    with tqdm(total=len(prompts), initial=len(done), desc="answering", unit=" questions", disable=None) as bar:
        for start in range(0, len(waiting), options.batch_size):
            batch = waiting[start : start + options.batch_size]
            ready = list(_with_pictures(batch, root))
            answers = generate(
                base,
                [prompt.ids for prompt, _ in ready],
                [picture for _, picture in ready],
                max_new_tokens=options.max_new_tokens,
                batch_size=options.batch_size,
            )
            for (prompt, _), answer in zip(ready, answers, strict=True):
                row = {**prompt.question.row, "answer": answer, MARK: prompt.mark}
                with writing_is_explained(options.output):
                    append_json_line(options.output, row)
                done[prompt.question.id] = row
            failed += len(batch) - len(ready)
            bar.update(len(batch))
    _write(options.output, [done[question.id] for question in questions if question.id in done])
    say(f"{counted(len(done), 'answer')} in {options.output}")
    return failed


def _with_pictures(batch: Iterable[_Prompt], root: str) -> Iterable[tuple[_Prompt, Image.Image | None]]:
    for prompt in batch:
        name = prompt.question.image
        try:
            yield prompt, None if name is None else load_picture(root, name)
        except DecodeError as error:
            say(f"left out: id {prompt.question.id}: picture {name}: {error}")


def _answered(output: Path, prompts: Sequence[_Prompt], overwrite: bool) -> dict[str, dict[str, Any]]:
    """The answers in the output that the same model gave to the same questions; nothing else stays in it."""
    marks = {prompt.question.id: prompt.mark for prompt in prompts}
    rows = read_json_lines(output)
    kept = {str(row["id"]): row for row in rows if MARK in row and marks.get(str(row.get("id"))) == row[MARK]}
    strange = _whole_lines(output) - len(kept)
    if strange and not overwrite:
        raise UserError(
            f"{output} holds what are not answers of this model to these questions ({counted(strange, 'line')}); "
            "choose another --output, or give --overwrite to answer them anew"
        )
    _write(output, kept.values())  # without a line that a crash has cut
    return kept


def _whole_lines(output: Path) -> int:
    """Lines of a file, without a last one that a crash has cut: `--output` may name a file that is no list of rows."""
    *lines, rest = output.read_bytes().split(b"\n")
    cut = rest.startswith(b"{") and not rest.endswith(b"}")
    return len(lines) + bool(rest and not cut)


def _write(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    with writing_is_explained(output):
        atomic_write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _content(root: str, image: str | None) -> bytes:
    if image is None:
        return b""
    try:
        return Path(root, image).read_bytes()
    except OSError:
        return b"unreadable"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    add_model_options(parser)
    parser.add_argument("--questions", required=True, type=Path, help='JSON lines of {"id", "question", "image"?}')
    parser.add_argument("--image-root", type=Path, help="folder of the pictures; default: that of the questions")
    parser.add_argument("--output", required=True, type=Path, help='JSON lines: the rows with "answer"')
    parser.add_argument("--batch-size", type=int, default=8, help="questions at once; default: 8")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="an answer is cut there; default: 256")
    parser.add_argument("--overwrite", action="store_true", help="drop what --output holds of another model")
    return parser
