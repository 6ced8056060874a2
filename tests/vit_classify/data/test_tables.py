"""Parquet files, saved data sets and the Hub: what is read, and what is said where nothing can be."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from vit_classify.data.registry import SETS
from vit_classify.data.sources import Sources, open_sources


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


@pytest.mark.parametrize("whole_repository", [True, False])
def test_local_copy_of_svhn_is_read_with_and_without_its_configurations(tmp_path: Path, whole_repository: bool) -> None:
    digits = [str(i) for i in range(10)]
    cropped = {"train": table([0, 1, 2], digits), "test": table([3], digits)}
    root = tmp_path / "svhn"
    if whole_repository:
        parquet_folder(root, "cropped_digits/{split}-00000-of-00001.parquet", **cropped)
        other = table([0], ["house"])
        parquet_folder(root, "full_numbers/{split}-00000-of-00001.parquet", train=other, test=other)
        configs = ("cropped_digits", "full_numbers")
        files = "\n".join(
            f"- config_name: {name}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", "test"))
            for name in configs
        )
        (root / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    else:
        parquet_folder(root, "{split}-00000-of-00001.parquet", **cropped)
    sources = open_sources("svhn", str(root), SETS["svhn"])
    assert (sources.names, len(sources.train), len(sources.test)) == (digits, 3, 1)


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
