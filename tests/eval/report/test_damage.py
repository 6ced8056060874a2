"""`mosgoat report` over what is damaged, odd or hostile: what can be shown is, the rest is named, nothing ends in a
traceback."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from dreambooth.manifest import MANIFEST
from eval.report.command import write_report
from tests.common.reporting.test_page import Outline
from tests.eval.report.world import (
    add_chat,
    add_samples,
    generated,
    images_evaluation,
    make_run,
    of_paper,
    subjects_evaluation,
    vlm_evaluation,
)


def text_of(root: Path, out: Path) -> str:
    return Outline(write_report([root], out).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", "{"),
        ("environment.json", '{"devices": 3}'),
        ("environment.json", '{"git": "abc", "devices": null}'),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "lo'),
        ("router_load.json", "[]"),
        ("router_load.jsonl", '{"step": 1, "tokens": 4}\n'),
        ("samples/samples.json", '{"kind": "labels", "samples": 3}'),
    ],
)
def test_a_damaged_file_that_only_describes_a_run_does_not_hide_the_run(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs", "a", method="goat", diagnosed=False)
    add_samples(run)
    (run / name).write_text(content)
    text = text_of(tmp_path / "runs", tmp_path / "r.html")
    assert "1 finished run." in text
    assert "50.00" in text, "its result"
    assert f"a/{name}" in text[text.index("Left out") :]
    assert f"a/{name}" in capsys.readouterr().err
    with pytest.raises(UserError, match=name):  # where the run itself is named, its damage is an error
        write_report([run], tmp_path / "r.html")


def test_a_picture_that_is_cut_short_is_named_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = make_run(tmp_path, "a")
    add_samples(labelled)
    chat = make_run(tmp_path, "b", validation_loss=1.0, diagnosed=False)
    add_chat(chat)
    broken = [labelled / "plots/confusion.png", labelled / "samples/00.webp", chat / "samples/00.webp"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:30])
    text = text_of(tmp_path, tmp_path / "r.html")
    told = capsys.readouterr().err
    for file in broken:
        assert f"the picture {file} is broken" in told
        assert f"the picture {file} is broken" in text
    assert "3 things could not be shown" in text
    assert "What colour is it?" in text
    assert "✓ b" in text
    assert "Confusions" not in text, "nothing is left in it"


def test_a_temporary_folder_that_cannot_be_used_is_an_error_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "a", diagnosed=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="set TMPDIR to a folder that can be written and has room"):
        write_report([run], tmp_path / "r.html")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", diagnosed=False)
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout may be
    with pytest.raises(UserError, match="is no file that a page could replace"):
        write_report([run], tmp_path / "pipe")


@pytest.mark.parametrize("value", ["true", "null", '"x"', "[1]", "-1", "1e17"])
def test_any_value_of_a_metric_can_be_shown(tmp_path: Path, value: str) -> None:
    for name in ("a", "b"):
        run = of_paper(tmp_path, name, seed=int(name == "b"))
        content = json.loads((run / "results.json").read_text())
        names = ("accuracy", "trainable_parameters", "train_seconds", "zero_shot_accuracy")
        marked = content["metrics"] | dict.fromkeys(names, "VALUE")
        told = json.dumps({**content, "metrics": marked, "n": "VALUE"}).replace('"VALUE"', value)
        (run / "results.json").write_text(told)
        lines = [f'{{"step": {step}, "loss": {value}, "eval_loss": 1, "accuracy": {value}}}\n' for step in range(3)]
        (run / "metrics.jsonl").write_text("".join(lines))
    assert "2 finished runs." in text_of(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e307", "-1e307"])
def test_any_course_can_be_shown(tmp_path: Path, value: str) -> None:
    run = make_run(tmp_path, "a", diagnosed=False)
    lines = [f'{{"step": {step}, "loss": {value}, "eval_loss": 1, "accuracy": {value}}}\n' for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(lines))
    assert "1 finished run." in text_of(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize(
    "content",
    [
        {"task": ["vit"]},
        {"method": {"a": 1}},
        {"dataset": ["signs"]},
        {"seed": "x"},
        {"metrics": {"accuracy": 10**400}},
        {"metrics": {"trainable_parameters": float("nan")}},
        {"metrics": {"train_seconds": float("inf")}},
        {"metrics": []},
    ],
)
def test_results_of_another_shape_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    make_run(tmp_path, "good", diagnosed=False)
    make_run(tmp_path, "odd", diagnosed=False, results=content)
    text = text_of(tmp_path, tmp_path / "r.html")
    assert "1 finished run." in text
    assert "odd/results.json" in text[text.index("Left out") :]


def test_a_number_of_thousands_of_digits_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "good", diagnosed=False)
    run = make_run(tmp_path, "odd", diagnosed=False)
    (run / "results.json").write_text('{"metrics": {"accuracy": ' + 5000 * "9" + "}}")
    assert "odd/results.json cannot be read as JSON" in text_of(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize("section", ["model", "data", "adapter", "train"])
def test_a_recipe_with_an_empty_section_is_shown(tmp_path: Path, section: str) -> None:
    make_run(tmp_path, "vit", diagnosed=False, config={section: None}, results={"dataset": "eurosat", "method": None})
    make_run(tmp_path, "llava", diagnosed=False, config={section: None}, validation_loss=1.0)
    assert "2 finished runs" in text_of(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize(
    "more",
    [
        {"headline": {}},
        {"notes": [3]},
        {"notes": None},
        {"environment": {"packages": []}},
        {"n": "many"},
        {"metrics": {"dev": {"overall": 1.0, "l2-category": {"a": "x", "b": 1, "c": 2}}}},
    ],
)
def test_an_evaluation_of_another_shape_is_named(tmp_path: Path, more: dict[str, Any]) -> None:
    vlm_evaluation(tmp_path / "good", "whole")
    file = vlm_evaluation(tmp_path / "odd", "odd") / "MMBench_DEV_EN" / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    text = text_of(tmp_path, tmp_path / "r.html")
    assert "1 evaluation." in text
    assert f"{file} is not what eval vlm writes" in text


def test_numbers_that_are_not_finite_end_no_evaluation(tmp_path: Path) -> None:
    file = vlm_evaluation(tmp_path / "e", "odd") / "MMBench_DEV_EN" / "results.json"
    file.write_text(file.read_text().replace("25.0", "NaN").replace("41.25", "Infinity"))
    images_evaluation(tmp_path / "i", "run", metrics={"accuracy": float("nan")})
    images_evaluation(tmp_path / "j", "run", n=float("inf"))
    subject = subjects_evaluation(tmp_path / "s", models={"dino": "x"}) / "results.json"
    subject.write_text(subject.read_text().replace("0.8", "NaN"))
    text = text_of(tmp_path, tmp_path / "r.html")
    assert "3 evaluations. " in text
    assert "j/eval_images.json is not what eval images writes" in text


def test_a_run_that_cannot_be_looked_at_any_more_is_told_so(tmp_path: Path) -> None:
    long = "x" * 5000  # as for a folder of somebody else, asking about it is an error
    images_evaluation(tmp_path / "i", long)
    vlm_evaluation(tmp_path / "e", "m", run=f"/{long}", model=None)
    text = text_of(tmp_path, tmp_path / "r.html")
    assert f"# its run {long} is not there any more" in text
    assert f"unknown: its run /{long} is not there any more" in text


@pytest.mark.parametrize("name", ["$\\foo$ {x}_^", "a\nb", "<i>&amp;", "\u202eabc", "名前", "\udcff", "x" * 200])
def test_any_name_can_be_shown(tmp_path: Path, name: str) -> None:
    try:
        runs = [make_run(tmp_path, f"{number}{name}", method="goat", seed=0) for number in (0, 1)]
    except (OSError, UnicodeError) as error:
        pytest.skip(f"no folder can be called so here: {error}")
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        dataset = name if name.isprintable() or "\n" in name else "signs"  # other bytes only folders have
        (run / "results.json").write_text(json.dumps({**results, "dataset": dataset}))
    page = Outline(write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "2 finished runs" in page.text
    assert not page.all("i")


def test_no_name_in_a_file_leads_out_of_the_folder_for_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    run = make_run(tmp_path / "runs", "a", diagnosed=False)
    key = "eval_/../../../../out/accuracy"
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "{key}": 0.5}}\n' for n in (1, 2)))
    root = generated(tmp_path / "runs" / "pictures")
    for file in root.rglob(MANIFEST):
        file.write_text(file.read_text().replace('"dog6"', '"../../../../../out"'))
    text = text_of(tmp_path / "runs", tmp_path / "r.html")
    assert "subject='../../../../../out' must be a name" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "runs", "t"]
    assert not list((tmp_path / "t").iterdir())
