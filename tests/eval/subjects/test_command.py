"""`mosgoat eval subjects` on small sets and models from folders."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli import main as mosgoat
from common.errors import UserError
from common.reporting.published import load_published
from eval.subjects.command import main
from eval.subjects.extractors import load_dino
from tests.eval.subjects.tiny import make_set


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    for number, (adapter, subject) in enumerate((a, s) for a in ("lora", "moslora") for s in ("duck", "rex", "vase")):
        make_set(tmp_path / "out", adapter, subject, first=100 * number)
    return tmp_path / "out"


@pytest.fixture
def words(generated: Path, dino: Path, clip: Path, tmp_path: Path) -> list[str]:
    return [
        *("--generated", str(generated), "--dino", str(dino), "--clip", str(clip)),
        *("--output", str(tmp_path / "measured"), "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"),
    ]


def results(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "measured" / "results.json").read_text())


def test_one_command_measures_everything(
    words: list[str], tmp_path: Path, dino: Path, generated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mosgoat(["eval", "subjects", *words]) == 0
    found = results(tmp_path)
    assert found["task"] == "dreambooth_subjects"
    assert (found["n"], found["expected"], found["missing"], found["unreadable"]) == (24, 24, [], [])
    assert set(found["metrics"]) == {f"{a}_{m}" for a in ("lora", "moslora") for m in ("dino", "clip_i", "clip_t")}
    assert len(found["comparisons"]) == 3

    # one subject's DINO, worked out anew from the pictures
    extractor = load_dino(str(dino))
    folder = generated / "lora" / "rex"
    made = extractor.features([Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))])
    real = [Image.open(path).convert("RGB") for path in sorted((generated / "real" / "rex").glob("*.png"))]
    unit = [torch.nn.functional.normalize(rows.double()).numpy() for rows in (made, extractor.features(real))]
    expected = np.mean([a @ b for a in unit[0] for b in unit[1]])
    assert found["adapters"]["lora"]["subjects"]["rex"]["dino"] == pytest.approx(expected, rel=1e-6)

    rows = list(csv.DictReader((tmp_path / "measured" / "pictures.csv").open()))
    assert len(rows) == 24
    mine = [float(row["dino"]) for row in rows if (row["adapter"], row["subject"]) == ("lora", "rex")]
    assert np.mean(mine) == pytest.approx(expected, abs=1e-6)  # printed with six decimals
    assert len(list(csv.DictReader((tmp_path / "measured" / "by_prompt.csv").open()))) == 12
    assert len(list(csv.DictReader((tmp_path / "measured" / "by_subject.csv").open()))) == 6
    assert (tmp_path / "measured" / "plots" / "subjects.png").stat().st_size > 10_000

    printed = capsys.readouterr().out
    for text in (
        "DreamBooth (Stable Diffusion)",
        "0.668",
        "2208.12242",
        "real pictures",
        "3 subjects",
        "measured with",
    ):
        assert text in printed


def test_the_second_time_features_come_from_the_cache(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 0
    first = results(tmp_path)
    monkeypatch.setattr("eval.subjects.extractors.to_pixels", lambda *args: pytest.fail("a picture was encoded"))
    assert main(words) == 0
    again = results(tmp_path)
    assert again.pop("environment").keys() == first.pop("environment").keys()  # with the state of the checkout
    assert again == first


def test_missing_pictures_are_an_error_or_visible(
    words: list[str], generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (generated / "lora" / "duck" / "00_0.png").unlink()
    with pytest.raises(UserError, match="lacks 1 of 4 pictures"):
        main(words)
    assert not (tmp_path / "measured").exists()
    assert main([*words, "--allow-incomplete"]) == 1
    found = results(tmp_path)
    assert (found["n"], found["expected"], len(found["missing"])) == (23, 24, 1)
    assert (found["comparisons"][0]["pairs"], found["comparisons"][0]["of"]) == (11, 12)
    printed = capsys.readouterr().out
    assert "11 of 12" in printed
    assert "missing: " in printed


def test_unreadable_pictures_are_named_and_the_exit_status_says_so(
    words: list[str], generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = generated / "moslora" / "vase" / "01_1.png"
    broken.write_bytes(broken.read_bytes()[:80])
    assert main(words) == 1
    assert [path for path, _ in results(tmp_path)["unreadable"]] == [str(broken)]
    assert f"unreadable, left out: {broken}" in capsys.readouterr().out


def test_another_measurement_is_not_overwritten_unasked(words: list[str], generated: Path, tmp_path: Path) -> None:
    assert main(words) == 0
    words[1] = str(generated / "lora")
    with pytest.raises(UserError, match="measurement of something else"):
        main(words)
    assert main([*words, "--overwrite"]) == 0
    assert set(results(tmp_path)["metrics"]) == {"dino", "clip_i", "clip_t"}


def test_one_model_alone_measures_its_part(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--only", "dino", "--clip", "not/there"]) == 0
    assert set(results(tmp_path)["metrics"]) == {"lora_dino", "moslora_dino"}
    assert main([*words, "--only", "clip", "--dino", "not/there"]) == 0
    assert set(results(tmp_path)["metrics"]) == {f"{a}_{m}" for a in ("lora", "moslora") for m in ("clip_i", "clip_t")}


# typed from ar5iv's table of arXiv:2208.12242, a second time and without looking at the data file
SEEN = {
    "Real Images": (0.774, 0.885, None),
    "DreamBooth (Imagen)": (0.696, 0.812, 0.306),
    "DreamBooth (Stable Diffusion)": (0.668, 0.803, 0.305),
    "Textual Inversion (Stable Diffusion)": (0.569, 0.78, 0.255),
}


@pytest.mark.parametrize("name", SEEN)
def test_published_figures_are_those_of_the_papers_table(name: str) -> None:
    table = load_published("dreambooth_table1")
    assert table.row(name).values == SEEN[name]
    assert len(table.rows) == len(SEEN)
    assert [key for key, _ in table.columns] == ["dino", "clip_i", "clip_t"]
