"""`open_data`: from the recipe's data section to conversations ready to be trained on, with a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.cache import cache_root, fingerprint_of, locked
from common.cores import usable_cores
from common.errors import UserError
from common.words import counted
from llava.config import DataConfig
from llava.conversation import template_for
from llava.data.lengths import Coding, Lengths, open_lengths
from llava.data.pictures import Check
from llava.data.report import DataReport, FileReport, histogram
from llava.data.rules import TEXT_ONLY, Row, source_of
from llava.data.store import ArrowRows, Rows, TextReport, folder_of, open_rows, writing
from llava.data.verify import Verified, open_pictures
from llava.demo import PREFIX, data_file


class Conversations:
    """The conversations of a file that can be used; index i is the i-th of them.

    All that grows with the data is mapped into memory from files, by each process on first use; pickled are paths.

    Args:
        rows: all sound conversations of the file.
        pictures: the name of each row's picture under `root`.
        root: the image root.
        lengths: which rows can be used, and their lengths.
        coding: how a conversation becomes tokens.
    """

    def __init__(self, rows: Rows, pictures: ArrowRows, root: Path, lengths: Lengths, coding: Coding) -> None:
        self.rows, self.pictures, self.root, self.coding = rows, pictures, root, coding
        self._lengths = lengths
        self._columns: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}

    def __len__(self) -> int:
        return len(self._column("rows"))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int32: tokens after truncation, those of the picture included."""
        if "lengths" not in self._columns:
            pictures = self.has_image * np.int32(self.coding.image_tokens)
            self._columns["lengths"] = self._column("text_tokens") + pictures
        return self._columns["lengths"]

    @property
    def supervised(self) -> np.ndarray:
        """(n,) int32: tokens that are learnt."""
        return self._column("supervised")

    @property
    def has_image(self) -> np.ndarray:
        """(n,) bool: whether a picture is left after truncation."""
        return self._column("has_image")

    def length(self, index: int) -> int:
        """`lengths[index]`, without making all of them."""
        return int(self._column("text_tokens")[index]) + self.coding.image_tokens * int(self.has_image[index])

    def row(self, index: int) -> Row:
        """What is said in conversation `index`."""
        return self.rows[int(self._column("rows")[index])]

    def picture(self, index: int) -> str | None:
        """Name under `root` of conversation `index`'s picture, None for text alone."""
        return self.pictures.value(int(self._column("rows")[index]), "picture")

    def describe(self, index: int) -> str:
        """What to call conversation `index` in a message."""
        return f"conversation {self.row(index).id}"

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = self._lengths.column(name)
        return self._columns[name]


@dataclass
class LlavaData:
    """What a run is trained on.

    Args:
        train: the conversations of `data.path`.
        validation: those of `data.validation_path`, None where it is not given.
        report: what was found.
    """

    train: Conversations
    validation: Conversations | None
    report: DataReport


def open_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, image_tokens: int, image_token_id: int
) -> LlavaData:
    """Find the conversations, make or check their indices, and count their tokens.

    Pictures are taken as `mosgoat llava check-data` has verified them, unless their files have changed since. Where it
    has not, all of them are unpacked once now: about a millisecond each, against a run that ends at the first file that
    is cut short.

    Args:
        config: the recipe's data section.
        tokenizer: of the model.
        image_tokens: tokens of a picture.
        image_token_id: the token that stands for a part of it.

    Raises:
        UserError: nothing usable there, or (`on_error=raise`) a defect; the message says what to do.
    """
    assert config.path is not None
    template = template_for(config.template, tokenizer)
    coding = Coding(tokenizer, template, image_token_id, image_tokens, config.max_text_tokens)
    source = open_source(config, config.path, "data.path")
    train = count_tokens(config, source, "data.path", coding)
    if config.validation_path is None:
        return LlavaData(train, None, DataReport(source.report))
    held = open_source(config, config.validation_path, "data.validation_path")
    validation = count_tokens(config, held, "data.validation_path", coding)
    return LlavaData(train, validation, DataReport(source.report, held.report))


@dataclass
class Source:
    """A file's indices without lengths.

    Args:
        rows: its sound conversations.
        text: what was found in the text.
        pictures: the name of each row's picture.
        verified: what was found of the pictures.
        report: both for people; `content` names what can be used.
    """

    rows: Rows
    text: TextReport
    pictures: ArrowRows
    verified: Verified
    report: FileReport


