"""The end of a training."""

import json
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from common.errors import UserError
from common.reporting import ending
from common.reporting.ending import Ending, end_run
from common.reporting.samples import Sample, Samples
from common.training import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path / "run", {"seed": 0}, resume="auto")
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_accuracy": 0.5}]
    made.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def told(samples: Samples | None = None) -> Ending:
    results = {"task": "t", "metrics": {"x": 1.0}, "n": 3, "seed": 0, "method": "lora"}
    return Ending("LoRA", nn.Linear(2, 2), results, samples)


def test_curves_samples_and_results_are_left(run: RunDirectory) -> None:
    samples = Samples("labels", "one", [Sample(Image.new("RGB", (4, 4)))])
    results = end_run(run, lambda: told(samples))
    assert json.loads(run.results.read_text()) == results
    assert (results["task"], results["metrics"], results["config_hash"]) == ("t", {"x": 1.0}, run.config_hash)
    assert sorted(path.name for path in run.plots.iterdir()) == ["eval_accuracy.png", "loss.png"]
    assert (run.path / "samples" / "samples.json").is_file()


def test_a_run_without_samples_is_finished_too(run: RunDirectory) -> None:
    end_run(run, told)
    assert run.results.is_file()
    assert not (run.path / "samples").exists()


@pytest.mark.parametrize("step", ["write_diagnostics", "write_samples"])
def test_what_fails_before_the_end_leaves_the_run_unfinished(
    step: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ending, step, full)
    with pytest.raises(UserError, match="space"):
        end_run(run, lambda: told(Samples("labels", "", [])))
    assert not run.results.exists()
