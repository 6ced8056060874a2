"""Whole runs of the tiny SDXL on drawn subjects, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import UserError
from common.reporting.samples import read_samples
from common.training import RunDirectory
from dreambooth import train as training
from dreambooth.model import load_run, read_about
from dreambooth.train import main
from tests.dreambooth.drawn import draw_subject

SETTINGS = (
    "--data.resolution 16 --adapter.r 4 --train.batch_size 2 --train.max_steps 3 --train.precision float32 "
    "--train.log_every 1 --train.trackers [] --seed 3"
).split()
VALIDATION = ["--validation.prompts", '["a {token} {class}"]', "--validation.steps", "2", "--validation.pictures", "2"]
CLASSES = "Classes\n\nsubject_name,class\nball,toy\nduck,toy\nruin,toy\n"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects in DreamBooth's form, of which one has no picture that can be opened."""
    folder = tmp_path_factory.mktemp("subjects") / "dataset"
    draw_subject(folder / "ball")
    draw_subject(folder / "duck", count=2)
    (folder / "ruin").mkdir()
    (folder / "ruin" / "00.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "prompts_and_classes.txt").write_text(CLASSES, encoding="utf-8")
    return folder


def words(model: Path, *more: object) -> list[str]:
    return ["--model.name", str(model), *SETTINGS, *map(str, more)]


def weights(run: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / part / "adapter_model.safetensors")


def results(run: Path) -> dict[str, object]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tiny_model: Path, subjects: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """`--subjects all`: the folder of the runs, the exit status, and what was printed."""
    import contextlib
    import io

    output, out, err = tmp_path_factory.mktemp("trained") / "runs", io.StringIO(), io.StringIO()
    given = words(tiny_model, "--data.path", subjects, "--subjects", "all", "--output", output, *VALIDATION)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*given, "--adapter.method", "moslora"])
    return output, status, out.getvalue(), err.getvalue()


def test_each_subject_gets_its_run_and_a_failed_one_is_named(trained: tuple[Path, int, str, str]) -> None:
    output, status, out, err = trained
    assert status == 1
    assert "1 of 3 subjects failed: ruin" in err
    assert "ruin: " in err
    for name, pictures in (("ball", 3), ("duck", 2)):
        found = results(output / name)
        assert (found["task"], found["dataset"], found["method"], found["n"]) == (
            "dreambooth",
            name,
            "moslora",
            pictures,
        )
        assert (found["class_word"], found["token"], found["skipped"]) == ("toy", "ikat", 0)
        assert f"moslora on {pictures} pictures of {name}, a toy" in out
    assert not (output / "ruin" / "results.json").exists()


def test_a_run_holds_what_it_is_used_for(trained: tuple[Path, int, str, str]) -> None:
    run = trained[0] / "ball"
    metrics = results(run)["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["steps"] == 3
    assert metrics["samples"] == 6
    assert {"train_loss", "train_seconds", "samples_per_second", "peak_memory_bytes"} <= metrics.keys()
    base = load_run(run)
    assert metrics["trainable_parameters"] == sum(p.numel() for p in weights(run).values())
    about = read_about(run)
    assert about | {"subject": "ball", "class_word": "toy", "token": "ikat", "components": ["unet"]} == about
    assert about["base_fingerprint"] == base.fingerprint
    for file in ("data_report.json", "plots/loss.png", "plots/mixers.png", "plots/singular_values.png"):
        assert (run / file).is_file(), file
    with Image.open(run / "validation" / "step-000003.png") as grid:
        assert grid.width > 256
    samples = read_samples(run)
    assert samples is not None
    assert [(item.picture, item.question) for item in samples.items] == [("validation/step-000003.png", "a ikat toy")]


def test_a_run_after_another_is_the_run_alone(
    trained: tuple[Path, int, str, str], tiny_model: Path, subjects: Path, tmp_path: Path
) -> None:
    given = words(tiny_model, "--subject", subjects / "duck", "--output", tmp_path / "run", *VALIDATION)
    assert main([*given, "--adapter.method", "moslora"]) == 0
    alone, after = weights(tmp_path / "run"), weights(trained[0] / "duck")
    assert all(torch.equal(alone[name], after[name]) for name in after)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), RuntimeError("a kernel failed")])
