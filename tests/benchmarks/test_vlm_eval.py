"""The benchmark runs as a script and gives every figure that it promises; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_run_gives_every_ratio_and_no_answer_changes(tmp_path: Path) -> None:
    options = ["--threads", "1", "--questions", "3", "--repeats", "1", "--json", str(tmp_path / "out.json")]
    command = [sys.executable, "benchmarks/vlm_eval.py", *options]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["environment"] in printed
    assert len(content["sections"]) == 2
    for count, rows in zip((12, 6), content["sections"].values(), strict=True):
        assert [row["ratio"] is None for row in rows] == [True, False, False]
        assert all(row["value"] > 0 for row in rows)
        assert all(f"0 of {count} answers changed" in row["what"] for row in rows[1:])
