"""Class folders: what is found, and what is said where nothing is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from vit_classify.data.sources import open_sources

MakeFolder = Callable[..., Path]


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
    (root / "train" / "a" / "._000.png").write_bytes(b"left behind by macOS")
    copies = root / "train" / "a" / ".ipynb_checkpoints"
    copies.mkdir()
    (copies / "000.png").write_bytes(b"a copy")
    sources = open_sources("mine", str(root), None)
    assert len(sources.train) == 2
    assert sources.warnings == [
        "2 hidden files or files without a picture's ending were ignored, the first: train/a/._000.png"
    ]


def test_a_link_back_to_a_folder_above_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "train" / "a" / "loop").symlink_to("..")
    with pytest.raises(UserError, match=r"link .*/train/a/loop leads back"):
        open_sources("mine", str(root), None)


def test_a_link_to_another_folder_is_followed(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "test" / "a").rename(tmp_path / "elsewhere")
    (root / "test" / "a").symlink_to(tmp_path / "elsewhere")
    assert len(open_sources("mine", str(root), None).test) == 4


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "train" / "a" / "more").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("more"):  # root, who runs many containers, may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"train/a/more cannot be read: Permission denied"):
        open_sources("mine", str(root), None)


def test_a_pipe_among_the_pictures_is_unreadable_and_nobody_waits_for_it(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    os.mkfifo(root / "train" / "a" / "pipe.png")
    with pytest.raises(OSError, match="no regular file"):
        open_sources("mine", str(root), None).train.raw(1)


def test_names_that_are_not_utf_8_are_shown_in_a_form_that_can_be_written(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    for split in ("train", "test"):
        os.rename(os.fsencode(root / split / "a"), os.fsencode(root / split) + b"/a\xff")
    sources = open_sources("mine", str(root), None)
    assert sources.names == ["a\\xff", "b"]
    assert sources.train.describe(0) == "train/a\\xff/000.png"
    assert sources.train.raw(0)


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


@pytest.mark.shared_data
def test_real_gtsrb_and_dtd_folders_are_found_whole(shared_data: Path) -> None:
    for name, classes, train, test in (("gtsrb", 20, 2000, 800), ("dtd", 6, 420, 180)):
        sources = open_sources("mine", str(shared_data / name), None)
        assert (len(sources.names), len(sources.train), len(sources.test)) == (classes, train, test)
    assert set(json.loads((shared_data / "gtsrb" / "classes.json").read_text())) >= set(
        open_sources("mine", str(shared_data / "gtsrb"), None).names
    )
