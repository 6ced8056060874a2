"""Folders, parquet files, saved data sets and the Hub: what is found, and what is said where nothing is."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from vit_classify.data.registry import SETS
from vit_classify.data.sources import Sources, open_sources

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_huggingface_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_datasets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf_hub"))


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list, names: list[str] | None = None, **columns: list):
    """A split whose picture i has red = i."""
    import datasets

    values = {"image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(len(labels))], "label": labels}
    plain = datasets.Value("string" if isinstance(labels[0], str) else "int64")
    label = datasets.ClassLabel(names=names) if names else plain
    features = datasets.Features({"image": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict({**values, **columns}, features=features)


def parquet_folder(root: Path, layout: str = "data/{split}-00000-of-00001.parquet", **splits: object) -> Path:
    for split, content in splits.items():
        path = root / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        content.to_parquet(path)  # type: ignore[attr-defined]
    return root


def red(source: object, row: int) -> int:
    return int(np.asarray(Image.open(io.BytesIO(source.raw(row))))[0, 0, 0])  # type: ignore[attr-defined]


# --- class folders -------------------------------------------------------------------------------------------------


def test_folders_are_read_in_the_order_of_torchvisions_image_folder(make_folder: MakeFolder) -> None:
    from torchvision.datasets import ImageFolder

    root = make_folder({"b_two": 3, "a_one": 2, "c": 1})
    (root / "train" / "a_one" / "deeper").mkdir()
    Image.new("RGB", (3, 3)).save(root / "train" / "a_one" / "deeper" / "0.png")
    sources = open_sources("mine", str(root), None)
    expected = ImageFolder(root / "train")
    assert sources.names == expected.classes
    found = [(str(root / sources.train.describe(i)), int(sources.train.labels[i])) for i in range(len(sources.train))]
    assert found == expected.samples


def test_other_files_are_ignored_and_counted(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / ".DS_Store").write_text("x")
    sources = open_sources("mine", str(root), None)
    assert len(sources.train) == 2
    assert sources.warnings == ["1 files without a picture's ending were ignored, the first: train/a/notes.txt"]


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_folder_is_a_split(make_folder: MakeFolder, name: str) -> None:
    root = make_folder({"a": 1, "b": 2})
    (root / "test").rename(root / "keep")
    make_folder({"a": 1, "b": 1}, root=root)
    (root / "keep").rename(root / name)
    sources = open_sources("mine", str(root), None)
    assert sources.validation is not None
    assert len(sources.validation) == 4


def test_fingerprint_sees_a_changed_file(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    before = open_sources("mine", str(root), None).train.fingerprint
    assert open_sources("mine", str(root), None).train.fingerprint == before
    file = root / "train" / "a" / "000.png"
    os.utime(file, ns=(1, 1))
    touched = open_sources("mine", str(root), None).train.fingerprint
    file.rename(file.with_name("zzz.png"))
    renamed = open_sources("mine", str(root), None).train.fingerprint
    assert len({before, touched, renamed}) == 3


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"a": 2}, {"a": 2}, "at least two"),
        ({"a": 2, "b": 0}, {"a": 2, "b": 1}, r"train/b holds no picture"),
        ({"a": 2, "b": 2}, {"a": 2, "b": 0}, r"test/b holds no picture"),
        ({"a": 2, "b": 2}, {"a": 2, "c": 2}, "only in train: b; only in test: c"),
        ({"a": 2, "b": 2, "c": 1}, {"a": 2, "b": 2}, "only in train: c"),
    ],
)
def test_unusable_folders_are_errors_that_name_the_class(
    make_folder: MakeFolder, train: dict, test: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_sources("mine", str(make_folder(train, test)), None)


def test_wrong_paths_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for source, message in [
        (str(tmp_path / "nowhere"), "no such folder"),
        ("./not/there", "no such folder"),
        (str(tmp_path / "file"), "is a file"),
        (str(tmp_path / "empty"), "holds neither train/ and test/"),
        (None, "data.source must say"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            open_sources("mine", source, None)
        assert "\n" not in str(caught.value)


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["data/{split}-00000-of-00001.parquet", "{split}.parquet", "{split}/0000.parquet"])
def test_parquet_folder_is_read_with_its_class_names(tmp_path: Path, layout: str) -> None:
    names = ["cat", "big dog"]
    root = parquet_folder(tmp_path / "set", layout, train=table([0, 1, 1], names), test=table([1, 0], names))
    sources = open_sources("mine", str(root), None)
    assert sources.names == names
    assert sources.train.labels.tolist() == [0, 1, 1]
    assert sources.test.labels.tolist() == [1, 0]
    assert [red(sources.train, i) for i in range(3)] == [0, 1, 2]
    assert sources.train.describe(2) == "train row 2 (2.png)"
    assert sources.validation is None


def test_saved_data_set_is_read(tmp_path: Path) -> None:
    import datasets

    names = ["x", "y"]
    splits = {"train": table([0, 1, 0], names), "test": table([1], names), "validation": table([0, 1], names)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    sources = open_sources("mine", str(tmp_path / "saved"), None)
    assert (len(sources.train), len(sources.test)) == (3, 1)
    assert sources.validation is not None
    assert sources.validation.labels.tolist() == [0, 1]
    assert red(sources.train, 2) == 2


def test_a_single_saved_split_is_refused(tmp_path: Path) -> None:
    table([0, 1], ["x", "y"]).save_to_disk(tmp_path / "one")
    with pytest.raises(UserError, match="one saved split"):
        open_sources("mine", str(tmp_path / "one"), None)


def test_only_the_named_splits_are_read(tmp_path: Path) -> None:
    names = ["a", "b"]
    splits = {"train": table([0, 1], names), "test": table([0], names), "gaussian_noise": table([1] * 5, names)}
    sources = open_sources("mine", str(parquet_folder(tmp_path / "set", **splits)), None)
    assert (len(sources.train), len(sources.test)) == (2, 1)


def test_string_and_plain_number_labels_become_classes(tmp_path: Path) -> None:
    words = parquet_folder(tmp_path / "words", train=table(["dog", "cat", "dog"]), test=table(["cat", "dog"]))
    sources = open_sources("mine", str(words), None)
    assert (sources.names, sources.train.labels.tolist()) == (["cat", "dog"], [1, 0, 1])
    numbers = parquet_folder(tmp_path / "numbers", train=table([0, 2, 1]), test=table([1]))
    sources = open_sources("mine", str(numbers), None)
    assert (sources.names, sources.test.labels.tolist()) == (["0", "1", "2"], [1])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0, 3], "same classes"),
        (["a", "b"], ["a", "c"], "only in one of them: b, c"),
        ([0, 0], [0], "at least two"),
        ([1, -1, 0], [0, 1], r"1 of 3 labels of split train are outside 0\.\.1.*-1 in row 1"),
    ],
)
def test_impossible_labels_are_errors(tmp_path: Path, train: list, test: list, message: str) -> None:
    root = parquet_folder(tmp_path / "set", train=table(train), test=table(test))
    with pytest.raises(UserError, match=message):
        open_sources("mine", str(root), None)


def test_splits_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    import datasets

    splits = {"train": table([0, 1], ["a", "b"]), "test": table([0], ["b", "a"])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="the order differs"):
        open_sources("mine", str(tmp_path / "saved"), None)


def test_unlabelled_rows_of_a_class_label_are_an_error(tmp_path: Path) -> None:
    names = ["a", "b"]
    root = parquet_folder(tmp_path / "set", train=table([0, 1], names), test=table([-1, 1, -1], names))
    with pytest.raises(UserError, match=r"2 of 3 labels of split test are outside 0\.\.1"):
        open_sources("mine", str(root), None)


def test_missing_columns_and_splits_are_errors(tmp_path: Path) -> None:
    names = ["a", "b"]
    bare = table([0, 1], names).remove_columns("label")
    with pytest.raises(UserError, match="columns image; it needs"):
        open_sources("mine", str(parquet_folder(tmp_path / "bare", train=bare, test=bare)), None)
    with pytest.raises(UserError, match="no split test; it has train"):
        open_sources("mine", str(parquet_folder(tmp_path / "half", train=table([0, 1], names))), None)


def test_damaged_parquet_is_a_user_error(tmp_path: Path) -> None:
    root = parquet_folder(tmp_path / "set", train=table([0, 1], ["a", "b"]), test=table([0, 1], ["a", "b"]))
    file = next(root.rglob("train*"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read as a data set"):
        open_sources("mine", str(root), None)


def test_no_path_in_a_table_leaves_the_data_sets_folder(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(7))
    (tmp_path / "set" / "inside.png").write_bytes(picture(9))
    paths = ["../secret.png", str(tmp_path / "secret.png"), "inside.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array([{"bytes": None, "path": p} for p in paths], kind), "label": pa.array([0, 1, 0])}
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / "set" / f"{split}.parquet")
    source = open_sources("mine", str(tmp_path / "set"), None).train
    for row in (0, 1):
        with pytest.raises(OSError, match="outside"):
            source.raw(row)
    assert red(source, 2) == 9


@pytest.mark.slow
def test_table_fingerprint_is_the_same_in_another_process_and_sees_other_content(tmp_path: Path) -> None:
    import subprocess
    import sys

    names = ["a", "b"]
    root = parquet_folder(tmp_path / "set", train=table([0, 1, 1], names), test=table([0, 1], names))
    here = open_sources("mine", str(root), None)
    code = "import datasets, sys; datasets.config.HF_DATASETS_CACHE = sys.argv[2]\n"
    code += "from vit_classify.data.sources import open_sources\n"
    code += "print(open_sources('mine', sys.argv[1], None).train.fingerprint)"
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "hf_datasets")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert here.train.fingerprint == other != here.test.fingerprint


# --- the Hub -------------------------------------------------------------------------------------------------------


def test_offline_without_a_copy_the_error_says_how_to_fetch_it() -> None:
    with pytest.raises(UserError) as caught:
        open_sources("dtd", None, SETS["dtd"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("tanganke/dtd", "Hub", "hf_datasets", "hf_hub", "hf download --repo-type dataset tanganke/dtd"):
        assert part in message


def put_into_hub_cache(tmp_path: Path, repository: str, **splits: object) -> None:
    """What `hf download --repo-type dataset` leaves behind."""
    revision = "0123456789012345678901234567890123456789"
    home = tmp_path / "hf_hub" / f"datasets--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    snapshot = home / "snapshots" / revision / "data"
    (home / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for split, content in splits.items():
        content.to_parquet(home / "blobs" / split)  # type: ignore[attr-defined]
        (snapshot / f"{split}-00000-of-00001.parquet").symlink_to(f"../../../blobs/{split}")


def test_offline_a_downloaded_repository_is_used(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(3)]
    put_into_hub_cache(tmp_path, "some/set", train=table([0, 1, 2], names), test=table([2, 0], names))
    sources = open_sources("mine", "some/set", None)
    assert sources.names == names
    assert red(sources.train, 1) == 1


def test_hub_sets_are_asked_for_by_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import datasets

    asked = []
    digits = [str(i) for i in range(10)]
    builder = SimpleNamespace(
        info=SimpleNamespace(splits={"train": 0, "test": 0, "extra": 0}), config=SimpleNamespace(data_files=None)
    )

    def load(path: str, config: str | None, *, split: str):
        asked.append((path, config, split))
        return table(list(range(10)), digits)

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, config: builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    sources: Sources = open_sources("svhn", None, SETS["svhn"])
    assert asked == [("ufldl-stanford/svhn", "cropped_digits", split) for split in ("train", "test")]
    assert sources.names == digits


@pytest.mark.shared_data
def test_real_gtsrb_and_dtd_folders_are_found_whole(shared_data: Path) -> None:
    for name, classes, train, test in (("gtsrb", 20, 2000, 800), ("dtd", 6, 420, 180)):
        sources = open_sources("mine", str(shared_data / name), None)
        assert (len(sources.names), len(sources.train), len(sources.test)) == (classes, train, test)
    assert set(json.loads((shared_data / "gtsrb" / "classes.json").read_text())) >= set(
        open_sources("mine", str(shared_data / "gtsrb"), None).names
    )
