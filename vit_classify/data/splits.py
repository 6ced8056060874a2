"""`open_data`: from the recipe's data section to train, validation and test splits with a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.cache import cache_root, fingerprint_of
from common.cores import usable_cores
from common.errors import UserError
from common.words import did_you_mean, listed
from vit_classify.config import DataConfig
from vit_classify.data.build import Pass
from vit_classify.data.registry import DEFAULT_TEMPLATES, SETS, SetSpec, plain_words
from vit_classify.data.sources import Source, Sources, open_sources
from vit_classify.data.store import Store

# The protocol's cap on held-out pictures and its fixed seed (Ilharco et al., datasets/registry.py).
MAX_VALIDATION = 5000
VALIDATION_SEED = 0


class Split:
    """The readable pictures of one split.

    Args:
        name: train, validation or test.
        source: where the encoded pictures are.
        rows: (n,) the split's rows of the source.
        store: decoded pictures of the source.
    """

    def __init__(self, name: str, source: Source, rows: np.ndarray, store: Store) -> None:
        self.name, self.source, self.rows = name, source, rows
        self.store = _Rows(store, rows)
        self.labels: np.ndarray = source.labels[rows]  # (n,) int64

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, i: int) -> bytes:
        """The encoded picture i."""
        return self.source.raw(int(self.rows[i]))

    def describe(self, i: int) -> str:
        """File or row of picture i."""
        return self.source.describe(int(self.rows[i]))


class _Rows:
    """A store seen through a split: index i is row `rows[i]`."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    def shape(self, i: int) -> tuple[int, int]:
        return self._store.shape(int(self._rows[i]))

    def image(self, i: int) -> np.ndarray:
        return self._store.image(int(self._rows[i]))


@dataclass
class DataReport:
    """What was found and what was left out.

    Args:
        name: the set.
        source: where it came from.
        classes: number of classes.
        counts: pictures used, by split.
        skipped: (name, reason) of every unreadable picture.
        warnings: whatever differs from the protocol or was ignored.
        caches: folder of each cache.
        content: hash of what was read: classes, labels, sizes and, with a cache, pixels; where it lies does not count.
    """

    name: str
    source: str
    classes: int
    counts: dict[str, int]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)
    content: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        rows = [
            ("set", f"{self.name} ({self.classes} classes)"),
            ("source", self.source),
            *self.counts.items(),
            ("left out", len(self.skipped)),
            *(("cache", folder) for folder in self.caches),
        ]
        lines = [f"{key:<12}{value}" for key, value in rows]
        lines += [f"  left out {name}: {reason}" for name, reason in self.skipped[:20]]
        if len(self.skipped) > 20:
            lines.append(f"  ... and {len(self.skipped) - 20} more (data_report.json has them all)")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])


@dataclass
class VitData:
    """A classification set, ready to be trained on.

    Args:
        name: the set.
        class_names: the words for prompts, by label.
        templates: prompts with `{}` for the class.
        epochs: the protocol's, None for a set of the user's own.
        validation: held out of train; empty for a set of which the protocol holds nothing out (EuroSAT).
    """

    name: str
    class_names: list[str]
    templates: list[str]
    epochs: int | None
    train: Split
    validation: Split
    test: Split
    report: DataReport


def open_data(config: DataConfig) -> VitData:
    """Find a set, make or check its caches, and split it.

    Args:
        config: the recipe's data section.

    Raises:
        UserError: nothing usable there; the message says what to do.
    """
    spec = SETS.get(config.name)
    if spec is None and config.source is None:
        raise UserError(
            f"data.name={config.name} is not a known set and data.source is not given; "
            f"{did_you_mean(config.name, SETS)} For pictures of your own give data.source"
        )
    sources = open_sources(config.name, config.source, spec)
    if spec is not None and len(sources.names) != spec.classes:
        raise UserError(
            f"data.source={sources.where} has {len(sources.names)} classes, but {config.name} has {spec.classes}; "
            f"for another set give data.name a name of its own (such as my-{config.name})"
        )
    class_names, name_warnings = words_for(sources.names, config.class_names, spec)
    splits, report = _make_splits(config, spec, sources)
    report.warnings += sources.warnings + name_warnings + _size_warnings(config, spec, sources)
    _require_every_class(splits["train"], sources.names)
    return VitData(
        name=config.name,
        class_names=class_names,
        templates=list(config.templates or (spec.templates if spec else DEFAULT_TEMPLATES)),
        epochs=spec.epochs if spec else None,
        report=report,
        **splits,
    )


def passes(config: DataConfig, sources: Sources) -> dict[str, Pass]:
    """The pass over each of the source's splits, not yet run."""
    found = {"train": sources.train, "test": sources.test}
    if sources.validation is not None:
        found["validation"] = sources.validation
    return {
        split: Pass(
            source,
            name=f"{config.name}-{split}".replace("/", "-"),
            root=cache_root(config.cache_dir),
            store_size=config.store_size,
            pixels=config.pixels == "cache",
            strict=config.on_error == "raise",
            num_workers=_build_workers() if config.num_workers is None else config.num_workers,
        )
        for split, source in found.items()
    }