def test_the_others_are_trained_when_the_machine_fails_on_one_subject(
    error: Exception,
    tiny_model: Path,
    subjects: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    true = training.fit

    def fit(*given: Any, run: RunDirectory, **settings: Any) -> Any:
        if run.path.name == "ball":
            raise error
        return true(*given, run=run, **settings)

    monkeypatch.setattr(training, "fit", fit)
    given = words(tiny_model, "--data.path", subjects, "--subjects", "ball,duck", "--output", tmp_path)
    assert main(given) == 1
    told = capsys.readouterr().err
    assert f"ball: {type(error).__name__}: {error}" in told
    assert "1 of 2 subjects failed: ball; the same command tries them again, and only them" in told
    assert ("Traceback" in told) == (not isinstance(error, torch.OutOfMemoryError))
    assert not (tmp_path / "ball" / "results.json").exists()
    assert (tmp_path / "duck" / "results.json").is_file()


def test_finished_subjects_are_not_trained_again(
    trained: tuple[Path, int, str, str], tiny_model: Path, subjects: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained[0] / "ball" / "results.json").stat().st_mtime_ns
    given = words(tiny_model, "--data.path", subjects, "--subjects", "ball,duck", "--output", trained[0], *VALIDATION)
    assert main([*given, "--adapter.method", "moslora"]) == 0
    assert "ball is finished" in capsys.readouterr().err
    assert (trained[0] / "ball" / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_routed_experts_train_in_bf16_with_text_encoders_and_class_pictures(
    tiny_model: Path, subjects: Path, tmp_path: Path
) -> None:
    more = (
        "--adapter.method goat --adapter.r 8 --text_encoder.train true --text_encoder.learning_rate 1e-5 "
        "--prior.weight 1 --prior.pictures 2 --prior.steps 2 --train.precision bf16 --train.evaluate_every 2 "
        "--train.gradient_checkpointing true --data.crop random --data.variants 2"
    ).split()
    run = tmp_path / "run"
    assert main(words(tiny_model, "--subject", subjects / "ball", "--output", run, *VALIDATION, *more)) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"balance_loss", "prior_loss", "subject_loss"} <= lines[0].keys()
    assert read_about(run)["components"] == ["unet", "text_encoder", "text_encoder_2"]
    assert {tensor.dtype for tensor in weights(run, "text_encoder").values()} == {torch.float32}
    assert len(list((run / "validation").iterdir())) == 2
    assert load_run(run).precision == "bf16"


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_model: Path, subjects: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--train.learning_rate", "1e30", "--train.save_every", "1", "--train.max_steps", "5"]
    with pytest.raises(UserError, match=r"the loss is not finite .* at step 2 of 5; .*step-00000001\. Lower train"):
        main(words(tiny_model, "--subject", subjects / "duck", "--output", run, *more))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run / "results.json").exists()
    kept = load_file(run / "checkpoints" / "step-00000001" / "trained.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_photographs_train_through_the_same_code(tiny_model: Path, shared_data: Path, tmp_path: Path) -> None:
    photographs = shared_data / "dreambooth" / "dataset"
    more = ["--data.resolution", "64", "--data.crop", "random", "--data.flip", "true", "--data.variants", "2"]
    run = tmp_path / "run"
    assert main(words(tiny_model, "--subject", photographs / "cat2", "--output", run, *more)) == 0
    found = results(run)
    assert (found["dataset"], found["class_word"], found["n"], found["skipped"]) == ("cat2", "cat", 5, 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.resolution", "20"], r"data.resolution=20 is not a multiple of 8 pixels, .*; use 16"),
        (["--adapter.target_modules", "[to_z]"], r"adapter.target_modules: 'to_z' matches no layer"),
        (["--adapter.r", "32"], r"adapter.r=32 is larger than the smaller side"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_told_before_the_training(
    more: list[str], message: str, tiny_model: Path, subjects: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        main(words(tiny_model, "--subject", subjects / "duck", "--output", tmp_path / "run", *more))


def test_an_unknown_subject_is_told_with_a_suggestion(tiny_model: Path, subjects: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--subjects: .* has no subject dukc; did you mean duck\?"):
        main(words(tiny_model, "--data.path", subjects, "--subjects", "dukc", "--output", tmp_path / "runs"))
