"""Answers of a model to a table: the same in every batch, asked once, and never those of another model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import eval.vlm.predict
from common.config import AdapterConfig
from common.errors import UserError
from eval.vlm.answering import Answered, Asked, answer_all
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.predict import Speaker, predict
from eval.vlm.question import Question
from eval.vlm.table import Table, read_table
from llava.answers import MARK
from llava.config import ModelConfig
from llava.generation import generate
from llava.generation_shared import Said, generate_shared
from llava.model import LlavaBase, load_model, prepare_training
from tests.eval.vlm.tables import mmbench_rows, write_tsv
from tests.llava.tiny import disturb, recipe_of

MMBENCH = find_benchmark("MMBench_DEV_EN")


@pytest.fixture(scope="module")
def base() -> LlavaBase:
    """The small LLaVA that ships: it has learnt to describe drawn pictures, so its answers differ and end."""
    return load_model(ModelConfig(name="builtin:drawn-llava"), template="llama3")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rows = mmbench_rows(7)
    rows[2]["hint"] = "A hint that is a good deal longer than what the other questions say. " * 3
    return read_table(write_tsv(tmp_path / "table.tsv", rows), MMBENCH)


class Echo:
    """Answers with the question's index, and remembers what it was asked."""

    description = "echo"

    def __init__(self, fail_after: int | None = None, error: Exception | None = None) -> None:
        self.batches: list[list[Any]] = []
        self._fail_after, self._error = fail_after, error or KeyboardInterrupt()

    @property
    def asked(self) -> list[Any]:
        return [index for batch in self.batches for index in batch]

    def prompt(self, question: Question) -> str:
        return f"{question.hint}{question.text}{dict(question.options)}"

    def answer(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        if self._fail_after is not None and len(self.batches) >= self._fail_after:
            raise self._error
        self.batches.append([asked.question.index for asked in batch])
        return [{"prediction": f"said {asked.question.index}"} for asked in batch]


def ask(
    table: Table, output: Path, echo: Echo | None = None, *, key: str = "weights 1", batch_size: int = 4
) -> Answered:
    return answer_all(echo or Echo(), table, key=key, output=output, batch_size=batch_size)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- the model


def test_an_answer_does_not_depend_on_the_batch(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    found = [
        predict(
            base,
            table,
            MMBENCH,
            model="m",
            output=tmp_path / f"{size}.jsonl",
            batch_size=size,
            max_new_tokens=8,
        ).predictions
        for size in (1, 3, 8)
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) > 3  # a model that always says the same would pass anything


@pytest.mark.parametrize("together", ["one picture", "two pictures", "all different"])
def test_reading_a_picture_once_gives_the_answers_of_generate(base: LlavaBase, table: Table, together: str) -> None:
    speaker = Speaker(base, MMBENCH, 12)
    questions = list(table.questions)
    if together == "all different":
        questions = [question for question in questions if question.index < 100]
    elif together == "two pictures":
        questions = [question for question in questions if question.group in (0, 3)]
    else:
        questions = [question for question in questions if question.group == 0]
    prompts = [speaker.prompt(question) for question in questions]
    pictures = [table.picture(question) for question in questions]
    keys = [table.picture_key(question) for question in questions]
    found = [said.text for said in generate_shared(base, prompts, pictures, keys, max_new_tokens=12)]
    assert found == generate(base, prompts, pictures, max_new_tokens=12, batch_size=1)


def test_experts_are_routed_as_generate_routes_them(table: Table) -> None:
    recipe = recipe_of(
        ModelConfig(name="builtin:drawn-llava", feature_layer=-1), adapter=AdapterConfig(method="goat", r=8)
    )
    base = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    disturb(base.model)
    questions = [question for question in table.questions if question.group in (1, 2)]
    prompts = [Speaker(base, MMBENCH, 6).prompt(question) for question in questions]
    pictures = [table.picture(question) for question in questions]
    keys = [table.picture_key(question) for question in questions]
    found = [said.text for said in generate_shared(base, prompts, pictures, keys, max_new_tokens=6)]
    assert found == generate(base, prompts, pictures, max_new_tokens=6, batch_size=1)


def test_every_picture_goes_through_the_tower_once(
    base: LlavaBase, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    handle = base.llava().model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else ()))),
        with_kwargs=True,
    )
    questions = [question for question in table.questions if question.group in (0, 3)]
    speaker = Speaker(base, MMBENCH, 5)
    speaker.answer([Asked(q, speaker.prompt(q), table.picture(q), table.picture_key(q)) for q in questions])
    handle.remove()
    assert len(questions) == 8
    assert seen == [2]


