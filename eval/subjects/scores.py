"""Scores of pictures, and what they say about adapters: means over subjects, and differences in pairs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from common.errors import UserError
from eval.subjects.extractors import Extractor, Extractors
from eval.subjects.features import Found, features_of, open_caches
from eval.subjects.interval import Estimate, estimate
from eval.subjects.measure import image_similarity, real_similarity, text_similarity
from eval.subjects.sets import GeneratedSet

METRICS = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}
REAL = "real pictures"


@dataclass(frozen=True)
class PictureScore:
    """One generated picture.

    Args:
        adapter: what made it.
        subject: whose it is.
        index: number of its prompt.
        prompt: the prompt's template, the same for all subjects.
        seed: of its noise.
        file: where it lies.
        values: metric -> cosine.
    """

    adapter: str
    subject: str
    index: int
    prompt: str
    seed: int
    file: Path
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Args:
        scores: picture by picture.
        real: subject -> metric -> mean cosine between its real pictures; None for fewer than two.
        expected: adapter -> how many pictures there should be.
        unreadable: file, why; generated and real ones.
        cut_texts: prompts that were too long for CLIP.
        labels: metric -> what tables call it.
        about: what must be said of the features where they are others than the protocol's; empty: they are those.
    """

    scores: Sequence[PictureScore]
    real: Mapping[str, Mapping[str, float | None]]
    expected: Mapping[str, int]
    unreadable: Sequence[tuple[Path, str]] = field(default_factory=tuple)
    cut_texts: Sequence[str] = field(default_factory=tuple)
    labels: Mapping[str, str] = field(default_factory=lambda: METRICS)
    about: str = ""

    @property
    def adapters(self) -> list[str]:
        """In the order of their first picture."""
        return list(dict.fromkeys(score.adapter for score in self.scores))

    @property
    def metrics(self) -> list[str]:
        """Those that were taken, in the protocol's order."""
        return [metric for metric in METRICS if any(metric in score.values for score in self.scores)]


def measure(
    sets: Sequence[GeneratedSet], extractors: Extractors, *, cache: Path | None = None, batch_size: int = 32
) -> Measured:
    """Score every generated picture; one that cannot be read is left out and named.

    Args:
        sets: from `read_sets`.
        extractors: what measures.
        cache: folder for features; None: they are not kept.
        batch_size: pictures at once.

    Raises:
        UserError: no picture of a subject can be read, or no real one.
    """
    pairs = (("dino", extractors.dino), ("clip", extractors.clip))
    chosen = {name: extractor for name, extractor in pairs if extractor is not None}
    caches = open_caches(chosen, cache)
    scores: list[PictureScore] = []
    real: dict[str, Mapping[str, float | None]] = {}
    unreadable: dict[Path, str] = {}
    cut: dict[str, None] = {}
    for number, each in enumerate(sets, start=1):
        files = each.files()
        names = f"{each.manifest.adapter}, {each.manifest.subject} ({number} of {len(sets)})"
        paths = [*each.references, *files.values()]
        found = features_of(paths, chosen, caches=caches, batch_size=batch_size, description=names)
        unreadable |= found.unreadable
        references = _stacked(found, each.references, chosen)
        if any(not len(rows) for rows in references.values()):
            raise UserError(f"none of the real pictures of {each.manifest.subject} can be read: {_first(unreadable)}")
        real[each.manifest.subject] = {
            metric: real_similarity(references[name])
            for metric, name in (("dino", "dino"), ("clip_i", "clip"))
            if name in references
        }
        scores += _score(
            each,
            {cell: path for cell, path in files.items() if path not in found.unreadable},
            found,
            references,
            extractors,
        )
        texts = [each.manifest.class_text(index) for index in range(len(each.manifest.prompts))]
        cut |= dict.fromkeys(text for text in texts if extractors.texts is not None and extractors.too_long(text))
    if not scores:
        raise UserError(f"none of the generated pictures can be read: {_first(unreadable)}")
    expected: dict[str, int] = {}
    for each in sets:
        expected[each.manifest.adapter] = expected.get(each.manifest.adapter, 0) + len(each.manifest.cells())
    labels = {**METRICS, **extractors.labels}
    return Measured(scores, real, expected, list(unreadable.items()), list(cut), labels, extractors.about)


def _first(unreadable: Mapping[Path, str]) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in list(unreadable.items())[:3]) or "there are none"


def _stacked(found: Found, paths: Iterable[Path], chosen: Mapping[str, Extractor]) -> dict[str, torch.Tensor]:
    rows = {name: [found.features[name][path] for path in paths if path in found.features[name]] for name in chosen}
    return {name: torch.stack(part) if part else torch.empty(0, 0) for name, part in rows.items()}


