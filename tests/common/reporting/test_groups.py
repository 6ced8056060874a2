"""Runs under names by which a reader tells them apart."""

from pathlib import Path
from typing import Any

import pytest

from common.reporting.groups import RunGroup, differing_keys, group_runs
from common.reporting.runs import Run
from common.reporting.tables import Spread


def run(name: str = "a", *, method: str = "lora", dataset: str = "dtd", seed: int = 0, r: int = 8, **more: Any) -> Run:
    config = {
        "adapter": {"method": method, "r": r},
        "data": {"name": dataset, "cache_dir": name},
        "train": {"learning_rate": 0.1, **more},
        "seed": seed,
        "output": f"runs/{name}",
    }
    results = {
        "task": "vit_classify",
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "metrics": {"accuracy": r / 10},
    }
    lines = [{"step": 1, "loss": 2.0 + seed}, {"step": 2, "loss": 1.0}] + ([{"step": 3, "loss": 0.5}] if seed else [])
    return Run(Path("runs", name), config, results, lines)


def labels(*runs: Run) -> list[str]:
    return [group.label for group in group_runs(runs)]


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    groups = group_runs([run("b", seed=1), run("c", method="goat"), run("a", seed=0)])
    assert [(group.label, group.seeds) for group in groups] == [("LoRA", [0, 1]), ("GOAT", [0])]
    assert groups[0].metric("accuracy") == Spread.of([0.8, 0.8])


def test_the_same_seed_twice_is_no_second_draw() -> None:
    groups = group_runs([run("a"), run("b"), run("c", seed=1)])
    assert [(group.label, group.seeds) for group in groups] == [("LoRA, a", [0, 1]), ("LoRA, b", [0])]


def test_names_say_the_data_set_where_it_differs() -> None:
    assert labels(run(), run(dataset="cars")) == ["LoRA, dtd", "LoRA, cars"]


def test_names_say_the_keys_that_differ() -> None:
    assert labels(run(r=4), run(r=8), run(method="goat")) == ["LoRA, r=4", "LoRA, r=8", "GOAT"]


def test_no_name_is_longer_than_three_keys_allow_and_all_are_different() -> None:
    many: dict[str, Any] = dict.fromkeys(("k1", "k2", "k3", "k4"), 1)
    found = labels(run("one", **many), run("two", **{**many, "k4": 2}), run("three", **dict.fromkeys(many, 3)))
    assert len(set(found)) == 3
    assert all(name.count("=") <= 3 for name in found)


def test_runs_of_different_pipelines_are_never_one_group() -> None:
    other = run()
    other = Run(other.path, other.config, {**other.results, "task": "llava"}, other.metrics)
    assert len(group_runs([run(), other])) == 2


def test_a_course_is_the_mean_at_the_steps_that_every_seed_logged() -> None:
    group = group_runs([run(seed=0), run(seed=1)])[0]
    assert group.course("loss") == ([1.0, 2.0], [2.5, 1.0])
    assert group.course("absent") == ([], [])


def test_a_metric_that_a_run_lacks_is_none() -> None:
    assert RunGroup("a", (run(),)).metric("f1") is None


@pytest.mark.parametrize("key", ["output", "seed", "cache_dir"])
def test_where_and_when_is_no_difference(key: str) -> None:
    assert not [found for found in differing_keys([run("a", seed=1).config, run("b").config]) if found.endswith(key)]
