"""Sources that `datasets` reads: the Hub, local parquet files, `save_to_disk` folders."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np

from common.cache import fingerprint_of
from common.errors import UserError
from common.words import counted, first_line, listed
from vit_classify.data.sources import VALIDATION_NAMES, Source, Sources

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


class TableSource:
    """One split of a `datasets.Dataset` with an image and a label column.

    Args:
        table: the split.
        name: the split's name, for messages.
        names: the classes; labels index them.
        root: pictures that the table names by path must lie under it; none given: only embedded ones are read.
    """

    def __init__(self, table: datasets.Dataset, name: str, names: list[str], root: Path | None) -> None:
        image, label = _columns(table, name)
        files = [_file_stamp(entry["filename"]) for entry in table.cache_files]
        # The library's fingerprint survives a change of the files under it, so they count too.
        self.fingerprint = fingerprint_of("table", table._fingerprint, len(table), files)
        self.labels = _labels(table, name, label, names)
        self._table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._image, self._name, self._root = image, name, root

    def __len__(self) -> int:
        return len(self._table)

    def raw(self, row: int) -> bytes:
        cell = self._table[int(row)][self._image]
        if cell is None:
            raise OSError("the row has no picture")
        if cell["bytes"] is not None:
            return cell["bytes"]
        return self._read(cell["path"])

    def _read(self, name: str | None) -> bytes:
        if not name or self._root is None:
            raise OSError("the picture is not embedded in the table")
        # No path from a data file leaves its root.
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise OSError(f"the row names a file outside {self._root}: {name}")
        return path.read_bytes()

    def describe(self, row: int) -> str:
        path = None
        cell = self._table[int(row)][self._image]
        if cell is not None and cell["path"]:
            path = os.path.basename(cell["path"])
        return f"{self._name} row {row}" + (f" ({path})" if path else "")


def _file_stamp(name: str) -> tuple[str, int, int]:
    info = os.stat(name)
    return os.path.basename(name), info.st_size, info.st_mtime_ns


def _columns(table: datasets.Dataset, name: str) -> tuple[str, str]:
    """The image column and the label column: by their usual names, else the only one of its type."""
    features = table.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    found = []
    for usual, typed in ((IMAGE_COLUMNS, images), (LABEL_COLUMNS, labels)):
        named = [column for column in usual if column in features]
        if not named and len(typed) != 1:
            raise UserError(
                f"data.source: split {name} has columns {', '.join(features)}; it needs one with the picture "
                f"({' or '.join(IMAGE_COLUMNS)}) and one with the class ({' or '.join(LABEL_COLUMNS)})"
            )
        found.append(named[0] if named else typed[0])
    return found[0], found[1]


def _labels(table: datasets.Dataset, name: str, column: str, names: list[str]) -> np.ndarray:
    values = table.data.column(column).to_pylist() if table._indices is None else list(table[column])
    if any(isinstance(value, str) for value in values):
        position = {word: index for index, word in enumerate(names)}
        values = [position.get(value) for value in values]
    wrong = [row for row, value in enumerate(values) if value is None or not 0 <= value < len(names)]
    if wrong:
        raise UserError(
            f"data.source: {len(wrong)} of {len(values)} labels of split {name} are outside 0..{len(names) - 1}, "
            f"the first: {values[wrong[0]]} in row {wrong[0]}; the set has {len(names)} classes "
            "(labels must count from 0)"
        )
    return np.array(values, dtype=np.int64)


def class_names_of(table: datasets.Dataset, name: str) -> list[str]:
    """The classes of a split: from the label's feature, its distinct strings, or 0..max for plain numbers."""
    column = _columns(table, name)[1]
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    values = set(table.unique(column)) - {None}
    if values and all(isinstance(value, str) for value in values):
        return sorted(values)
    if values and all(isinstance(value, int) for value in values):
        return [str(value) for value in range(max(values) + 1)]
    raise UserError(f"data.source: column {column} of split {name} holds neither class names nor whole numbers")


