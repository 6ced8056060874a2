"""Reading run directories that are whole, unfinished or broken."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.reporting.runs import Run, evaluated_load, read_metrics, read_run, seed_of, series, training_load


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("seed: 3\ndata:\n  name: dtd\n")
    (path / "results.json").write_text(json.dumps({"task": "vit_classify", "metrics": {"accuracy": 0.5}}, indent=2))
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 2, "accuracy": 0.4},
        {"step": 3, "loss": 1.0},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_finished_run_is_read(run: Path) -> None:
    found = read_run(run)
    assert found.config["data"]["name"] == "dtd"
    assert found.results["metrics"]["accuracy"] == 0.5
    assert series(found.metrics, "loss") == ([1, 3], [2.0, 1.0])
    assert series(found.metrics, "accuracy") == ([2], [0.4])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run at .*nowhere"):
        read_run(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not the directory of a run: it has no config\.yaml"):
        read_run(tmp_path)


def test_an_unfinished_run_says_how_to_go_on(run: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"has not finished.*resumes"):
        read_run(run)


def test_a_truncated_result_names_file_and_position(run: Path) -> None:
    whole = (run / "results.json").read_text()
    (run / "results.json").write_text(whole[:40])
    with pytest.raises(UserError, match=r"results\.json is broken at line 3, column \d+: "):
        read_run(run)


def test_a_result_without_metrics_is_refused(run: Path) -> None:
    (run / "results.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="no section `metrics`"):
        read_run(run)


def test_a_broken_line_of_metrics_is_named(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with pytest.raises(UserError, match=r"metrics\.jsonl is broken at line 5, column"):
        read_run(run)


def test_a_line_that_is_no_object_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: a list, not an object"):
        read_run(run)


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(("content", "message"), [("a: [1", "cannot be read as YAML"), ("- 1", "holds a list")])
def test_a_broken_recipe_is_named(run: Path, content: str, message: str) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(run)


def test_a_recipe_that_would_run_code_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(UserError, match="cannot be read"):
        read_run(run)
    assert not (tmp_path / "made").exists()


def test_binary_rubbish_is_named(run: Path) -> None:
    (run / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_run(run)


@pytest.mark.parametrize("content", [{"a": "b"}, {"a": 1}, {"a": [1, "x"]}, {"a": [1, 2], "b": [1]}, [1]])
def test_file_that_is_no_router_load_is_named(tmp_path: Path, content: object) -> None:
    (tmp_path / "router_load.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"router_load\.json holds no router load"):
        evaluated_load(tmp_path / "router_load.json")
    (tmp_path / "router_load.jsonl").write_text(json.dumps({"step": 1, "tokens": content}) + "\n")
    with pytest.raises(UserError, match=r"router_load\.jsonl holds no router load"):
        training_load(tmp_path / "router_load.jsonl")


def test_text_in_a_log_is_no_point_of_a_curve() -> None:
    assert series([{"step": 1, "loss": "nan"}, {"step": "x", "loss": 1.0}, {"step": 3, "loss": 2}], "loss") == (
        [3.0],
        [2.0],
    )


def test_seed_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed='x' must be a whole number"):
        seed_of(Run(tmp_path, {}, {"metrics": {}, "seed": "x"}, []))
