"""What a rater is to answer next, and keeping the answer: once, whole, and never over another window's."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from eval.study.database import fact, now
from eval.study.questions import QUESTIONS, Question, Side, result_of, side_of


class UnknownTask(Exception):
    """The form names a task that this rater has not."""


class StaleAnswer(Exception):
    """The form is older than what is kept: an answer from another window, or of a pair further back than the last."""


@dataclass(frozen=True)
class Progress:
    """How far a rater is.

    Args:
        answered: pairs.
        total: pairs.
    """

    answered: int
    total: int

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return self.answered >= self.total


@dataclass(frozen=True)
class Task:
    """One pair as one rater sees it.

    Args:
        id: what the form calls it.
        position: 0..total−1.
        pair: its number in the database.
        swapped: whether the first method's picture is on the right.
        prompt: as it is shown.
        left: id of the picture on the left.
        right: id of the picture on the right.
        size: width and height of both.
        references: ids of the subject's pictures, with their sizes.
        answers: question -> side; empty while it is not answered.
        revision: how often it was answered.
    """

    id: str
    position: int
    pair: int
    swapped: bool
    prompt: str
    left: str
    right: str
    size: tuple[int, int]
    references: tuple[tuple[str, int, int], ...]
    answers: Mapping[str, Side]
    revision: int


def questions(db: sqlite3.Connection) -> list[Question]:
    """The questions of this study."""
    asked = fact(db, "questions")
    return [question for question in QUESTIONS if question.key in asked]


def progress(db: sqlite3.Connection, rater: int) -> Progress:
    """How far a rater is; answers are given in order, so that the answered pairs are the first ones."""
    (total,) = db.execute("SELECT count(*) FROM tasks WHERE rater = ?", (rater,)).fetchone()
    (answered,) = db.execute("SELECT count(DISTINCT pair) FROM votes WHERE rater = ?", (rater,)).fetchone()
    return Progress(answered, total)


def task_at(db: sqlite3.Connection, rater: int, position: int) -> Task | None:
    """The pair at a position of a rater's order; None outside of it."""
    row = db.execute(
        "SELECT tasks.*, items.subject, items.shown_prompt, first_picture, second_picture, width, height FROM tasks "
        "JOIN pairs ON pairs.id = tasks.pair JOIN items ON items.id = pairs.item "
        "JOIN pictures ON pictures.id = first_picture WHERE rater = ? AND position = ?",
        (rater, position),
    ).fetchone()
    if row is None:
        return None
    swapped = bool(row["swapped"])
    left, right = row["first_picture"], row["second_picture"]
    if swapped:
        left, right = right, left
    references = db.execute(
        "SELECT picture, width, height FROM reference_pictures JOIN pictures ON pictures.id = picture "
        "WHERE subject = ? ORDER BY position",
        (row["subject"],),
    )
    votes = _votes(db, rater, row["pair"])
    return Task(
        id=row["id"],
        position=row["position"],
        pair=row["pair"],
        swapped=swapped,
        prompt=row["shown_prompt"],
        left=left,
        right=right,
        size=(row["width"], row["height"]),
        references=tuple((picture, width, height) for picture, width, height in references),
        answers={vote["question"]: side_of(vote["result"], swapped) for vote in votes},
        revision=max((vote["revision"] for vote in votes), default=0),
    )


def record(db: sqlite3.Connection, rater: int, task_id: str, answers: Mapping[str, Side], revision: int) -> None:
    """Keep a rater's answers to the next pair, or changed ones to the last.

    The same form sent twice counts once.

    Args:
        db: in a writing transaction.
        rater: who answers.
        task_id: the form's.
        answers: one for each question of the study.
        revision: the task's, as the form was shown.

    Raises:
        UnknownTask: the task is not this rater's.
        StaleAnswer: the pair has another answer by now, or is neither the next nor the last.
    """
    assert answers.keys() == {question.key for question in questions(db)}, answers
    row = db.execute("SELECT position FROM tasks WHERE id = ? AND rater = ?", (task_id, rater)).fetchone()
    task = task_at(db, rater, row["position"]) if row is not None else None
    if task is None:
        raise UnknownTask(task_id)
    if task.answers and dict(task.answers) == dict(answers):
        return
    following = progress(db, rater).answered
    if revision != task.revision or task.position not in (following - 1, following):
        raise StaleAnswer(task_id)
    for question, side in answers.items():
        db.execute(
            "INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (rater, pair, question) DO UPDATE SET "
            "result = excluded.result, revision = excluded.revision, answered_at = excluded.answered_at",
            (rater, task.pair, question, result_of(side, task.swapped), task.revision + 1, now()),
        )


def _votes(db: sqlite3.Connection, rater: int, pair: int) -> list[sqlite3.Row]:
    return db.execute(
        "SELECT question, result, revision FROM votes WHERE rater = ? AND pair = ?", (rater, pair)
    ).fetchall()
