"""Folders → subjects: their pictures, captions and class word, and what was left out.

Two forms are read: DreamBooth's published one (`dataset/SUBJECT/*.jpg` beside `prompts_and_classes.txt`), and any
folder of pictures.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.cores import usable_cores
from common.errors import UserError
from common.pictures import ENDINGS, DecodeError, read_file
from common.words import did_you_mean, printable
from dreambooth.config import DataConfig, fill_in, subject_name
from dreambooth.data import captions, prompts
from dreambooth.data.pictures import Look, look

BUILTIN = "builtin:"
_MOST_AT_ONCE = 4  # pictures unpacked at the same time: one of 8000 x 8000 takes up to a gigabyte


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Args:
        path: its file.
        look: what it is.
        caption: of its own, None without.
    """

    path: Path
    look: Look
    caption: str | None = None

    @property
    def name(self) -> str:
        """Of its file, printable."""
        return printable(self.path.name)


@dataclass
class Findings:
    """What there is to say about a folder.

    Args:
        skipped: (name, reason) of pictures that cannot be used.
        ignored: names of files and folders that are no pictures.
        remarks: what was done or is odd -> names of the pictures.
    """

    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, text: str, name: str) -> None:
        """Note something about a picture."""
        self.remarks.setdefault(text, []).append(name)


@dataclass
class Subject:
    """A subject.

    Args:
        name: of its folder.
        folder: where its pictures lie.
        class_word: what it is, such as `dog`.
        pictures: those that can be used, in natural order (`2.jpg` before `10.jpg`).
        findings: what was found beside them.
    """

    name: str
    folder: Path
    class_word: str
    pictures: list[Picture]
    findings: Findings


def subject_names(path: str) -> list[str]:
    """The folders of pictures below `data.path`, for `--subjects all`.

    Raises:
        UserError: there is no such folder, or none of pictures in it.
    """
    home = _home(path)
    found = sorted((folder.name for folder in _folders(home) if _has_pictures(folder)), key=natural)
    if not found:
        what = "is itself a folder of pictures: one subject" if _has_pictures(home) else "holds no folder of pictures"
        raise UserError(f"data.path={path} {what}; give a folder with a folder of pictures for each subject")
    return found


def open_subject(config: DataConfig) -> Subject:
    """Find a subject's pictures, and unpack each of them once.

    Args:
        config: the recipe's data section.

    Raises:
        UserError: no such folder, no picture in it that can be used, no class word, or (`on_error=raise`) a picture
            that cannot be read.
    """
    folder = _subject_folder(config)
    class_word = config.class_word or _class_word(folder)
    own = captions.read(folder) if config.captions else captions.Captions({}, [])
    pictures, findings = read_folder(folder, "data.path", own.files)
    remark_on(pictures, findings, config.resolution)
    pictures = _with_captions(pictures, own, config, findings)
    if findings.skipped and config.on_error == "raise":
        name, reason = findings.skipped[0]
        raise UserError(
            f"{folder / name} cannot be used: {reason}; mend or remove it, or set data.on_error=skip to leave out such "
            "pictures and have them counted"
        )
    return Subject(subject_name(config), folder, class_word, pictures, findings)


def read_folder(
    folder: Path, key: str, beside: frozenset[str] = frozenset(), *, required: bool = True
) -> tuple[list[Picture], Findings]:
    """The pictures directly in a folder, each of them unpacked once to see that it can be.

    Args:
        folder: the folder.
        key: the option that names it, for messages.
        beside: files that are known not to be pictures, and need no mention.
        required: whether there must be a picture.

    Raises:
        UserError: the folder cannot be read, or holds no picture that can be used and one is required.
    """
    findings = Findings()
    names = _listing(folder, key)
    files = [name for name in names if Path(name).suffix.lower() in ENDINGS and not (folder / name).is_dir()]
    findings.ignored = [name for name in names if name not in beside and name not in set(files)]
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, usable_cores())) as pool:
        looks = list(pool.map(_look, [folder / name for name in files]))
    pictures = []
    for name, seen in zip(files, looks, strict=True):
        if isinstance(seen, str):
            findings.skipped.append((printable(name), seen))
        else:
            pictures.append(Picture(folder / name, seen))
    if required and not pictures:
        raise UserError(f"{key}={folder} {_nothing(findings)}")
    return pictures, findings


