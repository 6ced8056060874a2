"""`mosgoat vit prepare`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from vit_classify.prepare import main


@pytest.fixture
def words(make_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    root = make_folder({"a": 6, "b": 6})
    (root / "train" / "a" / "002.png").write_bytes(b"")
    cache = str(tmp_path / "cache")
    return ["--data.name", "mine", "--data.source", str(root), "--data.cache_dir", cache, "--data.num_workers", "0"]


def test_prepare_builds_the_cache_and_prints_the_report(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for line in ("mine (2 classes)", "train       10", "test        4", "left out    1", "train/a/002.png"):
        assert line in out
    assert len(list((tmp_path / "cache").rglob("pixels.bin"))) == 2


def test_verify_hashes_the_caches_and_builds_none(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--verify"]) == 1
    assert capsys.readouterr().out.count("NOT USABLE: there is none yet") == 2
    assert not list((tmp_path / "cache").rglob("pixels.bin"))
    main(words)
    capsys.readouterr()
    assert main([*words, "--verify"]) == 0
    assert capsys.readouterr().out.count("whole") == 2
    pixels = sorted((tmp_path / "cache").rglob("pixels.bin"))[0]
    pixels.write_bytes(b"x" + pixels.read_bytes()[1:])
    assert main([*words, "--verify"]) == 1
    assert "damaged at pictures 0 to 63" in capsys.readouterr().out


def test_a_recipe_gives_the_data_section(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{name: from-recipe, source: {words[3]}}}\nadapter: {{method: goat}}\n")
    assert main(["--config", str(recipe), *words[4:]]) == 0
    assert "from-recipe" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--train.epochs=3", "--adapter.r", "--dta.name", "--verfy"])
def test_options_without_effect_are_errors(words: list[str], word: str) -> None:
    with pytest.raises(UserError, match=f"no option {word}"):
        main([*words, word])


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--verify", "--data.store_size", "--config"):
        assert option in out
