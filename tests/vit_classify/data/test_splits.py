"""`open_data`: splits, class names, the report, and bad input of every kind."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import random_split

from common.errors import UserError
from vit_classify.config import DataConfig
from vit_classify.data import EvalImages, TrainImages, collate, open_data
from vit_classify.data import splits as splitting
from vit_classify.data.registry import SETS, SetSpec

MakeFolder = Callable[..., Path]
ConfigOf = Callable[..., DataConfig]


def test_validation_is_the_protocols_random_split(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    data = open_data(config_of(make_folder({"a": 21, "b": 14}), validation_fraction=0.2))
    expected = random_split(range(35), [28, 7], generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert data.train.rows.tolist() == list(expected[0].indices)
    assert data.validation.rows.tolist() == list(expected[1].indices)
    assert data.report.counts == {"train": 28, "validation": 7, "test": 4}
    assert len(data.train) == 28


def test_at_most_5000_pictures_are_held_out() -> None:
    kept, held = splitting.hold_out(60_000, 0.1)
    assert (len(kept), len(held)) == (55_000, 5_000)
    # The first training index that task_vectors asserts for MNIST's 60 000 pictures.
    assert kept[0] == 36044


@pytest.mark.parametrize(("size", "fraction"), [(9, 0.1), (1, 0.5)])
def test_a_fraction_that_leaves_nothing_is_an_error(size: int, fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        splitting.hold_out(size, fraction)


def test_a_validation_folder_replaces_the_hold_out(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 6, "b": 6})
    for name in ("a", "b"):
        (root / "val" / name).mkdir(parents=True)
        (root / "test" / name / "000.png").rename(root / "val" / name / "v.png")
    data = open_data(config_of(root))
    assert data.report.counts == {"train": 12, "validation": 2, "test": 2}
    assert data.validation.describe(1) == "val/b/v.png"


def test_splits_have_labels_bytes_and_names(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 6, "b": 6})
    split = open_data(config_of(root)).train
    assert split.labels.dtype == np.int64
    for i in range(len(split)):
        name = split.describe(i)
        assert name.startswith(f"train/{'ab'[split.labels[i]]}/")
        assert split.raw(i) == (root / name).read_bytes()
        picture = np.asarray(Image.open(io.BytesIO(split.raw(i))))
        np.testing.assert_array_equal(split.store.image(i), picture)


# --- unreadable pictures -------------------------------------------------------------------------------------------


def damage(root: Path) -> list[str]:
    """An empty, a cut and a foreign file in train, one in test."""
    (root / "train" / "a" / "001.png").write_bytes(b"")
    cut = root / "train" / "b" / "002.png"
    cut.write_bytes(cut.read_bytes()[:-80])
    (root / "train" / "b" / "005.png").write_bytes(b"<html>404</html>")
    (root / "test" / "a" / "000.png").write_bytes(b"")
    return ["train/a/001.png", "train/b/002.png", "train/b/005.png", "test/a/000.png"]


@pytest.mark.parametrize("pixels", ["cache", "decode"])
def test_unreadable_pictures_are_left_out_counted_and_named(
    make_folder: MakeFolder, config_of: ConfigOf, pixels: str
) -> None:
    root = make_folder({"a": 10, "b": 10})
    names = damage(root)
    data = open_data(config_of(root, pixels=pixels))
    assert [name for name, _ in data.report.skipped] == names
    assert all(reason for _, reason in data.report.skipped)
    assert data.report.counts == {"train": 16, "validation": 1, "test": 3}
    used = [split.describe(i) for split in (data.train, data.validation, data.test) for i in range(len(split))]
    assert not set(names) & set(used)
    assert len(set(used)) == 20
    text = str(data.report)
    assert all(name in text for name in names)
    assert json.loads(data.report.to_json())["skipped"][0] == ["train/a/001.png", "the file is empty"]
    batch = collate([EvalImages(data.test, data.test.store, 16, resize_on="cpu")[i] for i in range(3)])
    assert batch["labels"].tolist() == [0, 1, 1]


def test_unreadable_pictures_are_left_out_alike_for_both_pixel_paths(
    make_folder: MakeFolder, config_of: ConfigOf
) -> None:
    root = make_folder({"a": 10, "b": 10})
    damage(root)
    sets = [open_data(config_of(root, pixels=pixels)) for pixels in ("cache", "decode")]
    batches = []
    for data in sets:
        images = TrainImages(data.train, data.train.store, 16, seed=0, resize_on="cpu")
        batches.append(collate([images[0, i] for i in range(len(images))]))
    assert sets[0].train.rows.tolist() == sets[1].train.rows.tolist()
    assert torch.equal(batches[0]["images"], batches[1]["images"])


@pytest.mark.parametrize("pixels", ["cache", "decode"])
def test_unreadable_pictures_stop_a_strict_run(make_folder: MakeFolder, config_of: ConfigOf, pixels: str) -> None:
    root = make_folder({"a": 10, "b": 10})
    damage(root)
    with pytest.raises(UserError, match=r"train/a/001\.png .*file is empty"):
        open_data(config_of(root, on_error="raise", pixels=pixels))


def test_a_class_whose_pictures_are_all_unreadable_is_an_error(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 12, "b": 1})
    (root / "train" / "b" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 2 classes have no readable training picture: b"):
        open_data(config_of(root))


def test_a_split_without_any_readable_picture_is_an_error(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 6, "b": 6}, test={"a": 1, "b": 1})
    for name in ("a", "b"):
        (root / "test" / name / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no picture of split test can be read; the first, test/a/000\.png"):
        open_data(config_of(root))


def test_report_names_twenty_and_counts_the_rest(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 40, "b": 10})
    for i in range(25):
        (root / "train" / "a" / f"{i:03}.png").write_bytes(b"")
    report = open_data(config_of(root)).report
    assert len(report.skipped) == 25
    assert "left out    25" in str(report)
    assert "and 5 more" in str(report)


def test_every_kind_of_picture_becomes_three_channels(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    root = make_folder({"a": 10, "b": 10})
    folder = root / "test" / "a"
    Image.new("L", (30, 20), 7).save(folder / "grey.jpg")
    Image.new("RGBA", (30, 20), (1, 2, 3, 100)).save(folder / "clear.png")
    Image.fromarray(np.full((20, 30), 30_000, dtype=np.uint16)).save(folder / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=turned)
    Image.new("CMYK", (30, 20)).save(folder / "print.jpg")
    data = open_data(config_of(root))
    assert not data.report.skipped
    shapes = {data.test.describe(i): data.test.store.image(i).shape for i in range(len(data.test))}
    assert shapes["test/a/turned.jpg"] == (30, 20, 3)
    assert {shapes[f"test/a/{name}"] for name in ("grey.jpg", "clear.png", "deep.png", "print.jpg")} == {(20, 30, 3)}


# --- names, prompts, registry --------------------------------------------------------------------------------------


def test_own_sets_have_folder_words_and_a_default_prompt(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    data = open_data(config_of(make_folder({"big_dog": 6, "cat": 6})))
    assert data.class_names == ["big dog", "cat"]
    assert data.templates == ["a photo of a {}."]
    assert data.epochs is None


def test_class_names_file_gives_the_words(make_folder: MakeFolder, config_of: ConfigOf, tmp_path: Path) -> None:
    root = make_folder({"a": 6, "b": 6})
    file = tmp_path / "names.json"
    for content in (
        {"a": "an ant", "b": "a bee"},
        {"0": "an ant", "1": "a bee"},
        {"a": {"clip_prompt_name": "an ant", "id": 3}, "b": {"clip_prompt_name": "a bee"}},
    ):
        file.write_text(json.dumps(content))
        data = open_data(config_of(root, class_names=str(file), templates=["see {}"]))
        assert data.class_names == ["an ant", "a bee"]
        assert data.templates == ["see {}"]
        assert data.report.warnings == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[1]", "must hold an object"),
        ('{"a": "ant"}', "no words for b"),
        ('{"a": "ant", "b": 3}', "no words for b"),
        ('{"a": "ant", "b": " "}', "no words for b"),
    ],
)
def test_bad_class_names_files_are_errors(
    make_folder: MakeFolder, config_of: ConfigOf, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "names.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        open_data(config_of(make_folder({"a": 6, "b": 6}), class_names=str(file)))


def test_unused_and_equal_class_words_are_warned_of(
    make_folder: MakeFolder, config_of: ConfigOf, tmp_path: Path
) -> None:
    file = tmp_path / "names.json"
    file.write_text('{"a": "ant", "b": "ant", "typo": "x"}')
    warnings = open_data(config_of(make_folder({"a": 6, "b": 6}), class_names=str(file))).report.warnings
    assert any("typo" in text for text in warnings)
    assert any("same words" in text for text in warnings)


def test_registry_name_with_another_number_of_classes_is_an_error(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    with pytest.raises(UserError, match=r"has 2 classes, but dtd has 47; .*name of its own"):
        open_data(config_of(make_folder({"a": 6, "b": 6}), name="dtd"))


def test_unknown_name_without_a_source_suggests_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean eurosat"):
        open_data(DataConfig(name="eurosta"))


EUROSAT = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"


def test_registry_set_from_a_folder_has_the_protocols_words_and_warns_of_other_sizes(
    make_folder: MakeFolder, config_of: ConfigOf
) -> None:
    data = open_data(config_of(make_folder(dict.fromkeys(EUROSAT.split(), 3)), name="eurosat"))
    assert data.class_names[2] == "brushland or shrubland"
    assert data.templates == list(SETS["eurosat"].templates)
    assert data.epochs == 12
    text = str(data.report)
    assert "warning: eurosat train has 30 pictures, the protocol's has 21600" in text
    assert "warning: eurosat test has 20 pictures, the protocol's has 2700" in text


def test_eurosat_trains_on_its_whole_train_split_and_says_so(make_folder: MakeFolder, config_of: ConfigOf) -> None:
    data = open_data(config_of(make_folder(dict.fromkeys(EUROSAT.split(), 3)), name="eurosat"))
    assert data.report.counts == {"train": 30, "validation": 0, "test": 20}
    assert "nothing is held out" in str(data.report)


def test_a_set_of_the_protocols_size_has_no_warning(
    make_folder: MakeFolder, config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SetSpec("some/where", train_size=12, test_size=4, classes=2, epochs=3, templates=("{}",))
    monkeypatch.setitem(SETS, "small", spec)
    data = open_data(config_of(make_folder({"a": 6, "b": 6}), name="small"))
    assert data.report.warnings == []
    assert data.epochs == 3


@pytest.mark.shared_data
def test_real_gtsrb_takes_clips_words_from_its_classes_file(shared_data: Path, config_of: ConfigOf) -> None:
    root = shared_data / "gtsrb"
    data = open_data(config_of(root, class_names=str(root / "classes.json")))
    assert data.report.counts == {"train": 1800, "validation": 200, "test": 800}
    assert data.class_names[data.test.labels[0]] == "blue circle with white forward arrow mandatory"
    assert len(set(data.class_names)) == 20
    assert not data.report.skipped
