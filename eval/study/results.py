"""Counting a study's votes, as [M] Table 6 does: wins, ties and losses of one method against another."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from eval.study.database import fact
from eval.study.questions import QUESTIONS, RESULTS, Question, Result, side_of
from eval.study.rating import questions
from eval.study.statistics import delta_interval, fleiss_kappa, wilson

_SCORES = {"first": 1, "tie": 0, "second": -1}


@dataclass(frozen=True)
class Share:
    """A part of the votes.

    Args:
        count: votes.
        value: of all votes of the comparison, in [0, 1].
        low: Wilson's 95 % interval of `value`.
        high: its upper bound.
    """

    count: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One question about two methods.

    Args:
        question: which.
        first: the method whose wins are counted.
        second: the other one.
        votes: how many there are; the shares below are of these.
        win: votes for `first`.
        tie: votes for neither.
        loss: votes for `second`.
        delta_low: lower bound of Δ over raters and pairs; None with fewer than two of either.
        delta_high: its upper bound.
        kappa: Fleiss' kappa; None where it is not defined.
        raters: who voted.
        pairs: that were voted on.
        shared_pairs: pairs with two votes or more, on which kappa rests.
        left: share of the votes for the picture on the left among those that are no ties; None without any.
    """

    question: Question
    first: str
    second: str
    votes: int
    win: Share
    tie: Share
    loss: Share
    delta_low: float | None
    delta_high: float | None
    kappa: float | None
    raters: int
    pairs: int
    shared_pairs: int
    left: float | None

    @property
    def delta(self) -> float:
        """Δ of [M] Table 6: share of wins less share of losses."""
        return self.win.value - self.loss.value


@dataclass(frozen=True)
class RaterProgress:
    """How far a rater is.

    Args:
        name: such as `rater 03`.
        answered: pairs.
        total: pairs.
        revoked: the link has been ended.
        last: when the last answer came, UTC; empty before the first.
    """

    name: str
    answered: int
    total: int
    revoked: bool
    last: str


@dataclass(frozen=True)
class StudyResults:
    """What a study has found so far.

    Args:
        title: of the study.
        created_at: when it was made.
        methods: in the organiser's order.
        pairs: in the study.
        raters: who was invited.
        comparisons: every two methods that share pairs, every question; also those without a vote.
    """

    title: str
    created_at: str
    methods: Sequence[str]
    pairs: int
    raters: Sequence[RaterProgress]
    comparisons: Sequence[Comparison]

    @property
    def votes(self) -> int:
        """All votes."""
        return sum(comparison.votes for comparison in self.comparisons)

    @property
    def finished(self) -> int:
        """Raters who have answered everything."""
        return sum(rater.answered == rater.total for rater in self.raters)


@dataclass(frozen=True)
class Vote:
    """One answer: whose, on which pair, and what it says."""

    rater: int
    pair: int
    result: Result
    swapped: bool


def count(db: sqlite3.Connection) -> StudyResults:
    """Count everything that has been answered; raters who stopped half-way count with what they answered."""
    methods = {row["id"]: row["name"] for row in db.execute("SELECT id, name FROM methods ORDER BY id")}
    votes: dict[tuple[str, int, int], list[Vote]] = defaultdict(list)
    for row in db.execute(
        "SELECT votes.rater, votes.pair, question, result, swapped, first, second FROM votes "
        "JOIN tasks USING (rater, pair) JOIN pairs ON pairs.id = votes.pair ORDER BY votes.rater, votes.pair"
    ):
        key = (row["question"], row["first"], row["second"])
        votes[key].append(Vote(row["rater"], row["pair"], row["result"], bool(row["swapped"])))
    compared = {(row["first"], row["second"]) for row in db.execute("SELECT DISTINCT first, second FROM pairs")}
    return StudyResults(
        title=fact(db, "title"),
        created_at=fact(db, "created_at"),
        methods=list(methods.values()),
        pairs=db.execute("SELECT count(*) FROM pairs").fetchone()[0],
        raters=_raters(db),
        comparisons=[
            compare(question, methods[first], methods[second], votes[question.key, first, second])
            for first, second in combinations(methods, 2)
            if (first, second) in compared
            for question in questions(db)
        ],
    )


def compare(question: Question, first: str, second: str, votes: Sequence[Vote]) -> Comparison:
    """The numbers of one question about two methods."""
    assert question in QUESTIONS, question
    counts = Counter(vote.result for vote in votes)
    by_pair: dict[int, Counter[Result]] = defaultdict(Counter)
    for vote in votes:
        by_pair[vote.pair][vote.result] += 1
    interval = delta_interval(
        [vote.rater for vote in votes], [vote.pair for vote in votes], [_SCORES[vote.result] for vote in votes]
    )
    sides = Counter(side_of(vote.result, vote.swapped) for vote in votes)
    decided = sides["left"] + sides["right"]
    return Comparison(
        question=question,
        first=first,
        second=second,
        votes=len(votes),
        win=_share(counts["first"], len(votes)),
        tie=_share(counts["tie"], len(votes)),
        loss=_share(counts["second"], len(votes)),
        delta_low=None if interval is None else interval[0],
        delta_high=None if interval is None else interval[1],
        kappa=fleiss_kappa([[pair[result] for result in RESULTS] for pair in by_pair.values()]),
        raters=len({vote.rater for vote in votes}),
        pairs=len(by_pair),
        shared_pairs=sum(pair.total() > 1 for pair in by_pair.values()),
        left=sides["left"] / decided if decided else None,
    )


def _share(successes: int, n: int) -> Share:
    return Share(successes, successes / n if n else 0.0, *wilson(successes, n))


def _raters(db: sqlite3.Connection) -> list[RaterProgress]:
    rows = db.execute(
        "SELECT name, revoked_at, (SELECT count(*) FROM tasks WHERE rater = people.id) AS total, "
        "(SELECT count(DISTINCT pair) FROM votes WHERE rater = people.id) AS answered, "
        "(SELECT max(answered_at) FROM votes WHERE rater = people.id) AS last "
        "FROM people WHERE role = 'rater' ORDER BY id"
    )
    return [
        RaterProgress(row["name"], row["answered"], row["total"], row["revoked_at"] is not None, row["last"] or "")
        for row in rows
    ]