def _build_workers() -> int:
    # All cores, also under torchrun: one process of the machine builds while the others wait for its lock.
    return min(8, usable_cores() - 1)


def _make_splits(config: DataConfig, spec: SetSpec | None, sources: Sources) -> tuple[dict[str, Split], DataReport]:
    report = DataReport(config.name, sources.where, len(sources.names), {})
    whole: dict[str, Split] = {}
    stores: dict[str, Store] = {}
    seen: list[Any] = [sources.names]
    for name, task in passes(config, sources).items():
        stores[name], index = task.open()
        whole[name] = Split(name, task.source, index.readable(), stores[name])
        seen += [name, task.source.labels.tolist(), index.shapes, index.hashes]
        report.skipped += [(task.source.describe(row), reason) for row, reason in index.skipped]
        if task.pixels:
            report.caches.append(str(task.folder))
        if not len(whole[name]):
            raise UserError(
                f"data.source={sources.where}: no picture of split {name} can be read; "
                f"the first, {task.source.describe(0)}: {index.skipped[0][1]}"
            )
    if "validation" not in whole:
        fraction = config.validation_fraction if spec is None or spec.holds_out else 0.0
        kept, held = hold_out(len(whole["train"]), fraction)
        train = whole["train"]
        whole["train"] = Split("train", train.source, train.rows[kept], stores["train"])
        whole["validation"] = Split("validation", train.source, train.rows[held], stores["train"])
    report.content = fingerprint_of(*seen)
    report.counts = {name: len(whole[name]) for name in ("train", "validation", "test")}
    return whole, report


def hold_out(size: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and to validate on: `random_split` with a generator seeded 0, as in the protocol.

    Args:
        size: number of pictures.
        fraction: share to hold out, rounded down, at most `MAX_VALIDATION` pictures; 0 holds nothing out.

    Returns:
        two int64 arrays in `random_split`'s order.
    """
    held = min(int(size * fraction), MAX_VALIDATION)
    if fraction > 0 and not 0 < held < size:
        raise UserError(
            f"data.validation_fraction={fraction} of {size} training pictures leaves nothing to "
            f"{'train on' if held else 'validate on'}; choose another fraction or give a folder validation/"
        )
    if held == 0:
        return np.arange(size), np.arange(0)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(VALIDATION_SEED)).numpy()
    return order[: size - held], order[size - held :]


def words_for(names: Sequence[str], path: str | None, spec: SetSpec | None) -> tuple[list[str], list[str]]:
    """The words for prompts of each class, and warnings.

    Args:
        names: the classes as the source calls them.
        path: `data.class_names`: JSON, {class or label: words} or {class: {"clip_prompt_name": words}}.
        spec: the registry's entry, for its own words.
    """
    warnings = []
    if path is not None:
        words, unused = _words_from_file(names, path)
        if unused:
            warnings.append(f"{path} names classes that the set does not have: {listed(unused)}")
    else:
        words = (spec.words if spec else plain_words)(names)
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        warnings.append(f"several classes have the same words, no prompt can tell them apart: {listed(twice)}")
    return words, warnings


def _words_from_file(names: Sequence[str], path: str) -> tuple[list[str], list[str]]:
    try:
        table: Any = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"data.class_names={path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.class_names={path} is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise UserError(f'data.class_names={path} must hold an object {{"class": "words"}}')
    words, missing, used = [], [], set()
    for label, name in enumerate(names):
        key = name if name in table else str(label)
        value = table.get(key)
        if isinstance(value, dict):
            value = value.get("clip_prompt_name")
        if isinstance(value, str) and value.strip() and _is_text(value):
            words.append(value)
            used.add(key)
        else:
            missing.append(name)
    if missing:
        raise UserError(f"data.class_names={path} has no words for {listed(missing)}")
    return words, sorted(set(table) - used)


def _is_text(words: str) -> bool:
    # JSON can write half of a surrogate pair, which no file and no tokenizer takes.
    return not any("\ud800" <= letter <= "\udfff" for letter in words)


def _require_every_class(train: Split, names: Sequence[str]) -> None:
    counts = np.bincount(train.labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(names)} classes have no readable training picture: "
            f"{listed(empty)}; add some or remove the class"
        )


def _size_warnings(config: DataConfig, spec: SetSpec | None, sources: Sources) -> list[str]:
    if spec is None:
        return []
    found = []
    for split, size, expected in (
        ("train", len(sources.train), spec.train_size),
        ("test", len(sources.test), spec.test_size),
    ):
        if size != expected:
            found.append(
                f"{config.name} {split} has {size} pictures, the protocol's has {expected}: "
                "results are not comparable with published ones"
            )
    if not spec.holds_out and sources.validation is None:
        found.append(
            f"nothing is held out of train: the protocol validates {config.name} on a third part of the set, "
            "which this source lacks"
        )
    return found
