"""Where encoded pictures and labels come from: class-per-folder directories and Hugging Face data sets.

A `Source` is one split as it lies there, with nothing decoded and nothing left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from common.cache import fingerprint_of
from common.errors import UserError
from common.pictures import ENDINGS, read_file
from common.words import counted, listed, printable
from vit_classify.data.registry import SetSpec
from vit_classify.demo import PREFIX, builtin_data_dir

VALIDATION_NAMES = ("validation", "val", "valid")


class Source(Protocol):
    """One split of encoded pictures.

    `labels` (N,) int64 are indices into the sources' class names; `fingerprint` changes whenever the pictures or
    their order might have.
    """

    labels: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...

    def raw(self, row: int) -> bytes:
        """The encoded picture. Raises `OSError` where it cannot be read."""
        ...

    def describe(self, row: int) -> str:
        """A name by which the user finds the picture."""
        ...


@dataclass
class Sources:
    """The splits of one set. `names` are the classes as the source calls them, `where` is for messages."""

    train: Source
    test: Source
    validation: Source | None
    names: list[str]
    where: str
    warnings: list[str] = field(default_factory=list)


class FolderSource:
    """Pictures in `root/CLASS/**`, in the order of torchvision's `ImageFolder`; hidden files and folders are left out.

    Args:
        root: the split's folder.
        names: its class folders, sorted; their positions are the labels.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.ignored: list[str] = []
        self._files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = self._pictures(name)
            if not found:
                raise UserError(
                    f"data.source: class folder {root / name} holds no picture; "
                    f"put some there or remove it (endings read: {' '.join(sorted(ENDINGS))})"
                )
            self._files += found
            labels += [label] * len(found)
        self.labels = np.array(labels, dtype=np.int64)
        self.fingerprint = fingerprint_of("folder", [(name, *_stamp(root / name)) for name in self._files])

    def _pictures(self, class_name: str) -> list[str]:
        found = []
        for folder, files in _folders(str(self.root / class_name)):
            for name in sorted(files):
                path = os.path.relpath(os.path.join(folder, name), self.root)
                is_picture = os.path.splitext(name)[1].lower() in ENDINGS
                # Hidden pictures are copies that file managers, notebooks and macOS leave behind.
                if is_picture and not name.startswith("."):
                    found.append(path)
                elif is_picture or not name.startswith("."):
                    self.ignored.append(printable(path))
        return found

    def __len__(self) -> int:
        return len(self._files)

    def raw(self, row: int) -> bytes:
        return read_file(self.root / self._files[row])

    def describe(self, row: int) -> str:
        return printable(f"{self.root.name}/{self._files[row]}")


def _folders(root: str) -> list[tuple[str, list[str]]]:
    """Every folder under `root` that is not hidden, with its files; links are followed.

    Raises:
        UserError: a folder cannot be read, or a link leads back to a folder above it.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"data.source: folder {error.filename} cannot be read: {error.strerror}") from error

    found = []
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        above = os.path.realpath(folder)
        for name in folders:
            child = os.path.join(folder, name)
            if os.path.islink(child) and Path(above).is_relative_to(os.path.realpath(child)):
                raise UserError(
                    f"data.source: the link {child} leads back to a folder above it, in which every picture would "
                    "be found again and again; remove the link"
                )
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.append((folder, files))
    return sorted(found)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        info = path.stat()
    except OSError:  # a broken link: found unreadable, and named, when the picture is read
        return -1, -1
    return info.st_size, info.st_mtime_ns


def open_folder(root: Path) -> Sources:
    """Sources of a directory with `train/CLASS/*`, `test/CLASS/*` and, if it has one, `validation/CLASS/*`.

    Raises:
        UserError: fewer than two classes, splits with different classes, a class without pictures.
    """
    folders = {"train": root / "train", "test": root / "test"}
    for name in VALIDATION_NAMES:
        if (root / name).is_dir():
            folders["validation"] = root / name
    classes = {split: _class_folders(folder) for split, folder in folders.items()}
    names = classes["train"]
    for split, others in classes.items():
        if others != names:
            raise UserError(
                f"data.source={root}: train and {split} must have the same classes; "
                f"{_difference('train', names, split, others)}"
            )
    if len(names) < 2:
        held = counted(len(names), "class folder")
        raise UserError(f"data.source={root}: train holds {held} {names}; classification needs at least two")
    sources = {split: FolderSource(folder, names) for split, folder in folders.items()}
    ignored = [f"{split}/{name}" for split, source in sources.items() for name in source.ignored]
    warnings = []
    if ignored:
        warnings.append(
            f"{len(ignored)} hidden files or files without a picture's ending were ignored, the first: {ignored[0]}"
        )
    shown = [printable(name) for name in names]
    return Sources(sources["train"], sources["test"], sources.get("validation"), shown, str(root), warnings)


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"data.source: folder {folder} cannot be read: {error.strerror}") from error


def _difference(first: str, a: Sequence[str], second: str, b: Sequence[str]) -> str:
    found = []
    for name, more, less in ((first, set(a), set(b)), (second, set(b), set(a))):
        only = sorted(more - less)
        if only:
            found.append(f"only in {name}: {listed(only)}")
    return "; ".join(found)


def open_sources(name: str, source: str | None, spec: SetSpec | None) -> Sources:
    """Find the pictures of a set.

    Args:
        name: `data.name`, for messages.
        source: `data.source`: a folder of class folders, of parquet files, a `save_to_disk` folder, a Hub id, or
            `builtin:signs`.
        spec: the registry's entry of `name`, if it has one.

    Raises:
        UserError: nothing usable there, in one line that says what to do.
    """
    if source is None:
        if spec is None:
            raise UserError(
                f"data.name={name} is not one of the known sets, so data.source must say where its pictures are: "
                "a folder with train/CLASS/* and test/CLASS/*, a folder of parquet files, or a Hub id"
            )
        return _tables().open_hub(spec.hub_id, spec.hub_config)
    path = builtin_data_dir(source) if source.startswith(PREFIX) else Path(source).expanduser()
    if path.is_dir():
        return _open_directory(path, spec)
    if path.exists():
        raise UserError(f"data.source={source} is a file; give the folder that holds the pictures or parquet files")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"data.source={source}: there is no such folder, and it is not a Hub id (ORGANISATION/NAME)")
    return _tables().open_hub(source, spec.hub_config if spec and spec.hub_id == source else None)


def _open_directory(path: Path, spec: SetSpec | None) -> Sources:
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    train = path / "train"
    # Saved and parquet sets may have folders train/ and test/, too.
    if not saved and (path / "test").is_dir() and train.is_dir() and not any(train.glob("*.parquet")):
        return open_folder(path)
    if saved or next(path.rglob("*.parquet"), None) is not None:
        return _tables().open_local(path, spec.hub_config if spec else None)
    raise UserError(
        f"data.source={path} is a folder, but holds neither train/ and test/ with a folder for each class, "
        "nor parquet files, nor a save_to_disk data set"
    )


def _tables() -> ModuleType:
    # Imported on use: `datasets` takes a second to import and folders do not need it.
    from vit_classify.data import tables

    return tables
