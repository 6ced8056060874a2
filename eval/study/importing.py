"""`mosgoat eval study import`: folders of generated pictures → a study."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from common.cache import require_alone
from common.cores import usable_cores
from common.errors import UserError
from common.files import fsync_path, fsync_tree
from common.pictures import DecodeError
from common.write_errors import writing_is_explained
from eval.study.database import PICTURES, Study, create_database, now, put_fact
from eval.study.folders import ItemKey, PictureSet, find_references, read_prompts, read_set
from eval.study.questions import QUESTIONS
from eval.study.storing import encode_equal, encode_reference, read_picture, store

# Enough to know a subject by; DreamBooth's have four to six.
MOST_REFERENCES = 6
_SHOWN = 10


@dataclass
class Report:
    """What an import took and what it left out.

    Args:
        pairs: pairs to rate.
        items: subject, prompt and seed of which there are pairs.
        methods: in the organiser's order.
        questions: keys of the questions that can be asked.
        unreadable: pictures that are no pictures, each with its reason.
        unmatched: pictures without a partner of the same subject, prompt and seed.
        unequal: pairs whose pictures differ in size.
        left_out: other pictures that were left out, each with its reason.
        notes: what the organiser should know.
    """

    pairs: int = 0
    items: int = 0
    methods: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every picture found its place."""
        return not (self.unreadable or self.unmatched or self.unequal or self.left_out)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        told = [
            f"{self.pairs} pairs of {', '.join(self.methods)} from {self.items} prompts and seeds; asked: "
            + ", ".join(question.label for question in QUESTIONS if question.key in self.questions)
        ]
        for title, entries in (
            ("unreadable", self.unreadable),
            ("without a partner of the same subject, prompt and seed", self.unmatched),
            ("pairs of unequal size", self.unequal),
            ("left out", self.left_out),
        ):
            if entries:
                told.append(f"{len(entries)} {title}:")
                told += [f"  {entry}" for entry in entries[:_SHOWN]]
                told += [f"  ... and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
        return [*told, *(f"note: {note}" for note in self.notes)]


def import_study(
    path: Path, sets: Sequence[tuple[str, Path]], *, references: Path | None, prompts: Path | None, title: str
) -> Report:
    """Make a study out of folders of pictures; see docs/study.md.

    Nothing is at `path` before all is: an import that is stopped leaves a hidden folder that the next one replaces.

    Args:
        path: the study's folder; must not exist, or be empty.
        sets: (method, folder), at least two; the first method's wins are counted against the second's.
        references: folder of pictures of the real subjects; None: those that the manifests name.
        prompts: CSV file of the prompts, for plain folders.
        title: what raters read at the top.

    Raises:
        UserError: too few sets, two of one name, a study that is there already, or no pair at all.
    """
    _check(path, sets)
    texts = read_prompts(prompts)
    read = [read_set(name, folder, texts) for name, folder in sets]
    if prompts is not None and all(made.settings for made in read):
        raise UserError(f"--prompts={prompts} has no effect: the manifests of all sets bring their own; leave it out")
    real = find_references(references, read)
    report = Report(methods=[name for name, _ in sets], left_out=[text for made in read for text in made.problems])
    report.questions = _questions(read, real, report)
    report.notes += _differing_settings(read)
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.importing")
    with writing_is_explained(path):
        temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone_in(temporary, path):
            _require_free(path)  # once more: another import may have ended meanwhile
            for left in temporary.iterdir():  # by an import that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            (temporary / PICTURES).mkdir(mode=0o700)
            temporary.chmod(0o700)
            _write(path, temporary, read, real, report, title)
    return report


@contextlib.contextmanager
def _alone_in(temporary: Path, path: Path) -> Iterator[None]:
    """Hold the folder that an import works in; the kernel lets go of it when the process ends.

    Raises:
        UserError: another process holds it.
    """
    ended = f"another import into --study {path} has just ended; see what it has made"
    try:
        folder = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise UserError(ended) from None
    try:
        require_alone(folder, f"another import is making --study {path}; wait for it to end, or choose another folder")
        if not temporary.exists() or not os.path.samestat(os.fstat(folder), temporary.stat()):
            raise UserError(ended)
        yield
    finally:
        os.close(folder)


def _write(
    path: Path,
    temporary: Path,
    read: Sequence[PictureSet],
    real: Mapping[str, list[Path]],
    report: Report,
    title: str,
) -> None:
    try:
        create_database(temporary)
        with Study(temporary).writing() as db:
            _fill(db, temporary / PICTURES, read, real, report)
            put_fact(db, "title", title)
            put_fact(db, "questions", report.questions)
            put_fact(db, "created_at", now())
        fsync_tree(temporary)
        if path.is_dir():
            path.rmdir()  # empty: checked above
        temporary.rename(path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(path: Path, sets: Sequence[tuple[str, Path]]) -> None:
    names = [name for name, _ in sets]
    if len(names) < 2:
        raise UserError(f"a study compares at least two sets of pictures, {len(names)} given; repeat --set NAME=FOLDER")
    if len(set(names)) < len(names):
        raise UserError(f"--set: the names {', '.join(names)} must differ")
    _require_free(path)


def _require_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"--study {path} is there already and is not empty; a study is made once, so that all raters see the same "
            "pictures. Choose another folder"
        )


def _questions(read: Sequence[PictureSet], real: dict[str, list[Path]], report: Report) -> list[str]:
    """What can be asked: similarity needs references, consistency needs prompts."""
    told = all(source.prompt for made in read for source in made.pictures.values())
    if not told and any(source.prompt for made in read for source in made.pictures.values()):
        raise UserError(
            "some sets have prompts and others have none; give the prompts of plain folders with --prompts FILE"
        )
    if not real and not told:
        raise UserError(
            "there is nothing to ask: subject similarity needs --references DIR, prompt consistency needs --prompts "
            "FILE (or manifests that hold both)"
        )
    if not real:
        report.notes.append("there are no reference pictures (--references): subject similarity is not asked")
    if not told:
        report.notes.append("there are no prompts (--prompts): prompt consistency is not asked")
    asked = {"subject_similarity": bool(real), "prompt_consistency": told}
    return [question.key for question in QUESTIONS if asked[question.key]]


def _differing_settings(read: Sequence[PictureSet]) -> list[str]:
    notes = set()
    for one, other in combinations(read, 2):
        for subject in one.settings.keys() & other.settings.keys():
            mine, theirs = one.settings[subject], other.settings[subject]
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    values = f"{one.name} {mine.get(key)!r}, {other.name} {theirs.get(key)!r}"
                    notes.add(f"the sets were sampled differently: {key}: {values}; raters will judge that too")
    return sorted(notes)


def _fill(
    db: sqlite3.Connection, folder: Path, read: Sequence[PictureSet], real: Mapping[str, list[Path]], report: Report
) -> None:
    for number, made in enumerate(read, 1):
        db.execute("INSERT INTO methods VALUES (?, ?)", (number, made.name))
    with ThreadPoolExecutor(usable_cores()) as pool:
        used = _fill_pairs(db, folder, read, report, pool)
        _fill_references(db, folder, {subject: real[subject] for subject in used if subject in real}, report, pool)
    if not report.pairs:
        hint = report.lines()[1:4]
        raise UserError("no two pictures of the sets belong together, so there is nothing to rate. " + " ".join(hint))


def _fill_pairs(
    db: sqlite3.Connection, folder: Path, read: Sequence[PictureSet], report: Report, pool: ThreadPoolExecutor
) -> list[str]:
    """Store every item of which at least two methods have a picture; returns the subjects."""
    keys = sorted({key for made in read for key in made.pictures})
    shared = []
    for key in keys:
        holders = [made.name for made in read if key in made.pictures]
        if len(holders) > 1:
            shared.append(key)
        if len(holders) < len(read):
            lacking = ", ".join(made.name for made in read if key not in made.pictures)
            report.unmatched.append(f"{key}: {lacking} has no such picture")
    # Numbers in the database tell nothing of the order of the files either.
    random.SystemRandom().shuffle(shared)
    subjects: dict[str, None] = {}
    stored = pool.map(lambda key: _store_item(folder, read, key), shared)
    for key, item in tqdm(zip(shared, stored, strict=True), total=len(shared), desc="pictures", disable=None):
        report.unreadable += item.unreadable
        report.unequal += item.unequal
        if item.pairs:
            subjects[key.subject] = None
            report.items += 1
            report.pairs += len(item.pairs)
            _insert_item(db, key, read, item)
    return list(subjects)


@dataclass
class _Item:
    """One subject, prompt and seed: numbers of sets -> (picture's id, height, width), and which go together."""

    pictures: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)


