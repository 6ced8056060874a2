"""A run's samples on the disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.reporting.samples import Sample, Samples, read_samples, write_samples


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    asked = Sample(noise(500, 400), "Why?", "because", "<b>", None)
    drawn = Sample("validation/step-000010.png", "a cat")
    write_samples(tmp_path, Samples("chat", "two of them", [asked, drawn, Sample(None, answer="yes", right=True)]))
    found = read_samples(tmp_path)
    assert found is not None
    assert (found.kind, found.about) == ("chat", "two of them")
    assert [item.picture for item in found.items] == ["samples/00.webp", "validation/step-000010.png", None]
    assert [item.right for item in found.items] == [None, None, True]
    assert (found.items[0].question, found.items[0].answer, found.items[0].expected) == ("Why?", "because", "<b>")
    with Image.open(tmp_path / "samples" / "00.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (224, 179))


def test_a_small_picture_keeps_every_pixel(tmp_path: Path) -> None:
    write_samples(tmp_path, Samples("labels", "", [Sample(noise(32, 24))]))
    with Image.open(tmp_path / "samples" / "00.webp") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(noise(32, 24)))


def test_later_samples_replace_earlier_ones(tmp_path: Path) -> None:
    write_samples(tmp_path, Samples("labels", "", [Sample(noise(8, 8)), Sample(noise(8, 8))]))
    write_samples(tmp_path, Samples("labels", "", [Sample(noise(8, 8))]))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00.webp", "samples.json"]


def test_a_run_without_samples_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path) is None


SOUND: dict[str, Any] = {"picture": None, "question": "", "answer": "", "expected": "", "right": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no samples"),
        ({"kind": "weather", "samples": []}, "holds no samples"),
        ({"kind": "chat", "samples": [{**SOUND, "right": "yes"}]}, "holds no samples"),
        ({"kind": "chat", "samples": [{**SOUND, "picture": "../secret.png"}]}, "lies outside the run"),
        ({"kind": "chat", "samples": [{**SOUND, "picture": "/etc/passwd"}]}, "lies outside the run"),
    ],
)  # fmt: skip
def test_a_file_that_holds_other_things_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_samples(tmp_path)


def test_no_link_leads_out_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_samples(run, Samples("labels", "", [Sample(noise(8, 8))]))
    noise(8, 8).save(tmp_path / "outside.webp")
    (run / "samples" / "00.webp").unlink()
    (run / "samples" / "00.webp").symlink_to(tmp_path / "outside.webp")
    with pytest.raises(UserError, match="lies outside the run"):
        read_samples(run)
