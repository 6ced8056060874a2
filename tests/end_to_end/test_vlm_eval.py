"""The trained small LLaVA on a drawn table of MMBench's form, through the command line.

The questions are those that the model's own pretraining drew from (colours, shapes, counts, places), each with all
rotations of its four options; the run is the base that ships with an adapter a little away from nothing.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common import cli
from common.config import AdapterConfig
from llava.config import DataConfig, ModelConfig
from llava.demo.draw import draw, questions
from llava.likelihood import Choice, score_options
from llava.model import load_model, load_run, prepare_training
from tests.end_to_end.commands import ENVIRONMENT, ROOT, command, run_command
from tests.eval.vlm.tables import base64_of, rotated, write_tsv
from tests.llava.tiny import disturb, recipe_of, write_run

pytestmark = pytest.mark.slow

QUESTIONS = 16
ABILITIES = {"colour": "attribute_reasoning", "shape": "coarse_perception", "count": "logic_reasoning"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: MoSLoRA on the base that ships."""
    recipe = recipe_of(
        ModelConfig(name="builtin:drawn-llava", feature_layer=-1),
        adapter=AdapterConfig(method="moslora", r=4),
        data=DataConfig(path="builtin:drawn-questions", template="llama3"),
    )
    torch.manual_seed(0)  # of the adapters' start: what the model says must not depend on the tests before
    base = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    disturb(base.model)
    return write_run(base, recipe, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Image.Image, Any]]:
    """Pictures with a question each."""
    rng = np.random.default_rng(4)
    return [(draw(scene, rng), question) for scene, question in questions(QUESTIONS, 7, held_out=False)]


@pytest.fixture(scope="module")
def table(drawn: list[tuple[Image.Image, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All rotations, under a name that says nothing."""
    bases = []
    for index, (picture, question) in enumerate(drawn):
        file = io.BytesIO()
        picture.save(file, "PNG")
        bases.append(
            {
                "index": index,
                "question": question.text,
                **dict(zip("ABCD", question.options, strict=True)),
                "answer": "ABCD"[question.options.index(question.answer)],
                "category": question.kind,
                "l2-category": ABILITIES.get(question.kind, "relation_reasoning"),
                "split": "dev",
                "image": base64_of(file.getvalue()),
            }
        )
    rows = [rotated(base, rotation) for rotation in range(4) for base in bases]
    return write_tsv(tmp_path_factory.mktemp("table") / "drawn.tsv", rows)


def words(run: Path, table: Path, output: Path, *more: str) -> list[str]:
    return ["eval", "mmbench", "--run", str(run), "--data", str(table), "--output", str(output), *more]


def predictions(output: Path, name: str = "MMBench_DEV_EN") -> dict[int, str]:
    lines = (output / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["index"]: row["prediction"] for row in map(json.loads, lines)}


def results(output: Path, name: str = "MMBench_DEV_EN") -> dict[str, Any]:
    return json.loads((output / name / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(run: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation in one process, never interrupted."""
    output = tmp_path_factory.mktemp("whole")
    run_command(*words(run, table, output))
    return output


def circular(right: dict[int, bool]) -> float:
    """Percent of questions that are right in all rotations, written down a second time."""
    return 100 * np.mean([all(right[i + 1_000_000 * r] for r in range(4)) for i in range(QUESTIONS)])


def test_generated_answers_are_scored_by_their_option(
    whole: Path, run: Path, drawn: list[tuple[Image.Image, Any]]
) -> None:
    found, said = results(whole), predictions(whole)
    assert len(said) == 4 * QUESTIONS
    # It cannot name letters: an answer counts where it holds the text of the right option and of no other.
    right = {}
    for index, answer in said.items():
        question = drawn[index % 1_000_000][1]
        holds = [option for option in question.options if option in answer.lower()]
        assert not any(word in "ABCD" for word in answer.split()), answer
        right[index] = holds == [question.answer] and len(answer) <= 2 * sum(map(len, question.options))
    assert found["metrics"]["dev"]["overall"] == pytest.approx(circular(right))
    assert any(right.values()), "otherwise this test shows nothing"
    assert {path.name for path in (whole / "MMBench_DEV_EN").iterdir()} >= {"radar.png", "radar.svg", "rows.csv"}
    assert found["label"] == "MoSLoRA (run)"


def test_likelihood_scores_are_those_of_the_llava_pipeline(
    run: Path, table: Path, drawn: list[tuple[Image.Image, Any]], tmp_path: Path
) -> None:
    assert cli.main(words(run, table, tmp_path, "--answer", "likelihood", "--batch-size", "16")) == 0
    found = results(tmp_path, "MMBench_DEV_EN_likelihood")
    choices = [Choice(question.text, question.options, picture) for picture, question in drawn]
    scores = score_options(load_run(run), choices)
    for metrics, by in (("metrics", "mean"), ("metrics_by_sum", "total")):
        best = [max(range(4), key=lambda i, each=each, by=by: getattr(each[i], by)) for each in scores]
        right = [question.options[i] == question.answer for i, (_, question) in zip(best, drawn, strict=True)]
        # The options are not shown, so that no rotation changes the choice.
        assert found[metrics]["dev"]["overall"] == pytest.approx(100 * np.mean(right))
    assert found["metrics"]["dev"]["overall"] > 0
    assert not (tmp_path / "MMBench_DEV_EN").exists()


def kill_after(lines: int, output: Path, *given: str) -> int:
    """Start `mosgoat GIVEN...`, kill all of it once so many answers are there; returns how many there are."""
    process = subprocess.Popen(
        command(*given), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    file = output / "MMBench_DEV_EN" / "predictions.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < lines):
        time.sleep(0.01)
        assert process.poll() is None, "it ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return file.read_bytes().count(b"\n")


def test_a_killed_evaluation_goes_on_in_any_number_of_processes(
    run: Path, table: Path, whole: Path, tmp_path: Path
) -> None:
    done = kill_after(5, tmp_path, *words(run, table, tmp_path, "--batch-size", "1"))
    assert 5 <= done < 4 * QUESTIONS
    assert not (tmp_path / "MMBench_DEV_EN" / "results.json").exists()
    ended = run_command(*words(run, table, tmp_path), processes=2)
    assert f"{done} of {4 * QUESTIONS} questions are answered" in ended.stderr
    assert predictions(tmp_path) == predictions(whole)
    assert list(predictions(tmp_path)) == list(predictions(whole))  # the order of the table
    assert results(tmp_path)["metrics"] == results(whole)["metrics"]
    assert not list((tmp_path / "MMBench_DEV_EN").glob("*.part-*"))


def test_changed_weights_never_use_old_answers(
    run: Path, table: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    file = other / "adapter" / "adapter_model.safetensors"
    save_file({name: -3 * value for name, value in load_file(file).items()}, file)
    output = Path(shutil.copytree(whole, tmp_path / "output"))
    assert cli.main(words(other, table, output)) == 0
    assert f"{4 * QUESTIONS} answers of other weights, settings or questions were dropped" in capsys.readouterr().err
    assert predictions(output) != predictions(whole)
    assert results(output)["weights"] != results(whole)["weights"]
