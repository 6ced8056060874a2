"""What the demo's finished runs say, and how much of it is chance.

S: seeds, N: test pictures, C: classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.reporting.groups import RunGroup
from common.reporting.labels import method_label
from common.reporting.runs import Run, read_run
from common.reporting.tables import Spread

RESAMPLES = 4000


@dataclass(frozen=True)
class MethodRuns:
    """All finished runs of one method, in the order of their seeds.

    Args:
        method: its name.
        seeds: S seeds.
        runs: S run directories as read.
        pictures: N file names, below the folder of the data set.
        labels: N names of the true classes.
        predicted: (S, N) names of the predicted classes.
    """

    method: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    pictures: tuple[str, ...]
    labels: npt.NDArray[np.str_]
    predicted: npt.NDArray[np.str_]

    @property
    def group(self) -> RunGroup:
        """The runs under the method's name, as reports take them."""
        return RunGroup(method_label(self.method), self.runs)  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """C."""
        return len(set(self.labels.tolist()))

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(S, N): whether the prediction was right."""
        return self.predicted == self.labels

    @property
    def accuracies(self) -> list[float]:
        """S test accuracies in [0, 1]."""
        return [float(share) for share in self.correct.mean(axis=1)]

    def metric(self, name: str) -> Spread:
        """Mean and spread over the seeds of one number of the results."""
        return Spread.of(float(run.results["metrics"][name]) for run in self.runs)

    def confusion(self, classes: Sequence[str]) -> npt.NDArray[np.int64]:
        """(C, C) counts [true, predicted], summed over the seeds."""
        number = {name: index for index, name in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)), np.int64)
        for guesses in self.predicted:
            np.add.at(counts, ([number[name] for name in self.labels], [number[name] for name in guesses]), 1)
        return counts


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus another's, over the seeds that both have.

    Args:
        mean: in points of percent.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        seeds: number of seeds, S.
        agreeing: in how many of them the difference has the sign of the mean.
    """

    mean: float
    low: float
    high: float
    seeds: int
    agreeing: int

    @property
    def is_shown(self) -> bool:
        """Whether the runs carry the claim that the methods differ: several seeds, all with the same sign, and
        an interval without zero."""
        return self.seeds > 1 and self.agreeing == self.seeds and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        """The difference with its interval, in points."""
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def read_predictions(run: Path) -> tuple[list[str], list[str], list[str]]:
    """File names, true and predicted classes of a run's `predictions.csv`.

    Raises:
        UserError: the file is missing or lacks a column.
    """
    file = run / "predictions.csv"
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return tuple([row[key] for row in rows] for key in ("name", "label", "predicted"))  # type: ignore[return-value]
    except (OSError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error!r}); delete {run} and run the demo again") from None


def collect(paths: Mapping[str, Mapping[int, Path]]) -> list[MethodRuns]:
    """Read finished runs.

    Args:
        paths: method -> seed -> run directory.

    Raises:
        UserError: a run is damaged, or was measured on other pictures than the rest.
    """
    found: list[MethodRuns] = []
    for method, by_seed in paths.items():
        read = [read_predictions(path) for path in by_seed.values()]
        names, labels = read[0][0], read[0][1]
        pictures = found[0].pictures if found else tuple(names)
        if any(tuple(other) != pictures for other, _, _ in read):
            raise UserError(f"the runs of {method} were not measured on the same pictures; delete them and run again")
        found.append(
            MethodRuns(
                method,
                tuple(by_seed),
                tuple(read_run(path) for path in by_seed.values()),
                pictures,
                np.asarray(labels),
                np.asarray([predicted for _, _, predicted in read]),
            )
        )
    return found


def difference(ours: MethodRuns, other: MethodRuns) -> Difference | None:
    """Compare two methods picture by picture and seed by seed; None if they share no seed.

    The interval is a percentile bootstrap that draws seeds and pictures anew, both with replacement. It knows
    the chance of these seeds and of these pictures, and nothing about other tasks or settings.
    """
    shared = [seed for seed in ours.seeds if seed in other.seeds]
    if not shared:
        return None
    mine = ours.correct[[ours.seeds.index(seed) for seed in shared]]
    theirs = other.correct[[other.seeds.index(seed) for seed in shared]]
    gains = mine.astype(np.int64) - theirs  # (S, N): 1, 0 or -1
    seeds, pictures = gains.shape
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    of_pictures = rng.multinomial(pictures, [1 / pictures] * pictures, RESAMPLES) / pictures
    drawn = 100 * np.einsum("rs,sn,rn->r", of_seeds, gains, of_pictures, optimize=True)
    low, high = np.percentile(drawn, [2.5, 97.5])
    each = gains.mean(axis=1)
    agreeing = int((np.sign(each) == np.sign(gains.mean())).sum())
    return Difference(100 * float(gains.mean()), float(low), float(high), seeds, agreeing)
