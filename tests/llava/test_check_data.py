import json
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from llava import check_data
from tests.llava.data.conftest import Folder, picture
from tests.llava.tiny import TinyLlava


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def words(folder: Folder, *more: str) -> list[str]:
    config = folder.config()
    options = {"path": config.path, "image_root": config.image_root, "cache_dir": config.cache_dir}
    return [
        *(word for key, value in options.items() for word in (f"--data.{key}", str(value))),
        "--workers",
        "0",
        *more,
    ]


def cut_short(path: Path) -> None:
    picture(0, 200, 300).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_sound_data_are_status_0(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.main(words(folder)) == 0
    out, err = capsys.readouterr()
    for part in ("rows          24", "coco        6", "text-only   6", "left out      0", "unpacked", "words"):
        assert part in out
    assert "lengths are counted in words" in err


def test_what_is_wrong_is_status_1_named_and_written_down(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    cut_short(folder.image(0))
    folder.image(1).unlink()
    folder.rows[3]["conversations"][1]["value"] = ""
    folder.write()
    output = folder.root / "report"
    assert check_data.main(words(folder, "--output", str(output))) == 1
    assert "row0 (coco/train2017/000.jpg): picture: image file is truncated" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert len(report["skipped"]) == 3
    assert report["counts"] == {"coco": 5, "gqa": 5, "ocr_vqa": 6, "text-only": 5}
    assert report["train"]["check"] == "decode"
    assert sum(report["train"]["lengths"]["counts"]) == 21
    with Image.open(output / "lengths.png") as drawn:
        assert min(drawn.size) > 300


def test_headers_do_not_show_a_file_that_is_cut_short(folder: Folder) -> None:
    cut_short(folder.image(0))
    assert check_data.main(words(folder, "--pictures", "none")) == 0
    assert check_data.main(words(folder, "--pictures", "header")) == 0
    assert check_data.main(words(folder)) == 1


def test_lengths_are_tokens_where_a_model_is_named(
    folder: Folder, tiny_llava: TinyLlava, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.language_model", str(tiny_llava.language_model), "--data.template", "llama3"]
    folder.rows[3]["conversations"][0]["value"] = "word " * 2000
    folder.write()
    assert check_data.main(words(folder, *more)) == 1
    out = capsys.readouterr().out
    assert "text tokens" in out
    assert "row3: the question leaves no room for an answer within data.max_text_tokens=1472" in out


def test_validation_file_is_checked_too(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    held = folder.root / "held.json"
    held.write_text(json.dumps([*folder.rows[:3], 7]))
    assert check_data.main(words(folder, "--data.validation_path", str(held))) == 1
    assert "line 1: the row is a number" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--adapter.r", "8"], "no option --adapter.r"),
        (["--picture", "none"], "did you mean --pictures"),
        (["--pictures", "all"], "invalid choice: 'all'"),
        (["--workers", "many"], "invalid int value"),
        (["--workers", "-1"], "must not be negative"),
        (["--data.max_text_tokens", "2"], "data.max_text_tokens=2 must be at least 8"),
        (["--data.on_error", "raise"], "data.on_error=skip"),
        (["--output", "/proc/none"], "cannot be written"),
    ],
)
def test_wrong_option_is_a_user_error(folder: Folder, more: list[str], message: str) -> None:
    folder.image(0).unlink()
    with pytest.raises(UserError, match=message):
        check_data.main(words(folder, *more))


def test_file_must_be_named() -> None:
    with pytest.raises(UserError, match=r"data\.path is missing"):
        check_data.main([])


def test_help_says_what_the_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Exit status 1" in out
    assert "--data.image_root" in out