def _score(
    each: GeneratedSet,
    files: Mapping[tuple[int, int], Path],
    found: Found,
    references: Mapping[str, torch.Tensor],
    extractors: Extractors,
) -> list[PictureScore]:
    if not files:
        return []
    columns: dict[str, torch.Tensor] = {}
    for metric, name in (("dino", "dino"), ("clip_i", "clip")):
        if name in references:
            generated = torch.stack([found.features[name][path] for path in files.values()])
            columns[metric] = image_similarity(generated, references[name])
    if extractors.clip is not None and extractors.texts is not None:
        # the token means nothing to CLIP, so that the prompt is compared without it
        texts = extractors.texts([each.manifest.class_text(prompt) for prompt in range(len(each.manifest.prompts))])
        generated = torch.stack([found.features["clip"][path] for path in files.values()])
        columns["clip_t"] = text_similarity(generated, texts[[prompt for prompt, _ in files]])
    return [
        PictureScore(
            each.manifest.adapter,
            each.manifest.subject,
            prompt,
            each.manifest.prompts[prompt],
            seed,
            path,
            {metric: float(column[row]) for metric, column in columns.items()},
        )
        for row, ((prompt, seed), path) in enumerate(files.items())
    ]


def prompt_means(scores: Iterable[PictureScore], metric: str) -> dict[tuple[str, str, str], float]:
    """(adapter, subject, prompt) -> mean over its pictures."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        groups.setdefault((score.adapter, score.subject, score.prompt), []).append(score.values[metric])
    return {key: statistics.fmean(values) for key, values in groups.items()}


def subject_means(scores: Iterable[PictureScore], metric: str) -> dict[tuple[str, str], float]:
    """(adapter, subject) -> mean over its prompts, each with the same weight."""
    groups: dict[tuple[str, str], list[float]] = {}
    for (adapter, subject, _), value in prompt_means(scores, metric).items():
        groups.setdefault((adapter, subject), []).append(value)
    return {key: statistics.fmean(values) for key, values in groups.items()}


def over_subjects(scores: Iterable[PictureScore], metric: str) -> dict[str, Estimate]:
    """Adapter -> mean over its subjects, each with the same weight, and its interval."""
    groups: dict[str, list[float]] = {}
    for (adapter, _), value in subject_means(scores, metric).items():
        groups.setdefault(adapter, []).append(value)
    return {adapter: estimate(values) for adapter, values in groups.items()}


@dataclass(frozen=True)
class Comparison:
    """Two adapters on the pictures that both made.

    Args:
        first, second: the adapters.
        metric: what is compared.
        difference: of the first to the second, with its interval.
        over: what the interval is over: subjects, or the prompts of a single subject.
        pictures: how many pairs from the same subject, prompt and seed.
        of: how many pictures at least one of them made.
        better: share of the pairs in which the first is higher; ties count half.
    """

    first: str
    second: str
    metric: str
    difference: Estimate
    over: Literal["subjects", "prompts"]
    pictures: int
    of: int
    better: float


def compare(scores: Iterable[PictureScore], metric: str, first: str, second: str) -> Comparison | None:
    """Compare two adapters in pairs of pictures; None where they share none.

    Differences are averaged over seeds, then prompts, and the interval is over subjects: pictures of one subject are
    too much alike to count as independent. With a single subject it is over prompts.
    """
    by_adapter: dict[str, dict[tuple[str, str, int], float]] = {first: {}, second: {}}
    for score in scores:
        if score.adapter in by_adapter:
            by_adapter[score.adapter][score.subject, score.prompt, score.seed] = score.values[metric]
    one, other = by_adapter[first], by_adapter[second]
    shared = [cell for cell in one if cell in other]
    if not shared:
        return None
    groups: dict[str, dict[str, list[float]]] = {}
    for subject, prompt, seed in shared:
        difference = one[subject, prompt, seed] - other[subject, prompt, seed]
        groups.setdefault(subject, {}).setdefault(prompt, []).append(difference)
    prompts = {subject: [statistics.fmean(part) for part in parts.values()] for subject, parts in groups.items()}
    subjects = [statistics.fmean(values) for values in prompts.values()]
    single = len(subjects) == 1
    return Comparison(
        first,
        second,
        metric,
        estimate(next(iter(prompts.values())) if single else subjects),
        "prompts" if single else "subjects",
        len(shared),
        len({*one, *other}),
        statistics.fmean((one[cell] > other[cell]) + (one[cell] == other[cell]) / 2 for cell in shared),
    )
