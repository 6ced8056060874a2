"""Who sees which pairs, and what the database knows of a link."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from common.errors import UserError
from eval.study import inviting
from eval.study.database import Study
from eval.study.inviting import Assignable, draw
from tests.eval.study.world import client_of, enter, invite, organiser


def pairs(per_group: int, groups: int = 3) -> list[Assignable]:
    return [Assignable(g * per_group + n, (g, g + 1), 0) for g in range(groups) for n in range(per_group)]


def test_each_rater_sees_every_pair_once_in_an_order_of_their_own() -> None:
    orders = [[pair for pair, _ in draw(pairs(10), 30, random.Random(seed))] for seed in range(5)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_sides_are_balanced_for_every_two_methods() -> None:
    for seed in range(20):
        drawn = draw(pairs(7), 21, random.Random(seed))
        for group in range(3):
            swapped = [is_swapped for pair, is_swapped in drawn if pair // 7 == group]
            assert sum(swapped) in (3, 4)


def test_the_side_is_a_coin_toss_at_every_position() -> None:
    # 2000 raters of 2 pairs each; 4 deviations of a fair coin: 1000 ± 90
    heads = sum(draw(pairs(2, 1), 2, random.Random(seed))[0][1] for seed in range(2000))
    assert 910 <= heads <= 1090


def test_a_part_of_the_pairs_is_spread_evenly_over_methods_and_pairs() -> None:
    shown: Counter[int] = Counter()
    for seed in range(9):
        now = [Assignable(pair.pair, pair.methods, shown[pair.pair]) for pair in pairs(10)]
        drawn = [pair for pair, _ in draw(now, 10, random.Random(seed))]
        assert sorted(Counter(pair // 10 for pair in drawn).values()) == [3, 3, 4]
        shown.update(drawn)
    assert set(shown.values()) == {3}  # 9 raters × 10 = 30 pairs × 3


def test_the_same_seed_gives_the_same_order() -> None:
    assert draw(pairs(5), 9, random.Random(3)) == draw(pairs(5), 9, random.Random(3))


def test_a_copy_of_the_study_lets_nobody_in(study: Study) -> None:
    tokens = [*invite(study, 2), organiser(study)]
    assert all(len(token) >= 32 for token in tokens)
    secret = enter(study, tokens[0]).cookies["study"]
    content = b"".join(file.read_bytes() for file in study.path.iterdir() if file.is_file())
    for word in (*tokens, secret):
        assert word.encode() not in content


def test_revoking_ends_link_and_sessions_and_renewing_brings_the_rater_back(study: Study) -> None:
    (token,) = invite(study)
    client = enter(study, token)
    with study.writing() as db:
        inviting.revoke(db, "rater 01")
    assert client.get("/rate").status_code == 401
    assert client_of(study).get(f"/enter/{token}").status_code == 401
    with study.writing() as db:
        renewed = inviting.renew(db, "rater 01")
    assert client_of(study).get(f"/enter/{token}").status_code == 401
    assert enter(study, renewed.token).get("/rate").status_code == 200


def test_impossible_invitations_are_refused(study: Study) -> None:
    for number, each, message in (
        (0, None, "--raters=0"),
        (1, 7, "--pairs=7 must be between 1 and 6"),
        (1, 0, "--pairs=0"),
    ):
        with study.writing() as db, pytest.raises(UserError, match=message):
            inviting.invite_raters(db, number, each)
    with study.writing() as db, pytest.raises(UserError, match="there are: none yet"):
        inviting.renew(db, "rater 01")