def open_local(path: Path, config: str | None) -> Sources:
    """Sources of a folder of parquet files (such as a copy of a Hub repository) or a `save_to_disk` folder."""
    if (path / "state.json").is_file():
        raise UserError(
            f"data.source={path} is one saved split; give a folder saved from a DatasetDict with train and test"
        )
    try:
        if (path / "dataset_dict.json").is_file():
            tables = dict(datasets.load_from_disk(str(path)))
        else:
            # A copy of one configuration's files alone no longer knows the configuration's name.
            known = datasets.get_dataset_config_names(str(path))
            tables = _load_all(str(path), config if config in known else None)
    except UserError:
        raise
    # pyarrow and datasets raise a wide family of errors on damaged files.
    except Exception as error:
        raise UserError(f"data.source={path} cannot be read as a data set: {_first_line(error)}") from error
    return _assemble(tables, str(path), path)


def open_hub(repository: str, config: str | None) -> Sources:
    """Sources of a data set on the Hub, or in its local cache when the Hub is out of reach."""
    try:
        return _assemble(_load_all(repository, config), repository, None)
    except UserError:
        raise
    # The Hub's client raises errors of three libraries (requests or httpx, huggingface_hub, datasets).
    except Exception as error:
        reason = error
    snapshot = _snapshot(repository)
    if snapshot is not None:
        return open_local(snapshot, config)
    raise UserError(
        f"data set {repository} is no folder here, and was found neither on the Hub ({_first_line(reason)}) nor in the "
        f"local cache ({datasets.config.HF_DATASETS_CACHE}, {_hub_cache()}); where there is a network, fetch it by: "
        f"hf download --repo-type dataset {repository} (or give a local copy as data.source)"
    ) from reason


def _load_all(path: str, config: str | None) -> dict[str, datasets.Dataset]:
    """The splits train, test and, where there is one, validation. Always by name: others may hold corruptions."""
    builder = datasets.load_dataset_builder(path, config)
    known = set(builder.info.splits or ()) | set(builder.config.data_files or ())
    wanted = ["train", "test", *[name for name in VALIDATION_NAMES if name in known][:1]]
    missing = [name for name in wanted if known and name not in known]
    if missing:
        raise UserError(f"data.source={path} has no split {' and '.join(missing)}; it has {', '.join(sorted(known))}")
    return {name: datasets.load_dataset(path, config, split=name) for name in wanted}


def _assemble(tables: dict[str, datasets.Dataset], where: str, root: Path | None) -> Sources:
    for name in ("train", "test"):
        if name not in tables:
            raise UserError(f"data.source={where} has no split {name}; it has {', '.join(sorted(tables))}")
    names = class_names_of(tables["train"], "train")
    others = class_names_of(tables["test"], "test")
    # Plain numbers need no class for the highest one in test; names must agree, and in their order.
    numbers = all(name.isdecimal() for name in others) and others == names[: len(others)]
    if others != names and not numbers:
        only = sorted(set(names) ^ set(others))
        differing = f"only in one of them: {listed(only)}"
        raise UserError(
            f"data.source={where}: train and test must have the same classes in the same order; "
            f"{differing if only else 'the order differs'}"
        )
    if len(names) < 2:
        held = counted(len(names), "class", "classes")
        raise UserError(f"data.source={where} has {held} {names}; classification needs at least two")
    validation: Source | None = None
    for name in VALIDATION_NAMES:
        if validation is None and name in tables:
            validation = TableSource(tables[name], name, names, root)
    train, test = (TableSource(tables[name], name, names, root) for name in ("train", "test"))
    return Sources(train, test, validation, names, where)


def _snapshot(repository: str) -> Path | None:
    """A repository that `hf download` has put into the Hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return None


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _first_line(error: BaseException) -> str:
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text[:160]}"
