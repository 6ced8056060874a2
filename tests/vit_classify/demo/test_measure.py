"""Reading the demo's runs and comparing methods: the numbers, and what may be said of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.errors import UserError
from vit_classify.demo.measure import Difference, collect, difference
from vit_classify.demo.report import verdict

CLASSES = ("one", "two", "three")
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str, right: np.ndarray, seconds: float = 3.0) -> Path:
        path = tmp_path / name
        path.mkdir()
        labels = [CLASSES[index % 3] for index in range(len(right))]
        lines = ["name,label,predicted,confidence"]
        for index, (label, hit) in enumerate(zip(labels, right, strict=True)):
            guess = label if hit else CLASSES[(CLASSES.index(label) + 1) % 3]
            lines.append(f"test/{label}/{index:03d}.png,{label},{guess},0.5")
        (path / "predictions.csv").write_text("\n".join(lines) + "\n")
        (path / "config.yaml").write_text(yaml.safe_dump({"seed": 0}))
        metrics = {"accuracy": float(np.mean(right)), "train_seconds": seconds, "trainable_parameters": 12}
        (path / "results.json").write_text(json.dumps({"metrics": metrics}))
        return path

    return make


def _right(share: float, seed: int, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_accuracy_and_confusion_come_from_the_predictions(make_run: MakeRun):
    [runs] = collect({"lora": {0: make_run("a", np.array([1, 1, 0])), 1: make_run("b", np.array([1, 0, 0]))}})
    assert runs.accuracies == pytest.approx([2 / 3, 1 / 3])
    # Over both seeds: "one" right twice, "two" right once and once taken for "three", "three" twice for "one".
    assert runs.confusion(CLASSES).tolist() == [[2, 0, 0], [0, 1, 1], [2, 0, 0]]
    assert runs.metric("train_seconds").mean == 3.0


def test_a_clear_difference_is_shown(make_run: MakeRun):
    paths = {
        "linear_probe": {seed: make_run(f"p{seed}", _right(0.5, seed)) for seed in range(3)},
        "lora": {seed: make_run(f"l{seed}", _right(0.8, 10 + seed)) for seed in range(3)},
    }
    probe, lora = collect(paths)
    found = difference(lora, probe)
    assert found is not None
    assert found.is_shown
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(100 * (np.mean(lora.accuracies) - np.mean(probe.accuracies)))


def test_a_difference_within_chance_is_not_shown(make_run: MakeRun):
    paths = {
        "lora": {seed: make_run(f"l{seed}", _right(0.70, seed)) for seed in range(3)},
        "goat": {seed: make_run(f"g{seed}", _right(0.70, 10 + seed)) for seed in range(3)},
    }
    lora, goat = collect(paths)
    found = difference(goat, lora)
    assert found is not None
    assert found.low < 0 < found.high
    assert not found.is_shown


def test_interval_is_as_wide_as_independent_answers_make_it(make_run: MakeRun):
    # One seed, so only the pictures are drawn anew: the standard error of a mean of N differences.
    [lora] = collect({"lora": {0: make_run("l", _right(0.5, 1, 900))}})
    [goat] = collect({"goat": {0: make_run("g", _right(0.5, 2, 900))}})
    found = difference(goat, lora)
    assert found is not None
    gains = goat.correct[0].astype(float) - lora.correct[0]
    expected = 2 * 1.96 * 100 * gains.std() / 30
    assert found.high - found.low == pytest.approx(expected, rel=0.1)  # 4000 resamples: about 3 % of noise


def test_difference_uses_only_shared_seeds(make_run: MakeRun):
    [lora] = collect({"lora": {0: make_run("l0", np.ones(9)), 1: make_run("l1", np.zeros(9))}})
    [goat] = collect({"goat": {1: make_run("g1", np.ones(9))}})
    found = difference(goat, lora)
    assert found is not None
    assert (found.mean, found.seeds) == (100.0, 1)
    [other] = collect({"goat": {5: make_run("g5", np.ones(9))}})
    assert difference(other, lora) is None


def test_one_seed_never_shows_a_difference():
    assert not Difference(30.0, 20.0, 40.0, seeds=1, agreeing=1).is_shown
    assert "One seed cannot show" in verdict("GOAT", "LoRA", Difference(30.0, 20.0, 40.0, seeds=1, agreeing=1))


@pytest.mark.parametrize(
    ("compared", "phrase"),
    [
        (Difference(5.0, 2.0, 8.0, 3, 3), "GOAT is better here, in all 3 seeds"),
        (Difference(-5.0, -8.0, -2.0, 3, 3), "GOAT is worse here, in all 3 seeds"),
        (Difference(2.0, -1.0, 5.0, 3, 3), "do not show a difference"),
        (Difference(5.0, 0.5, 8.0, 3, 2), "do not show a difference"),
    ],
)
def test_verdict_says_no_more_than_the_interval_and_the_seeds_carry(compared: Difference, phrase: str):
    assert phrase in verdict("GOAT", "LoRA", compared)


def test_runs_on_other_pictures_are_refused(make_run: MakeRun):
    paths = {"lora": {0: make_run("a", np.ones(9)), 1: make_run("b", np.ones(12))}}
    with pytest.raises(UserError, match="not measured on the same pictures"):
        collect(paths)


def test_a_run_without_predictions_names_the_file(make_run: MakeRun):
    path = make_run("a", np.ones(3))
    (path / "predictions.csv").unlink()
    with pytest.raises(UserError, match=r"predictions\.csv.*run the demo again"):
        collect({"lora": {0: path}})
