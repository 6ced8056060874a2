"""`mosgoat dreambooth demo` from the training to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from dreambooth.demo import run
from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.scenes import BACKGROUNDS

# Least gain of one run; half of the smallest that three seeds of LoRA and MoSLoRA have shown (0.87).
LEAST_GAIN = 0.43


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subject", "violet_dog"], r"--subject violet_dog is no drawn character.*violet_cat"),
        (["--methods", "lora,moslor"], r"--methods: moslor is not in the demo.*moslora"),
        (["--methods", ","], r"--methods names no adapter"),
        (["--seeds", "0"], r"--seeds 0 must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_anything_is_loaded(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run.main(words)


def test_each_seed_is_a_run_of_the_tiny_recipe(tmp_path: Path) -> None:
    options = run.read_arguments(["--output", str(tmp_path), "--seeds", "2", "--methods", "goat,lora"])
    recipes = run.demo_recipes(options)
    assert list(recipes) == ["goat-seed0", "goat-seed1", "lora-seed0", "lora-seed1"]
    assert [recipe.seed for recipe in recipes.values()] == [0, 1, 0, 1]
    assert len({recipe.output for recipe in recipes.values()}) == 4
    assert {recipe.data.subject for recipe in recipes.values()} == {next(iter(CHARACTERS))}


@pytest.mark.slow
def test_the_demo_makes_the_base_draw_the_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path), "--methods", "moslora"]
    assert run.main(words) == 0
    assert "subject similarity" in capsys.readouterr().out
    found = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    before, after = found["measured"]
    assert before["adapter"] == "base"
    assert found["gains"]["moslora"] == pytest.approx(after["similarity"] - before["similarity"])
    assert found["gains"]["moslora"] > LEAST_GAIN
    assert after["figure"] >= 0.8, "it is still a cat"
    assert after["background"] >= 0.8, "and still where the prompt puts it"
    assert len(after["shown"]) == run.NOISE * len(BACKGROUNDS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 1 + len(BACKGROUNDS)  # the real pictures, and a sheet for each prompt
    assert "MoSLoRA" in page

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("what is finished is kept")

    monkeypatch.setattr("dreambooth.generate_command.generate", never)
    monkeypatch.setattr("dreambooth.train.fit", never)
    assert run.main(words) == 0
    assert json.loads((tmp_path / "measured.json").read_text(encoding="utf-8")) == found
