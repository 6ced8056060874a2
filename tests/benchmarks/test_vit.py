"""The benchmark runs as a script and gives every figure that it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_run_gives_every_ratio_as_a_table_and_as_json(tmp_path: Path) -> None:
    small = "--model ViT-S-32-alt --batch 1 --repeats 1 --pictures 4 --device cpu --precision float32 --json".split()
    command = [sys.executable, "benchmarks/vit.py", *small, str(tmp_path / "vit.json")]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "vit.json").read_text())
    rows = [row for section in content["sections"].values() for row in section]
    ratios = {(row["what"], row["over"]) for row in rows if row["ratio"] is not None}
    steps = {(f"{method} step", "frozen forward+backward") for method in ("lora", "moslora", "goat")}
    attention = {(f"split attention, {what}", "open_clip's own") for what in ("forward", "forward+backward")}
    assert steps | attention | {("cache, whole path on the CPU", "PIL + torchvision")} <= ratios
    assert all(row["value"] > 0 for row in rows)
    assert content["environment"] in printed
    assert printed.count("\n|") == len(rows) + len(content["sections"]) + 2
