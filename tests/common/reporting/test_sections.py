"""The parts of a report: what they show of many runs."""

from pathlib import Path

import pytest

from common.reporting.groups import RunGroup, by_setting, group_runs
from common.reporting.page import Figures, Folded, Heading, Text
from common.reporting.recipe_sections import recipe_section
from common.reporting.runs import Run
from common.reporting.sections import cost_section, curve_figures, results_section, shown, training_section
from common.reporting.tables import Table


def run(name: str, *, task: str = "vit_classify", dataset: str = "dtd", rate: float = 0.1, **metrics: float) -> Run:
    config = {"adapter": {"method": "lora"}, "data": {"name": dataset}, "train": {"learning_rate": rate}}
    results = {"task": task, "method": "lora", "dataset": dataset, "seed": 0, "n": 4, "metrics": metrics}
    return Run(Path("runs", name), config, results, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])


def many(count: int) -> list[RunGroup]:
    return group_runs([run(str(i), rate=i, accuracy=0.5) for i in range(count)])


def test_a_setting_is_a_row_over_its_data_sets() -> None:
    groups = group_runs([run("a"), run("b", dataset="cars"), run("c", rate=0.2)])
    assert {name: len(members) for name, members in by_setting(groups).items()} == {
        "LoRA, learning_rate=0.1": 2,
        "LoRA, learning_rate=0.2": 1,
    }


def test_names_use_the_keys_that_tell_most_and_no_empty_ones() -> None:
    few = [run("a", rate=0.1), run("b", rate=0.30000000000000004), run("c", rate=0.5)]
    configs = [{"a": {"b": i == 0, "path": None if i else "x" * 50}, **each.config} for i, each in enumerate(few)]
    labels = [
        group.label for group in group_runs([Run(r.path, c, r.results, []) for r, c in zip(few, configs, strict=True)])
    ]
    assert labels == [f"LoRA, learning_rate={rate}" for rate in ("0.1", "0.3", "0.5")]


def test_a_long_value_is_cut_at_its_beginning() -> None:
    runs = [Run(Path("a"), {"data": {"path": f"/{'x' * 80}/{end}"}}, run("a").results, []) for end in "ab"]
    assert [group.label for group in group_runs(runs)] == [f"LoRA, path=…{'x' * 29}/{end}" for end in "ab"]


def test_only_the_first_of_many_are_shown_and_it_is_said() -> None:
    assert shown([1, 2], 2, "things") == ([1, 2], [])
    some, [note] = shown([1, 2, 3], 2, "things")
    assert (some, note) == ([1, 2], Text("The first 2 of 3 things; give fewer paths to see the others."))


def test_no_picture_has_more_lines_than_there_are_markers(tmp_path: Path) -> None:
    assert len(curve_figures(many(17), tmp_path, "loss")) == 3


def test_data_sets_and_pipelines_have_curves_of_their_own(tmp_path: Path) -> None:
    groups = group_runs([run("a"), run("b", dataset="cars"), run("c", task="llava")])
    section = training_section(groups, tmp_path)
    assert section is not None
    headings = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert headings == ["vit_classify on dtd", "vit_classify on cars", "llava on dtd"]
    assert all(len(block.figures) == 1 for block in section.blocks if isinstance(block, Figures))


def test_a_number_of_unknown_meaning_is_not_ranked(tmp_path: Path) -> None:
    runs = [
        run("a", accuracy=0.5, brightness=1, eval_loss=1.0),
        run("b", rate=1, accuracy=0.6, brightness=2, eval_loss=2),
    ]
    section = results_section(group_runs(runs), tmp_path)
    assert section is not None
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    names = [column.name for column in table.columns]
    assert {(line, names[column]) for line, column in table.best()} == {(1, "accuracy, %"), (0, "eval loss")}


def test_each_pipeline_has_its_own_costs(tmp_path: Path) -> None:
    runs = [run("a", peak_memory_bytes=2**20), run("b", task="llava", tokens_per_second=1.0), run("c", task="none")]
    section = cost_section(group_runs(runs), tmp_path)
    assert section is not None
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [table.columns[-1].name for table in tables] == ["peak memory", "tokens"]


@pytest.mark.parametrize(("count", "first"), [(2, "key"), (9, "run")])
def test_recipes_of_many_runs_stand_below_each_other(count: int, first: str, tmp_path: Path) -> None:
    runs = [run(str(i), rate=i, accuracy=0.5) for i in range(count)]
    runs[0] = Run(runs[0].path, {**runs[0].config, "b": {"c": 1, "d": 2}}, runs[0].results, [])
    section = recipe_section(group_runs(runs), tmp_path)
    assert section is not None
    assert isinstance(section.blocks[0], Table)
    assert section.blocks[0].columns[0].name == first
    assert sum(isinstance(block, Folded) for block in section.blocks) == count
