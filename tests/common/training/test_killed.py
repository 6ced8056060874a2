"""Runs that are killed, on one process and on two; `scenarios.py` makes them once for all tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.common.training.scenarios import final
from tests.common.training.test_fit import ROUNDING, assert_close_lines
from tests.common.training.toy import lines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.common.training.scenarios", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        pytest.param("killed", "whole", id="kill -9 between two checkpoints, twice"),
        pytest.param("killed_in_save", "whole", id="kill -9 in the middle of a save"),
        pytest.param("two_killed", "two_random", id="kill -9 of one of two processes"),
        pytest.param("two_terminated", "two_random", id="SIGTERM to one of two processes"),
    ],
)
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_by_bit(runs: Path, name: str, whole: str) -> None:
    assert lines(runs / name) == lines(runs / whole)
    assert (runs / name / "router_load.jsonl").read_text() == (runs / whole / "router_load.jsonl").read_text()
    expected = final(runs / whole)
    for key, value in final(runs / name).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", ["two", "two_then_one"])
def test_two_processes_give_the_trajectory_of_one(runs: Path, name: str) -> None:
    expected = final(runs / "one")
    for key, value in final(runs / name).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=ROUNDING, msg=key)
    assert_close_lines(lines(runs / name), lines(runs / "one"))
    # counts of tokens, whole numbers summed over the processes
    assert (runs / name / "router_load.jsonl").read_text() == (runs / "one" / "router_load.jsonl").read_text()


def test_a_refusal_reaches_every_process(runs: Path) -> None:
    assert (runs / "refused").read_text() == "2 2"
