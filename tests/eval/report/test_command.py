"""`mosgoat report` over run directories as the pipelines leave them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.errors import UserError
from common.reporting.adapter_plots import plot_mixers, plot_singular_values
from common.reporting.command import main, write_report
from common.reporting.plots import plot_confusion
from common.reporting.runs import MIXERS_PLOT, SPECTRA_PLOT
from tests.common.reporting.test_page import Outline

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run directory; `diagnosed` adds the files of adapters and routers."""

    def make(name: str, *, method: str = "moslora", seed: int = 0, diagnosed: bool = True, **metrics: float) -> Path:
        run = tmp_path / name
        (run / "plots").mkdir(parents=True)
        config = {"adapter": {"method": method}, "seed": seed, "output": str(run)}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        cost = {"train_seconds": 12.5, "trainable_parameters": 1000}
        measured = {"accuracy": 0.5 + seed / 10, "per_class": {"a": 1}, **cost, **metrics}
        task = "llava" if "validation_loss" in metrics else "vit_classify"
        results = {"task": task, "method": method, "seed": seed, "n": 40, "metrics": measured}
        (run / "results.json").write_text(json.dumps(results))
        lines = [{"step": i, "loss": 2 / i, "accuracy": i / 10} for i in range(1, 6)]
        lines.append({"step": 5, "eval_accuracy": 0.5})
        about = {"started": "2026-01-01", "devices": [{"name": "cpu"}], "packages": {"torch": "2.14"}, "git": None}
        (run / "environment.json").write_text(json.dumps(about))
        if diagnosed:
            plot_singular_values(run / "plots" / SPECTRA_PLOT, {"a.0": [2.0, 1.0]})
            plot_confusion(run / "plots" / "confusion.png", np.eye(2, dtype=int), ["a", "b"])
        if diagnosed and method == "moslora":
            plot_mixers(run / "plots" / MIXERS_PLOT, {"a.0": np.eye(2)})
        if diagnosed and method == "goat":
            load = [{"step": i, "tokens": {"a.0": [i, 2], "a.1": [1, 1]}} for i in range(1, 6)]
            (run / "router_load.jsonl").write_text("".join(json.dumps(line) + "\n" for line in load))
            (run / "router_load.json").write_text(json.dumps({"a.0": [0.25, 0.75]}))
            lines = [{**line, "router_load_entropy": 0.9} for line in lines[:5]]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make


def sections(html: str) -> list[str]:
    page = Outline(html)
    return [str(part["id"]) for part in page.all("section") + page.all("details")]


def test_a_page_shows_what_the_runs_have(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages" / "report.html"
    runs = [make_run("a"), make_run("b", seed=1), make_run("c", method="goat")]
    assert main([*map(str, runs), "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    html = out.read_text()
    expected = ["result", "training", "router-load", "adapters", "confusions", "recipes", "environment"]
    assert sections(html) == expected
    # bars, loss, training accuracy, validation accuracy needs two points: none; entropy, two loads, two spectra,
    # mixers, two confusions
    assert len(Outline(html).all("img")) == 11
    assert "55.00 ± 7.07" in html  # accuracies of 0.5 and 0.6
    assert "the mean over a balanced routing" in html
    assert not [tag for tag in Outline(html).all("img") if not str(tag["src"]).startswith("data:")]


def test_parts_that_a_run_lacks_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    out = write_report([make_run("a", method="lora", diagnosed=False)], tmp_path / "r.html")
    assert sections(out.read_text()) == ["result", "training", "recipes", "environment"]


def test_runs_of_two_pipelines_have_a_table_each(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", validation_loss=1.25)]
    page = Outline(write_report(runs, tmp_path / "r.html").read_text())
    assert len(page.all("table")) == 4
    assert "1.2500" in page.text


def test_a_run_without_a_log_or_environment_is_reported(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", diagnosed=False)
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    assert sections(write_report([run], tmp_path / "r.html").read_text()) == ["result", "recipes"]


def test_a_run_named_twice_is_shown_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", diagnosed=False)
    html = write_report([run, run / "plots" / ".."], tmp_path / "r.html")
    assert "1 finished run." in html.read_text()


def test_text_from_a_run_cannot_become_markup(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", method="<script>alert(1)</script>", diagnosed=False)
    page = Outline(write_report([run], tmp_path / "r.html").read_text())
    assert not page.all("script")
    assert "<script>alert(1)</script>" in page.text


def test_what_cannot_be_reported_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", diagnosed=False)
    with pytest.raises(UserError, match=r"is a folder; give the path of a file"):
        main([str(run), "-o", str(tmp_path)])
    with pytest.raises(UserError, match="no run at"):
        main([str(tmp_path / "nowhere")])
    (run / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json is broken.*delete the file"):
        main([str(run), "-o", str(tmp_path / "r.html")])
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        main([str(run)])
