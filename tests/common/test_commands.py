"""Checks that commands share."""

import math

import pytest

from common.commands import require_between, require_one_process
from common.errors import UserError


@pytest.mark.parametrize("value", [0, -1, 2**20 + 1, math.nan])
def test_a_number_out_of_range_is_refused_with_the_range(value: float) -> None:
    with pytest.raises(UserError, match=rf"--batch-size={value} must be from 1 to 1048576"):
        require_between("--batch-size", value)


def test_the_bounds_themselves_are_allowed() -> None:
    for value in (1, 2**20):
        require_between("--batch-size", value)


def test_several_processes_are_refused_where_one_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    require_one_process("mosgoat x", "split it")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="mosgoat x is one process; split it"):
        require_one_process("mosgoat x", "split it")
