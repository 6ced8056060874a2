"""`mosgoat eval score`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.cli import main as mosgoat
from common.errors import UserError
from eval.vlm.score import read_predictions
from eval.vlm.table import Table, read_table
from tests.eval.vlm import tables


def write_predictions(path: Path, said: Mapping[Any, Any]) -> Path:
    lines = [json.dumps({"index": index, "prediction": text}, ensure_ascii=False) for index, text in said.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def command(tmp_path: Path, benchmark: str, *more: str) -> list[str]:
    parts = {"benchmark": benchmark, "data": "t.tsv", "predictions": "p.jsonl", "output": "out"}
    words = ["eval", "score"]
    for key, value in parts.items():
        words += [f"--{key}", value if key == "benchmark" else str(tmp_path / value)]
    return [*words, *more]


def results(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_mmbench_from_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tables.mmbench_rows(6)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    said = tables.right_answers(rows)
    said[2_000_000] = "答案是A"
    write_predictions(tmp_path / "p.jsonl", said)
    assert mosgoat(command(tmp_path, "MMBench_DEV_EN")) == 0
    found = results(tmp_path)
    assert found["metrics"]["dev"]["overall"] == pytest.approx(500 / 6)
    assert set(found["metrics"]["dev"]) == {"overall", "category", "l2-category"}
    assert found["n"] == 6
    assert "83.3" in capsys.readouterr().out
    shown = (tmp_path / "out" / "rows.csv").read_text()
    assert "2000000" in shown
    assert "答案是A" in shown


def test_mme_and_textvqa_have_their_own_forms(tmp_path: Path) -> None:
    rows = tables.mme_rows(1)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows))
    assert mosgoat(command(tmp_path, "MME")) == 0
    assert set(results(tmp_path)["metrics"]) == {"perception", "cognition", "total", "scaled", "category"}
    rows = tables.textvqa_rows(2)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", {0: "None", 1: "NA"})
    assert mosgoat(command(tmp_path, "TextVQA_VAL")) == 0
    assert results(tmp_path)["metrics"] == {"accuracy": 0.0}


def test_new_predictions_never_get_old_scores(tmp_path: Path) -> None:
    # VLMEvalKit takes them from a cache of the first scoring
    rows = tables.choice_rows(4)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    for said, expected in ((tables.right_answers(rows), 100.0), ({row["index"]: "Z" for row in rows}, 0.0)):
        write_predictions(tmp_path / "p.jsonl", said)
        assert mosgoat(command(tmp_path, "SEEDBench_IMG")) == 0
        assert results(tmp_path)["metrics"]["overall"] == expected


def test_the_files_name_does_not_decide_the_rules(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(4)
    path = tables.write_tsv(tmp_path / "SEEDBench_IMG.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows) | {1_000_000: "Z"})
    words = command(tmp_path, "MMBench_DEV_EN")
    words[words.index("--data") + 1] = str(path)
    assert mosgoat(words) == 0
    assert results(tmp_path)["metrics"]["dev"]["overall"] == 75.0


def test_incomplete_predictions_need_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tables.mmbench_rows(3)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    said = tables.right_answers(rows)
    del said[1_000_002]
    write_predictions(tmp_path / "p.jsonl", said)
    assert mosgoat(command(tmp_path, "MMBench_DEV_EN")) == 2
    assert "without a prediction: 1000002" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
    assert mosgoat(command(tmp_path, "MMBench_DEV_EN", "--allow-incomplete")) == 0
    assert "left out without a prediction: 1 row: 1000002" in capsys.readouterr().err
    assert results(tmp_path)["incomplete_allowed"] is True


def test_without_a_judge_the_status_is_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tables.mmvet_rows()
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", {0: "blue", 1: "a blue square"})
    assert mosgoat(command(tmp_path, "MMVet")) == 1
    assert "MMVet is not scored: no judge" in capsys.readouterr().err
    assert results(tmp_path)["metrics"] == {}
    assert results(tmp_path)["not_scored"] == "no judge"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--benchmark", "MMBench_DEV"], "no benchmark 'MMBench_DEV'"),
        (["--predictions", "/nowhere/p.jsonl"], "there is no such file"),
        (["--data", "/nowhere/t.tsv"], "there is no table of SEEDBench_IMG"),
    ],
)
def test_wrong_options_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    rows = tables.choice_rows(2)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows))
    assert mosgoat([*command(tmp_path, "SEEDBench_IMG"), *change]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert mosgoat(command(tmp_path, "SEEDBench_IMG")) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_damaged_picture_does_not_hinder_scoring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tables.choice_rows(2)
    rows[0]["image"] = tables.base64_of(b"broken" * 20)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows))
    assert mosgoat(command(tmp_path, "SEEDBench_IMG")) == 0
    assert "the picture cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["", "unknown", None])
def test_a_table_without_pictures_can_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str | None
) -> None:
    rows = tables.mmbench_rows(3)
    for row in rows:
        row["image"] = cell
        if cell is None:
            del row["image"]
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows))
    assert mosgoat(command(tmp_path, "MMBench_DEV_EN")) == 0
    assert results(tmp_path)["metrics"]["dev"]["overall"] == 100.0
    shown = capsys.readouterr().err
    assert ("row 'unknown', which has none: 9 rows" if cell else "the table has no pictures") in shown


def test_rows_without_a_picture_among_others_count_as_little_as_in_vlmevalkit(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[1]["image"] = ""
    tables.write_tsv(tmp_path / "t.tsv", rows)
    write_predictions(tmp_path / "p.jsonl", tables.right_answers(rows) | {1: "Z"})
    assert mosgoat(command(tmp_path, "SEEDBench_IMG")) == 0
    assert (results(tmp_path)["n"], results(tmp_path)["metrics"]["overall"]) == (2, 100.0)
    assert "no picture: left out" in " ".join(results(tmp_path)["report"])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_table(tables.write_choice(tmp_path / "t.tsv", 3), "SEEDBench_IMG")


def test_predictions_are_taken_literally(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"index": "0", "prediction": "None", "mark": 1}\r\n\n{"index": 1.0, "prediction": 12}\n'
        '{"index": 2, "prediction": "NA\\n "}',
        encoding="utf-8",
    )
    assert read_predictions(path, table).texts == {0: "None", 1: "12", 2: "NA\n "}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"index": 1, "predic', "not JSON: line 2"),
        ("[1]", "without index or prediction: line 2"),
        ('"text"', "without index or prediction: line 2"),
        ('{"index": 1}', "without index or prediction: line 2"),
        ('{"prediction": "A"}', "without index or prediction: line 2"),
        ('{"index": 1, "prediction": null}', "the prediction is not text: line 2"),
        ('{"index": 1, "prediction": true}', "the prediction is not text: line 2"),
        ('{"index": 1, "prediction": ["A"]}', "the prediction is not text: line 2"),
        ("\xff\xfe", "not JSON: line 2"),
    ],
)
def test_a_line_that_is_no_prediction_is_an_error_or_counted(
    tmp_path: Path, table: Table, line: str, reason: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"index": 0, "prediction": "A"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=f"(?s)1 line of no prediction.*{reason}"):
        read_predictions(path, table)
    found = read_predictions(path, table, allow_incomplete=True)
    assert found.texts == {0: "A"}
    assert "1: 2" in found.notes[0]


def test_predictions_for_other_rows_and_repeated_ones_are_counted(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "p.jsonl"
    lines = [(0, "A"), (7, "A"), ("x", "B"), (0, "A"), (None, "A")]
    path.write_text("".join(json.dumps({"index": index, "prediction": text}) + "\n" for index, text in lines))
    found = read_predictions(path, table)
    assert found.texts == {0: "A"}
    assert found.notes == [
        "left out, predictions for rows that the table lacks: 3: 7, x, None",
        "left out, predictions given twice: 1: 0",
    ]


def test_two_predictions_for_one_row_are_an_error(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"index": 0, "prediction": "A"}\n{"index": "0", "prediction": "B"}\n')
    with pytest.raises(UserError, match="different predictions for 1 row: index 0"):
        read_predictions(path, table, allow_incomplete=True)


def test_text_that_no_file_can_hold_is_scored_like_any_other(tmp_path: Path) -> None:
    rows = tables.choice_rows(2)
    tables.write_tsv(tmp_path / "t.tsv", rows)
    lines = [{"index": row["index"], "prediction": f"{row['answer']} \ud83d"} for row in rows]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert mosgoat(command(tmp_path, "SEEDBench_IMG")) == 0
    assert results(tmp_path)["metrics"]["overall"] == 100.0
    assert "\N{REPLACEMENT CHARACTER}" in (tmp_path / "out" / "rows.csv").read_text(encoding="utf-8")


def test_endless_numbers_and_endless_brackets_are_told_in_a_line(
    tmp_path: Path, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    deep, long = "[" * 100_000, "1" * 5000
    (tmp_path / "p.jsonl").write_text(f'{{"index": 0, "prediction": {deep}\n')
    with pytest.raises(UserError, match="not JSON: line 1"):
        read_predictions(tmp_path / "p.jsonl", table)
    (tmp_path / "p.jsonl").write_text(f'{{"index": "{long}", "prediction": "A"}}\n')
    assert "rows that the table lacks: 1" in read_predictions(tmp_path / "p.jsonl", table).notes[0]


@pytest.mark.parametrize("words", [["--judge-model", "x"], ["--judge-url", "http://x"], ["--judge-workers", "3"]])
def test_a_judge_whom_nobody_asks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert mosgoat([*command(tmp_path, "MME"), *words]) == 2
    assert f"{words[0]} has no effect on MME" in capsys.readouterr().err


def test_the_results_of_a_run_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"task": "llava", "metrics": {}}')
    assert mosgoat(command(tmp_path, "MME")) == 2
    assert "results.json of llava" in capsys.readouterr().err
    assert results(tmp_path)["task"] == "llava"
