"""`open_data`: what training gets, and what it is told."""

import gc
import json
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.training.order import IGNORED_LABEL
from llava.data import LlavaData, TrainSamples, open_data
from llava.data.dataset import open_source
from llava.data.report import histogram
from tests.conftest import ROOT
from tests.llava.data.conftest import Base, Folder, conversation, picture

IMAGE_TOKENS = 4


@pytest.fixture
def opened(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., LlavaData]:
    def open_with(folder: Folder, **changes: Any) -> LlavaData:
        image_token_id = tiny_tokenizer.convert_tokens_to_ids("<image>")
        return open_data(
            folder.config(**changes), tiny_tokenizer, image_tokens=IMAGE_TOKENS, image_token_id=image_token_id
        )

    return open_with


Opened = Callable[..., LlavaData]


def test_sound_data_are_used_whole(folder: Folder, opened: Opened) -> None:
    data = opened(folder)
    assert len(data.train) == 24
    assert data.validation is None
    assert data.report.counts == {"coco": 6, "gqa": 6, "ocr_vqa": 6, "text-only": 6}
    assert data.report.skipped == []
    assert data.train.has_image.tolist() == ["image" in row for row in folder.rows]
    assert [data.train.row(i).id for i in range(24)] == [row["id"] for row in folder.rows]
    assert (data.train.lengths.dtype, data.train.supervised.dtype) == (np.int32, np.int32)


def test_lengths_are_those_of_the_samples(folder: Folder, opened: Opened) -> None:
    data = opened(folder, max_text_tokens=90)
    samples = TrainSamples(data.train, Base())
    assert len(data.train) > 12
    for i in range(len(samples)):
        sample = samples[(0, i)]
        assert len(sample["input_ids"]) == data.train.lengths[i] == data.train.length(i)
        assert (sample["labels"] != IGNORED_LABEL).sum() == data.train.supervised[i] > 0
        assert (sample["pixel_values"] is not None) == data.train.has_image[i]


def test_what_is_left_out_is_counted_and_named(folder: Folder, opened: Opened) -> None:
    folder.image(0).unlink()
    folder.image(1).write_bytes(b"damaged")
    folder.image(2).rename(folder.image(2).with_suffix(".gif"))
    folder.rows[3]["conversations"][1]["value"] = ""
    folder.rows[4]["conversations"].insert(0, {"from": "gpt", "value": "Hello"})
    folder.rows[5]["image"] = "../outside.jpg"
    folder.rows[7]["conversations"][0]["value"] = "word " * 400
    folder.write()
    data = opened(folder, max_text_tokens=300)
    report = data.report.train
    assert [name for name, _ in report.skipped] == [
        "row3",
        "row5",
        f"row0 ({folder.rows[0]['image']})",
        f"row1 ({folder.rows[1]['image']})",
        "row7",
    ]
    assert report.reasons == {
        "an answer is empty": 1,
        "image is a path that leads out of the image root": 1,
        "picture: there is no such picture": 1,
        "picture: not a picture in one of the formats JPEG, PNG, PPM, BMP, GIF, TIFF, WEBP": 1,
        "the question leaves no room for an answer within data.max_text_tokens=300": 1,
    }
    assert (report.read, sum(report.used.values()), len(data.train)) == (24, 19, 19)
    assert report.rules == {"leading_answers_dropped": 1}
    assert report.moved == 1
    kept = [data.train.row(i).id for i in range(19)]
    assert kept == [f"row{i}" for i in range(24) if i not in (0, 1, 3, 5, 7)]
    text = str(data.report)
    for part in (
        "left out      5",
        "row0",
        "1           an answer is empty",
        "under another ending",
        "all of them unpacked",
    ):
        assert part in text
    assert len(json.loads(data.report.to_json())["skipped"]) == 5