def remark_on(pictures: list[Picture], findings: Findings, resolution: int) -> None:
    """Note what is odd about the pictures that are trained on, and what is done about it."""
    first_with: dict[str, Picture] = {}
    for picture in pictures:
        look, name = picture.look, picture.name
        for remark in look.remarks:
            findings.remark(remark, name)
        if (twin := first_with.setdefault(look.content, picture)) is not picture:
            findings.remark(f"the same file as {twin.name}: it counts twice", name)
        if min(look.height, look.width) < resolution:
            size = f"{name} of {look.width}x{look.height}"
            findings.remark(f"smaller than data.resolution={resolution}: enlarged", size)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `2.jpg` before `10.jpg`."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts] + [(2, 0, name)]


def _look(path: Path) -> Look | str:
    """What a picture is, or why it cannot be used."""
    try:
        return look(read_file(path))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except DecodeError as error:
        return str(error)


def _nothing(findings: Findings) -> str:
    others = f"{len(findings.ignored)} other files and folders" if findings.ignored else "nothing else"
    if findings.skipped:
        name, reason = findings.skipped[0]
        return (
            f"holds no picture that can be used: {len(findings.skipped)} cannot be read (the first, {name}: {reason}), "
            f"and {others}"
        )
    return f"holds no picture (endings read: {' '.join(sorted(ENDINGS))}; {others} there)"


def _listing(folder: Path, key: str) -> list[str]:
    """Names in a folder but the hidden ones, which file managers and editors leave behind."""
    try:
        return sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural)
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be read: {error.strerror}") from error


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _listing(folder, "data.path") if (folder / name).is_dir()]


def _has_pictures(folder: Path) -> bool:
    return any(
        Path(name).suffix.lower() in ENDINGS and not (folder / name).is_dir() for name in _listing(folder, "data.path")
    )


def _home(path: str) -> Path:
    """The folder that `data.path` means: that of the subjects where the published set's root is given."""
    if path.startswith(BUILTIN):
        from dreambooth.demo.builtin import subject_path

        root = Path(subject_path(path))
    else:
        root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={path} is no folder; give one of pictures, or one with a folder for each subject")
    published = root / "dataset"
    return published if published.is_dir() and not _has_pictures(root) else root


def _subject_folder(config: DataConfig) -> Path:
    assert config.path is not None
    home = _home(config.path)
    if config.subject is not None:
        names = [folder.name for folder in _folders(home)]
        if config.subject not in names:
            known = did_you_mean(config.subject, names) if names else "there is no folder in it"
            raise UserError(f"data.subject={config.subject} is no folder in {home}; {known}")
        return home / config.subject
    if _has_pictures(home):
        return home
    if names := [folder.name for folder in _folders(home) if _has_pictures(folder)]:
        shown = ", ".join(sorted(names, key=natural)[:30])
        raise UserError(
            f"data.path={config.path} holds several subjects: {shown}; choose with data.subject, or --subjects all"
        )
    return home


def _class_word(folder: Path) -> str:
    for file in (folder.parent / prompts.NAME, folder / prompts.NAME):
        if file.is_file():
            classes = prompts.read_prompts(file).classes
            if folder.name in classes:
                return classes[folder.name]
    raise UserError(
        f"data.class_word is missing: what is the subject in {folder}? Give a word such as dog or stuffed animal, or a "
        f"line `{folder.name},WORD` in {folder.parent / prompts.NAME}"
    )


def _with_captions(
    pictures: list[Picture], own: captions.Captions, config: DataConfig, findings: Findings
) -> list[Picture]:
    texts = {picture.path.name for picture in pictures if picture.path.with_suffix(".txt").is_file()}
    if not config.captions:
        for name in sorted(texts, key=natural):
            findings.remark("has a caption beside it that is not used (data.captions=true uses it)", name)
        return pictures
    found = [replace(picture, caption=own.texts.get(picture.path.name)) for picture in pictures]
    if not any(picture.caption for picture in found):
        raise UserError(
            f"data.captions=True, but no picture in {pictures[0].path.parent} has a caption: neither NAME.txt beside "
            f"it nor a line in {captions.METADATA}; add some, or leave data.captions out"
        )
    for picture in found:
        if not picture.caption:
            findings.remark("has no caption of its own: data.prompt stands in", picture.name)
        elif config.token not in fill_in(picture.caption, token=config.token, class_word=""):
            findings.remark(f"its caption does not name the token {config.token}", picture.name)
    for name in own.unknown([picture.path.name for picture in found]):
        findings.remark("has a caption and is no picture that can be used", name)
    return found