def _store_item(folder: Path, read: Sequence[PictureSet], key: ItemKey) -> _Item:
    item, pixels = _Item(), {}
    for number, made in enumerate(read, 1):
        if key in made.pictures:
            try:
                pixels[number] = read_picture(made.pictures[key].path)
            except DecodeError as error:
                item.unreadable.append(f"{made.pictures[key].path}: {error}")
    for one, other in combinations(pixels, 2):
        if pixels[one].shape == pixels[other].shape:
            item.pairs.append((one, other))
        else:
            sizes = " and ".join(
                f"{w}x{h} ({read[n - 1].name})" for n in (one, other) for h, w in [pixels[n].shape[:2]]
            )
            item.unequal.append(f"{key}: {sizes}")
    used = sorted({number for pair in item.pairs for number in pair})
    if used:
        files = encode_equal({number: pixels[number] for number in used})
        # In random order, so that not even the files' times tell the method.
        for number in random.SystemRandom().sample(used, len(used)):
            height, width = pixels[number].shape[:2]
            item.pictures[number] = (store(folder, files[number]), height, width)
    return item


def _insert_item(db: sqlite3.Connection, key: ItemKey, read: Sequence[PictureSet], item: _Item) -> None:
    source = read[item.pairs[0][0] - 1].pictures[key]
    (identifier,) = db.execute(
        "INSERT INTO items (subject, prompt, shown_prompt, name, seed) VALUES (?, ?, ?, ?, ?) RETURNING id",
        (key.subject, source.prompt, source.shown_prompt, key.name, key.seed),
    ).fetchone()
    for picture, height, width in item.pictures.values():
        db.execute("INSERT INTO pictures VALUES (?, 'image/png', ?, ?)", (picture, width, height))
    for one, other in item.pairs:
        db.execute(
            "INSERT INTO pairs (item, first, second, first_picture, second_picture) VALUES (?, ?, ?, ?, ?)",
            (identifier, one, other, item.pictures[one][0], item.pictures[other][0]),
        )


def _fill_references(
    db: sqlite3.Connection, folder: Path, real: Mapping[str, list[Path]], report: Report, pool: ThreadPoolExecutor
) -> None:
    for subject, paths in real.items():
        shown = 0
        chosen = paths[:MOST_REFERENCES]
        for path, stored in zip(chosen, pool.map(lambda path: _store_reference(folder, path), chosen), strict=True):
            if isinstance(stored, DecodeError):
                report.unreadable.append(f"{path}: {stored}")
            else:
                picture, width, height = stored
                db.execute("INSERT INTO pictures VALUES (?, 'image/jpeg', ?, ?)", (picture, width, height))
                db.execute("INSERT INTO reference_pictures VALUES (?, ?, ?)", (subject, shown, picture))
                shown += 1
        if not shown:
            raise UserError(f"no reference picture of {subject!r} can be read: {report.unreadable[-1]}")


def _store_reference(folder: Path, path: Path) -> tuple[str, int, int] | DecodeError:
    try:
        content, width, height = encode_reference(read_picture(path))
    except DecodeError as error:
        return error
    return store(folder, content), width, height
