from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import llava.predict
from common.errors import UserError
from llava.predict import MARK, main, read_questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.effect_noise((30 + 8 * i, 40), 60 + 20 * i).convert("RGB").save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def rows_of() -> list[dict[str, Any]]:
    asked = ["What is it? ", "How many? ", "Is it red? ", "Where? "]
    rows: list[dict[str, Any]] = [
        {"id": i, "question": asked[i % 4] * (1 + i), "image": f"pictures/{i % 3}.png", "kind": "x"} for i in range(5)
    ]
    return [*rows, {"id": "text", "question": "A question without a picture?"}]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(run: Path, folder: Path, *more: str) -> list[str]:
    given = ["--run", str(run), "--questions", str(folder / "q.jsonl"), "--output", str(folder / "out" / "p.jsonl")]
    return [*given, "--max-new-tokens", "6", "--batch-size", "2", *more]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the model was given."""
    calls: list[int] = []
    original = llava.predict.generate

    def counting(base: Any, prompts: Any, images: Any, **options: Any) -> list[str]:
        calls.append(len(prompts))
        return original(base, prompts, images, **options)

    monkeypatch.setattr(llava.predict, "generate", counting)
    return calls


def test_every_question_gets_an_answer_in_the_order_of_the_file(run: Path, folder: Path) -> None:
    write_rows(folder / "q.jsonl", rows_of())
    assert main(words(run, folder)) == 0
    found = read_rows(folder / "out" / "p.jsonl")
    assert [{k: v for k, v in row.items() if k not in ("answer", MARK)} for row in found] == rows_of()
    assert sum(bool(row["answer"]) for row in found) >= 4
    single = ["--batch-size", "1", "--output", str(folder / "single.jsonl")]
    main(words(run, folder, *single))
    assert read_rows(folder / "single.jsonl") == found


def test_answered_questions_are_not_asked_again(run: Path, folder: Path, count: list[int]) -> None:
    write_rows(folder / "q.jsonl", rows_of())
    main(words(run, folder))
    assert sum(count) == 6
    expected = (folder / "out" / "p.jsonl").read_text()
    lines = expected.splitlines(keepends=True)
    # stopped after two answers, in the middle of writing the third
    (folder / "out" / "p.jsonl").write_text(lines[3] + lines[0] + lines[1][:20])
    count.clear()
    assert main(words(run, folder)) == 0
    assert sum(count) == 4
    assert (folder / "out" / "p.jsonl").read_text() == expected


@pytest.mark.parametrize("what", ["question", "picture", "weights", "length"])
def test_answer_to_anything_else_is_not_taken_for_this_one(
    run: Path, folder: Path, tmp_path: Path, count: list[int], what: str
) -> None:
    write_rows(folder / "q.jsonl", rows_of())
    main(words(run, folder))
    count.clear()
    more: list[str] = []
    if what == "question":
        write_rows(folder / "q.jsonl", [{**rows_of()[0], "question": "Another?"}, *rows_of()[1:]])
    elif what == "picture":
        Image.new("RGB", (30, 40)).save(folder / "pictures" / "1.png")
    elif what == "weights":
        run = Path(shutil.copytree(run, tmp_path / "other"))
        file = run / "adapter" / "adapter_model.safetensors"
        save_file({name: value * 1.01 for name, value in load_file(file).items()}, file)
    else:
        more = ["--max-new-tokens", "5"]
    with pytest.raises(UserError, match="not answers of this model to these questions"):
        main(words(run, folder, *more))
    assert len(read_rows(folder / "out" / "p.jsonl")) == 6  # untouched
    assert main(words(run, folder, *more, "--overwrite")) == 0
    assert sum(count) == {"question": 1, "picture": 2, "weights": 6, "length": 6}[what]


@pytest.mark.parametrize("content", ["[\n{}\n]\n", '[{"id": 1}]', '{"a": 1}', "some text"])
def test_a_file_of_something_else_is_never_written_over(run: Path, folder: Path, content: str) -> None:
    write_rows(folder / "q.jsonl", rows_of()[:1])
    (folder / "mine").write_text(content)
    with pytest.raises(UserError, match="not answers of this model to these questions"):
        main(words(run, folder, "--output", str(folder / "mine")))
    assert (folder / "mine").read_text() == content


@pytest.mark.parametrize("place", [".", "file/below.jsonl"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_rows(folder / "q.jsonl", rows_of()[:1])
    (folder / "file").write_text("")
    monkeypatch.setattr(llava.predict, "open_model", lambda options: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"is a folder|could not be written"):
        main(words(run, folder, "--output", str(folder / place)))


def test_bad_rows_are_named_and_the_rest_is_answered(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pictures" / "text.png").write_text("no picture")
    bad = [
        "{not json",
        '"a text"',
        {"question": "Without an id?"},
        {"id": 7},
        {"id": 8, "question": "  "},
        {"id": 9, "question": "What?", "image": "pictures/absent.png"},
        {"id": 10, "question": "What?", "image": "../secret.png"},
        {"id": 11, "question": "What?", "image": "pictures"},
        {"id": 12, "question": "What?", "image": "pictures/text.png"},
        {"id": 0, "question": "Twice?"},
    ]
    write_rows(folder / "q.jsonl", [rows_of()[0], *bad])
    assert main(words(run, folder)) == 1
    assert [row["id"] for row in read_rows(folder / "out" / "p.jsonl")] == [0]
    err = capsys.readouterr().err
    assert "1 question; rows left out: 10" in err
    assert all(f"line {line} " in err for line in range(2, 12)), err
    assert "out of the image root" in err


def test_picture_that_breaks_on_reading_is_left_out_and_reported(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "pictures" / "1.png"
    file.write_bytes(file.read_bytes()[:200])  # its header is whole
    write_rows(folder / "q.jsonl", rows_of())
    assert main(words(run, folder)) == 1
    assert [row["id"] for row in read_rows(folder / "out" / "p.jsonl")] == [0, 2, 3, "text"]
    assert "pictures/1.png" in capsys.readouterr().err


def test_file_without_one_sound_row_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no row that can be answered"):
        read_questions(write_rows(folder / "q.jsonl", [{"id": 1}]), str(folder))
    with pytest.raises(UserError, match="--questions"):
        read_questions(folder / "absent.jsonl", str(folder))


def test_image_root_can_be_elsewhere(run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    questions = write_rows(tmp_path / "elsewhere" / "q.jsonl", rows_of())
    given = words(run, folder, "--questions", str(questions), "--image-root", str(folder))
    assert main(given) == 0