def test_prompts_that_begin_differently_are_answered_all_the_same(base: LlavaBase, table: Table) -> None:
    first, second = table.questions[:2]
    speaker = Speaker(base, MMBENCH, 6)
    prompts = [speaker.prompt(first), [5, 6, *speaker.prompt(second)]]
    pictures = [table.picture(question) for question in (first, second)]
    found = [said.text for said in generate_shared(base, prompts, pictures, ["a", "b"], max_new_tokens=6)]
    assert found == generate(base, prompts, pictures, max_new_tokens=6, batch_size=1)


def test_an_answer_that_is_not_at_its_end_is_marked(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    options = {"model": "m", "batch_size": 8}
    short = predict(base, table, MMBENCH, output=tmp_path / "2.jsonl", max_new_tokens=2, **options)  # type: ignore[arg-type]
    long = predict(base, table, MMBENCH, output=tmp_path / "40.jsonl", max_new_tokens=40, **options)  # type: ignore[arg-type]
    for index, row in short.rows.items():
        # what ends within two tokens is the same with more room, and what does not goes on
        assert row.get("cut", False) == (long.predictions[index] != row["prediction"])
    assert any(row.get("cut") for row in short.rows.values())
    assert not all(row.get("cut") for row in long.rows.values())


def test_the_models_mode_is_restored(base: LlavaBase, table: Table) -> None:
    questions = table.questions[:2]
    speaker = Speaker(base, MMBENCH, 2)
    base.model.train()
    prompts = [speaker.prompt(question) for question in questions]
    generate_shared(base, prompts, [table.picture(question) for question in questions], "ab", max_new_tokens=2)
    assert base.model.training
    base.model.eval()


def test_limits_and_precision_are_part_of_what_an_answer_depends_on(
    base: LlavaBase, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counting(*args: Any, **options: Any) -> list[Said]:
        calls.append(len(args[1]))
        return [Said("A", False)] * len(args[1])

    monkeypatch.setattr(eval.vlm.predict, "generate_shared", counting)
    for model, limit in (("m", 5), ("m", 5), ("m", 6), ("other", 6), ("other", None)):
        predict(base, table, MMBENCH, model=model, output=tmp_path / "p.jsonl", batch_size=50, max_new_tokens=limit)
    every = len(table.questions)
    assert calls == [every] * 4  # the second time nothing was left; 5 is the family's own limit


# -- the file


def test_the_file_is_in_the_order_of_the_table(table: Table, tmp_path: Path) -> None:
    answered = ask(table, tmp_path / "deep" / "p.jsonl")
    rows = lines(tmp_path / "deep" / "p.jsonl")
    assert [row["index"] for row in rows] == [question.index for question in table.questions] == list(answered.rows)
    assert answered.predictions == {row["index"]: f"said {row['index']}" for row in rows}
    assert (answered.reused, answered.dropped) == (0, 0)


def test_long_questions_come_first_and_questions_about_a_picture_stand_together(table: Table, tmp_path: Path) -> None:
    echo = Echo()
    ask(table, tmp_path / "p.jsonl", echo, batch_size=1)
    assert echo.asked[0] == table.questions[2].index
    groups = [index % 1_000_000 for index in echo.asked]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1


def test_a_killed_evaluation_goes_on_where_it_stopped(table: Table, tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(table, output, Echo(fail_after=2), batch_size=3)
    assert len(lines(output)) == 6
    with output.open("ab") as file:
        file.write(b'{"index": 1, "predic')  # killed while it wrote
    echo = Echo()
    answered = ask(table, output, echo)
    assert len(echo.asked) == len(table.questions) - 6
    assert answered.reused == 6
    assert [row["index"] for row in lines(output)] == [question.index for question in table.questions]
    echo = Echo()
    assert ask(table, output, echo).per_second is None
    assert echo.asked == []


def test_what_other_processes_have_answered_is_taken_up(table: Table, tmp_path: Path) -> None:
    output, expected = tmp_path / "p.jsonl", tmp_path / "whole.jsonl"
    ask(table, expected)
    found = expected.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text("".join(found[:3]), encoding="utf-8")
    (tmp_path / "p.part-1.jsonl").write_text("".join(found[3:7]), encoding="utf-8")
    (tmp_path / "p.part-2.jsonl").write_text("".join(found[6:9]) + found[9][:11], encoding="utf-8")
    echo = Echo()
    answered = ask(table, output, echo)
    assert (answered.reused, len(echo.asked)) == (9, len(table.questions) - 9)
    assert output.read_text(encoding="utf-8") == expected.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.glob("p.*")) == ["p.jsonl"]


@pytest.mark.parametrize("change", ["weights", "question", "option", "picture", "nothing"])
def test_an_answer_to_anything_else_is_never_used(table: Table, tmp_path: Path, change: str) -> None:
    output, key = tmp_path / "p.jsonl", "weights 1"
    ask(table, output)
    rows = mmbench_rows(7)
    rows[2]["hint"] = "A hint that is a good deal longer than what the other questions say. " * 3
    if change == "weights":
        key = "weights 2"
    elif change == "question":
        rows[0]["question"] += "?"
    elif change == "option":
        rows[0]["A"] += "!"
    elif change == "picture":  # of four rotations
        rows[0]["image"] = mmbench_rows(1, seed=99)[0]["image"]
    echo = Echo()
    answered = ask(read_table(write_tsv(tmp_path / "other.tsv", rows), MMBENCH), output, echo, key=key)
    expected = {"weights": len(table.questions), "question": 1, "option": 1, "picture": 4, "nothing": 0}[change]
    assert len(echo.asked) == answered.dropped == expected
    assert len(lines(output)) == len(table.questions)


def test_a_foreign_line_is_no_answer(table: Table, tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    output.write_text('{"index": 0, "prediction": "A"}\n{"index": 0, "prediction": "A", "answered_by": null}\n[]\n')
    echo = Echo()
    assert ask(table, output, echo).reused == 0
    assert len(echo.asked) == len(table.questions)
    assert all(row[MARK] for row in lines(output))


# -- what goes wrong


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_option_to_change(table: Table, tmp_path: Path, error: Exception) -> None:
    output = tmp_path / "p.jsonl"
    with pytest.raises(UserError, match=r"out of memory with --batch-size 4: .*--batch-size 2; the answers so far"):
        ask(table, output, Echo(fail_after=1, error=error))
    assert len(lines(output)) == 4
    with pytest.raises(UserError, match="even one question does not fit"):
        ask(table, output, Echo(fail_after=0, error=error), batch_size=1)


def test_another_error_keeps_its_traceback(table: Table, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"):
        ask(table, tmp_path / "p.jsonl", Echo(fail_after=0, error=RuntimeError("shape mismatch")))


@pytest.mark.parametrize("place", ["file/p.jsonl", "folder"])
def test_a_place_that_cannot_be_written_is_named(table: Table, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"could not be written|is a file; give the path of a folder"):
        ask(table, tmp_path / place)