def test_picture_that_is_cut_short_is_left_out_before_the_training(folder: Folder, opened: Opened) -> None:
    picture(0, 200, 300).save(folder.image(0))
    data = folder.image(0).read_bytes()
    folder.image(0).write_bytes(data[: len(data) // 2])
    found = opened(folder)
    assert found.report.train.reasons == {"picture: image file is truncated": 1}
    assert len(found.train) == 23


def test_picture_under_another_ending_is_trained_on(folder: Folder, opened: Opened) -> None:
    expected = TrainSamples(opened(folder).train, Base())[(0, 0)]["pixel_values"]
    folder.image(0).rename(folder.image(0).with_suffix(".png"))
    found = TrainSamples(opened(folder, cache_dir=str(folder.root / "new")).train, Base())[(0, 0)]["pixel_values"]
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder.rows[2]["conversations"].pop(), "row2: there is no answer.*data.on_error=skip"),
        (lambda folder: folder.image(0).unlink(), "000.jpg: there is no such picture.*data.on_error=skip"),
        (
            lambda folder: folder.rows[3]["conversations"][0].update(value="word " * 400),
            "row3: the question leaves no room",
        ),
    ],
)
def test_on_error_raise_stops_at_the_first_defect(
    folder: Folder, opened: Opened, spoil: Callable[[Folder], Any], message: str
) -> None:
    spoil(folder)
    folder.write()
    with pytest.raises(UserError, match=message):
        opened(folder, on_error="raise", max_text_tokens=300)
    opened(folder, on_error="skip", max_text_tokens=300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "none.json"}, "data.path=none.json is not there"),
        ({"image_root": "none"}, "data.image_root=none is no folder"),
        ({"image_root": str(ROOT)}, "none of the 18 pictures.*data.image_root must be the folder"),
        ({"validation_path": str(ROOT)}, "data.validation_path=.* is a folder"),
        ({"max_text_tokens": 8}, "not one conversation can be used"),
    ],
)
def test_unusable_data_are_a_user_error(folder: Folder, opened: Opened, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(folder, **changes)


@pytest.mark.parametrize("content", ["[]", "[3]", '[{"id": 1}]', '{"id": 1}\n'])
def test_file_without_a_conversation_is_a_user_error(folder: Folder, opened: Opened, content: str) -> None:
    folder.path.write_text(content)
    with pytest.raises(UserError, match="holds no conversation"):
        opened(folder)


def test_pictures_lie_beside_the_file_unless_said_otherwise(folder: Folder, opened: Opened) -> None:
    folder.path = folder.images / "rows.json"
    folder.write()
    assert len(opened(folder, image_root=None).train) == 24


def test_text_alone_needs_no_image_root(folder: Folder, opened: Opened) -> None:
    folder.rows = [conversation(i, None) for i in range(5)]
    folder.write()
    assert len(opened(folder, image_root="none").train) == 5


def test_json_lines_are_the_same_data(folder: Folder, opened: Opened) -> None:
    whole = opened(folder).train
    folder.path.write_text("".join(json.dumps(row) + "\n" for row in folder.rows))
    lines = opened(folder).train
    assert [lines.row(i) for i in range(24)] == [whole.row(i) for i in range(24)]


def test_validation_is_reported_too(folder: Folder, opened: Opened) -> None:
    held = folder.root / "held.json"
    held.write_text(json.dumps([*folder.rows[:3], 7]))
    data = opened(folder, validation_path=str(held))
    assert data.validation is not None
    assert len(data.validation) == 3
    assert data.report.counts["validation"] == 3
    assert data.report.skipped == [("line 1", "the row is a number, not an object")]


def test_content_names_what_is_trained_on(folder: Folder, opened: Opened) -> None:
    first = opened(folder).report.content
    assert opened(folder).report.content == first
    moved = folder.root / "elsewhere.json"
    moved.write_bytes(folder.path.read_bytes())
    assert opened(folder, path=str(moved)).report.content == first
    folder.image(0).unlink()
    assert opened(folder, cache_dir=str(folder.root / "new")).report.content != first


def test_second_opening_works_nothing_out_again(
    folder: Folder, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("worked out again")

    monkeypatch.setattr("llava.data.store.rules.normalise", never)
    monkeypatch.setattr("llava.data.verify.problem_of", never)
    monkeypatch.setattr("llava.data.lengths.encode", never)
    again = opened(folder)
    assert again.report == first.report
    np.testing.assert_array_equal(again.train.lengths, first.train.lengths)


@pytest.mark.parametrize("name", ["text.json", "rows.arrow", "verified-*.json", "pictures-*.arrow", "lengths-*/*"])
def test_lost_or_damaged_part_of_the_index_is_made_again(folder: Folder, opened: Opened, name: str) -> None:
    first = opened(folder)
    index = next((folder.root / "cache" / "llava").glob("*/text.json")).parent
    for path in index.glob(name):
        path.unlink()
    assert opened(folder).report == first.report
    if name.endswith(("json", "*")):
        for path in index.glob(name):
            path.write_bytes(b"{}")
        assert opened(folder).report == first.report


def test_other_tokens_are_counted_anew(folder: Folder, opened: Opened) -> None:
    first = opened(folder).train.lengths
    assert (opened(folder, template="internlm2").train.lengths != first).any()
    assert opened(folder, max_text_tokens=70).train.lengths.max() <= 70 + IMAGE_TOKENS < first.max()


def test_workers_count_the_same(folder: Folder, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = opened(folder, max_text_tokens=75)
    monkeypatch.setattr("llava.data.dataset.usable_cores", lambda: 2)
    together = opened(folder, max_text_tokens=75, cache_dir=str(folder.root / "other"))
    np.testing.assert_array_equal(together.train.lengths, alone.train.lengths)
    together.report.train.index = alone.report.train.index
    assert together.report == alone.report


def test_pickled_conversations_do_not_grow_with_the_data(make_folder: Callable[..., Folder], opened: Opened) -> None:
    """Spawned workers get paths, not rows."""
    sizes = []
    for rows in (8, 2000):
        data = opened(_texts(make_folder(f"n{rows:04}", 4), rows))
        assert len(data.train) == rows
        data.train.row(0), data.train.lengths, data.train.has_image
        sizes.append(len(pickle.dumps(data.train)))
    assert sizes[0] == sizes[1]


def _texts(folder: Folder, rows: int) -> Folder:
    folder.rows = [conversation(i, None) for i in range(rows)]
    folder.write()
    return folder


def _private_kib() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
def test_worker_that_reads_everything_owns_little_memory(folder: Folder) -> None:
    folder.rows = [conversation(i, None, 2) for i in range(10_000)]
    for row in folder.rows:
        row["conversations"][1]["value"] += " More." * 400
    folder.write()
    size = folder.path.stat().st_size
    rows = open_source(folder.config(), str(folder.path), "data.path").rows
    reading, writing = os.pipe()
    if not os.fork():  # a worker of a DataLoader
        gc.freeze()
        rows = pickle.loads(pickle.dumps(rows))
        sum(len(rows[i].texts[1]) for i in range(50))
        before = _private_kib()
        sum(len(rows[i].texts[1]) for i in range(len(rows)))
        os.write(writing, str(_private_kib() - before).encode())
        os._exit(0)
    os.wait()
    # Python's and Arrow's own buffers; the list of rows would take more than the file's 27 MB.
    assert int(os.read(reading, 99)) * 1024 < size / 4


def test_histogram_counts_every_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 2000, 1000)
    found = histogram(lengths)
    assert sum(found["counts"]) == 1000
    assert found["edges"][0] == 0
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["percentiles_0_50_95_100"][0] == lengths.min()
    assert found["percentiles_0_50_95_100"][-1] == lengths.max()
    assert histogram([]) == {}