def open_source(
    config: DataConfig, path: str, key: str, *, check: Check = "decode", workers: int | None = None
) -> Source:
    """The text and the pictures of one file, without counting tokens.

    Args:
        config: the recipe's data section.
        path: the file, or `builtin:` and the name of a set that ships.
        key: the option that names it.
        check: how closely to look at the pictures, at least.
        workers: processes to use; none given: all cores.
    """
    file = data_file(path, config.cache_dir) if path.startswith(PREFIX) else Path(path).expanduser()
    folder = folder_of(file, cache_root(config.cache_dir), key)
    with writing(folder), locked(folder, file.name):
        rows, text = open_rows(file, folder, key)
        _refuse_defects(config, text.defects, file)
        root = _image_root(config, file, rows)
        arrow, verified = open_pictures(rows, folder, root, check, _all_cores() if workers is None else workers)
    pictures = ArrowRows(arrow)
    used: Counter[str] = Counter()
    skipped = list(text.defects)
    bad = verified.problems
    for ids, images in zip(rows.batches("id"), rows.batches("image"), strict=True):
        used.update(source_of(image) for image in images if image not in bad)
        named = zip(ids, images, strict=True)
        skipped += [(f"{name} ({image})", f"picture: {bad[image][0]}") for name, image in named if image in bad]
    if bad and config.on_error == "raise":
        name, (why, _, _) = next(iter(bad.items()))
        raise UserError(
            f"{counted(len(bad), 'picture')} of {file} cannot be used; the first, {root / name}: {why}. Mend them, "
            "or set data.on_error=skip to leave their conversations out and have them counted"
        )
    if not used or (bad and len(bad) == verified.pictures):
        name, (why, _, _) = next(iter(bad.items()))
        raise UserError(
            f"none of the {len(bad):,} pictures of {file} can be used; the first, {root / name}: {why}. "
            "data.image_root must be the folder that the paths in the file begin from"
        )
    report = FileReport(
        path=str(file),
        image_root=str(root),
        index=str(folder),
        read=text.read,
        used={source: used[source] for source in sorted(used, key=lambda name: (name == TEXT_ONLY, name))},
        pictures=verified.pictures,
        check=verified.check,
        moved=verified.moved,
        rules=text.rules,
        skipped=skipped,
        content=fingerprint_of(text.key, sorted(bad), verified.places),
    )
    return Source(rows, text, pictures, verified, report)


def count_tokens(
    config: DataConfig, source: Source, key: str, coding: Coding, workers: int | None = None
) -> Conversations:
    """Count the tokens of a source's conversations, leave out those that do not fit, and complete its report."""
    report, folder = source.report, Path(source.report.index)
    with writing(folder), locked(folder, report.path):
        name = fingerprint_of(report.content)
        workers = _all_cores() if workers is None else workers
        lengths = open_lengths(source.rows, source.pictures, folder, name, coding, workers)
    limit = f"the question leaves no room for an answer within data.max_text_tokens={coding.max_text_tokens}"
    too_long = [(source.rows[row].id, limit) for row in lengths.too_long]
    _refuse_defects(config, too_long, Path(report.path))
    for row in lengths.too_long:
        report.used[source_of(source.rows.value(row, "image"))] -= 1
    report.skipped += too_long
    conversations = Conversations(source.rows, source.pictures, Path(source.verified.root), lengths, coding)
    if not len(conversations):
        raise UserError(
            f"{key}={report.path}: not one conversation can be used; for the first, {too_long[0][0]}: {limit}"
        )
    report.shortened, report.cut = lengths.shortened, lengths.cut
    report.lengths = histogram(conversations.lengths)
    report.content = fingerprint_of(report.content, lengths.too_long)
    return conversations


def _refuse_defects(config: DataConfig, defects: list[tuple[str, str]], file: Path) -> None:
    if defects and config.on_error == "raise":
        name, reason = defects[0]
        raise UserError(
            f"{counted(len(defects), 'conversation')} of {file} cannot be used; the first, {name}: {reason}. Mend "
            "them, or set data.on_error=skip to leave them out and have them counted"
        )


def _image_root(config: DataConfig, file: Path, rows: Rows) -> Path:
    root = Path(config.image_root).expanduser() if config.image_root else file.parent
    if root.is_dir() or not any(image is not None for batch in rows.batches("image") for image in batch):
        return root
    raise UserError(f"data.image_root={root} is no folder; give the one that the pictures' paths begin from")


def _all_cores() -> int:
    # Also under torchrun: one process of the machine works while the others wait for its lock.
    return usable_cores() if usable_cores() > 1 else 0
