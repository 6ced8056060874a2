"""`mosgoat eval study invite`: personal links, and which pairs each rater sees.

A link holds a token of 192 random bits; the database keeps its SHA-256 alone, so that a copy of the study lets nobody
in and a lost link is replaced, not looked up.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from eval.study.database import now

# As many as an evening of clicking; more is a slip of the finger.
MOST_RATERS = 1000


@dataclass(frozen=True)
class Invitation:
    """A person's token, known only now.

    Args:
        name: such as `rater 03`.
        token: what their link ends with.
    """

    name: str
    token: str


def token_hash(token: str) -> str:
    """What the database keeps of a token or of a session's secret; 192 random bits need no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def invite_raters(db: sqlite3.Connection, number: int, pairs_each: int | None) -> list[Invitation]:
    """Add raters, each with pairs of their own in an order of their own.

    Args:
        db: in a writing transaction.
        number: of raters.
        pairs_each: pairs for each; None: all of them.

    Raises:
        UserError: a number that is out of range.
    """
    (total,) = db.execute("SELECT count(*) FROM pairs").fetchone()
    if not 1 <= number <= MOST_RATERS:
        raise UserError(f"--raters={number} must be between 1 and {MOST_RATERS}")
    if pairs_each is not None and not 1 <= pairs_each <= total:
        raise UserError(f"--pairs={pairs_each} must be between 1 and {total}, the pairs of this study")
    (begun,) = db.execute("SELECT count(*) FROM people WHERE role = 'rater'").fetchone()
    made = []
    for position in range(begun + 1, begun + number + 1):
        invitation, person, seed = _add_person(db, f"rater {position:02}", "rater")
        _assign(db, person, seed, pairs_each or total)
        made.append(invitation)
    return made


def invite_organiser(db: sqlite3.Connection) -> Invitation:
    """Add a person who may see the results."""
    (begun,) = db.execute("SELECT count(*) FROM people WHERE role = 'organiser'").fetchone()
    return _add_person(db, f"organiser {begun + 1}", "organiser")[0]


def has_organiser(db: sqlite3.Connection) -> bool:
    """Whether somebody holds a link to the results."""
    return db.execute("SELECT 1 FROM people WHERE role = 'organiser' AND revoked_at IS NULL").fetchone() is not None


def renew(db: sqlite3.Connection, name: str) -> Invitation:
    """A new link for somebody who is in the study; the old one and all open sessions end, the answers stay."""
    person, token = _find(db, name), secrets.token_urlsafe(24)
    db.execute("UPDATE people SET token_hash = ?, revoked_at = NULL WHERE id = ?", (token_hash(token), person))
    db.execute("DELETE FROM sessions WHERE person = ?", (person,))
    return Invitation(name, token)


def revoke(db: sqlite3.Connection, name: str) -> None:
    """End somebody's link and sessions; their answers stay and count."""
    person = _find(db, name)
    db.execute("UPDATE people SET revoked_at = ? WHERE id = ?", (now(), person))
    db.execute("DELETE FROM sessions WHERE person = ?", (person,))


def _find(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()
    if row is None:
        known = [known for (known,) in db.execute("SELECT name FROM people ORDER BY id")]
        raise UserError(f"nobody in this study is called {name!r}; there are: {', '.join(known) or 'none yet'}")
    return row["id"]


def _add_person(db: sqlite3.Connection, name: str, role: str) -> tuple[Invitation, int, int]:
    token, seed = secrets.token_urlsafe(24), secrets.randbits(32)
    (person,) = db.execute(
        "INSERT INTO people (name, role, token_hash, seed, invited_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
        (name, role, token_hash(token), seed, now()),
    ).fetchone()
    return Invitation(name, token), person, seed


def _assign(db: sqlite3.Connection, rater: int, seed: int, number: int) -> None:
    rows = db.execute(
        "SELECT pairs.id, first, second, count(tasks.id) AS shown FROM pairs LEFT JOIN tasks ON tasks.pair = pairs.id "
        "GROUP BY pairs.id ORDER BY pairs.id"
    )
    pairs = [Assignable(row["id"], (row["first"], row["second"]), row["shown"]) for row in rows]
    for position, (pair, swapped) in enumerate(draw(pairs, number, random.Random(seed))):
        # The task's id stands in the rater's form: nobody can name another's.
        db.execute(
            "INSERT INTO tasks VALUES (?, ?, ?, ?, ?)", (secrets.token_urlsafe(12), rater, position, pair, swapped)
        )


@dataclass(frozen=True)
class Assignable:
    """A pair that may be given to a rater.

    Args:
        pair: its id.
        methods: the two methods' ids.
        shown: how many raters have it already.
    """

    pair: int
    methods: tuple[int, int]
    shown: int


def draw(pairs: Sequence[Assignable], number: int, dice: random.Random) -> list[tuple[int, bool]]:
    """Which pairs a rater sees, in which order, and which with the sides swapped.

    Every two methods get as many pairs as all others, to within one; among their pairs those that the fewest raters
    have come first. Half of the pairs of every two methods are swapped, to within one.

    Args:
        pairs: all pairs of the study.
        number: how many to take, at most all.
        dice: the rater's.

    Returns:
        (pair, swapped) in the order to show.
    """
    groups: dict[tuple[int, int], list[Assignable]] = defaultdict(list)
    for pair in pairs:
        groups[pair.methods].append(pair)
    for group in groups.values():
        dice.shuffle(group)
        group.sort(key=lambda pair: pair.shown, reverse=True)  # the last is the next; a stable sort keeps the shuffle
    shown = Counter({methods: sum(pair.shown for pair in group) for methods, group in groups.items()})
    taken: dict[tuple[int, int], list[int]] = defaultdict(list)
    order = dice.sample(sorted(groups), len(groups))
    for _ in range(number):
        open_groups = [methods for methods in order if groups[methods]]
        methods = min(open_groups, key=lambda methods: (len(taken[methods]), shown[methods]))
        taken[methods].append(groups[methods].pop().pair)
    drawn: list[tuple[int, bool]] = []
    for chosen in taken.values():
        half = len(chosen) // 2 + (dice.random() < 0.5 if len(chosen) % 2 else 0)
        swapped = [True] * half + [False] * (len(chosen) - half)
        dice.shuffle(swapped)
        drawn += zip(chosen, swapped, strict=True)
    dice.shuffle(drawn)
    return drawn
