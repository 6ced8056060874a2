"""A sweep through the command line: cells, the paper's table, going on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.commands import results, run_command

pytestmark = pytest.mark.slow

BASE = (
    "--config vit_classify/recipes/tiny.yaml --datasets dtd --train.max_steps 3 --train.warmup_steps 1 "
    "--train.save_every 0"
).split()


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """As many classes as DTD has, so that the set may bear its name; the pictures are noise."""
    random = np.random.default_rng(0)
    for number in range(47):
        for split, count in (("train", 3), ("test", 1)):
            folder = tmp_path / "noise" / split / f"texture_{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "noise"


def test_sweep_goes_on_where_it_stopped_and_prints_the_papers_table(noise: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    base = [*BASE, "--data.source", str(noise)]
    first = run_command("vit", "sweep", *base, "--methods", "lora", "--output", str(output))
    assert "GOAT" in first.stdout
    assert "81.49" in first.stdout  # [G] Table 1, GOAT's average
    written = (output / "dtd" / "lora" / "seed0" / "results.json").stat().st_mtime_ns

    second = run_command("vit", "sweep", *base, "--methods", "lora,goat", "--output", str(output))
    assert "1 of them finished before" in second.stdout
    assert (output / "dtd" / "lora" / "seed0" / "results.json").stat().st_mtime_ns == written
    table = (output / "table.md").read_text(encoding="utf-8")
    for method in ("lora", "goat"):
        accuracy = results(output / "dtd" / method / "seed0")["metrics"]["accuracy"]
        assert f"{accuracy * 100:.2f}" in table
    assert json.loads((output / "table.json").read_text(encoding="utf-8"))

    changed = run_command(
        "vit", "sweep", *base, "--methods", "goat", "--adapter.r", "16", "--output", str(output), status=2
    )
    assert "adapter.r was 8, is 16" in changed.stderr
