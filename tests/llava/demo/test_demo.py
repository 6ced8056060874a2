"""`mosgoat llava demo` from the measuring of the base to the page, cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from llava.demo import model_folder, run, sets_folder
from llava.demo.draw import write_sets
from llava.demo.measure import Answer, Measured, measure


def answers(right: int, wrong: int) -> Measured:
    def answer(number: int, chosen: str) -> Answer:
        return Answer(str(number), "", "count", "How many?", ("one", "two"), "one", chosen)

    return Measured([answer(i, "one") for i in range(right)] + [answer(right + i, "two") for i in range(wrong)])


def test_the_interval_is_wilsons() -> None:
    measured = answers(31, 69)
    assert measured.accuracy() == 0.31
    # a textbook's value for 31 of 100
    assert measured.interval() == pytest.approx((0.2278, 0.4063), abs=2e-4)
    assert Measured.of_json(json.loads(json.dumps(measured.to_json()))).accuracy() == 0.31


def test_the_shipped_base_was_built_by_the_script() -> None:
    log = json.loads((model_folder("drawn-llava") / "pretraining.json").read_text(encoding="utf-8"))
    assert log["captions"][-1]["accuracy"] > 0.95
    weights = (model_folder("drawn-llava") / "model.safetensors").stat().st_size
    assert abs(weights - 2 * log["parameters"]) < 50_000  # float16


def test_too_few_steps_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--steps 5 must be more than the 20"):
        run.demo_recipe(tmp_path, "moslora", 5)


@pytest.mark.slow
def test_a_short_demo_measures_trains_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = tmp_path / "cache"
    monkeypatch.setenv("MOSGOAT_CACHE", str(sets))
    write_sets(sets_folder(sets), train=64, test=16)
    assert run.main(["--output", str(tmp_path / "demo"), "--steps", "22"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed
    assert "after" in printed
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Questions and answers" in page
    assert page.count("data:image/png") >= 13  # twelve pictures and the loss
    after = Measured.of_json(json.loads((tmp_path / "demo" / "after.json").read_text(encoding="utf-8")))
    assert len(after.answers) == 16

    before = json.loads((tmp_path / "demo" / "before.json").read_text(encoding="utf-8"))
    measured = []

    def noted(*arguments: Any, description: str, **options: Any) -> Measured:
        measured.append(description)
        return measure(*arguments, description=description, **options)

    monkeypatch.setattr(run, "measure", noted)
    assert run.main(["--output", str(tmp_path / "demo"), "--steps", "22"]) == 0
    assert measured == ["after"]  # what was measured of this base is kept

    (tmp_path / "demo" / "before.json").write_text(json.dumps(before | {"base": "another"}), encoding="utf-8")
    assert run.main(["--output", str(tmp_path / "demo"), "--steps", "22"]) == 0
    assert measured == ["after", "before", "after"]
    assert json.loads((tmp_path / "demo" / "before.json").read_text(encoding="utf-8")) == before
