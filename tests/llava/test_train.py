"""Whole runs of the tiny LLaVA on drawn questions, in this process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from common.config import AdapterConfig, TrainConfig
from common.errors import UserError
from common.reporting.samples import read_samples
from common.training import RunDirectory
from llava.config import DataConfig, LlavaRecipe, ModelConfig, TowerConfig, recipe_problems
from llava.data import open_data
from llava.demo.draw import write_sets
from llava.model import load_model, load_run
from llava.train import describe, grouping, train
from tests.llava.tiny import TinyLlava

SAMPLES = 26


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn questions, three of them without their picture, and a caption of several sentences."""
    folder = tmp_path_factory.mktemp("drawn")
    write_sets(folder, train=SAMPLES, test=6, seed=5)
    file = folder / "train.json"
    samples = json.loads(file.read_text(encoding="utf-8"))
    for sample in samples[4:7]:
        del sample["image"]
        sample["conversations"][0]["value"] = "How are you?"
    samples[9]["conversations"][1]["value"] = "There is much to see here. " * 6
    file.write_text(json.dumps(samples), encoding="utf-8")
    return folder


def recipe(paths: TinyLlava, drawn: Path, output: Path, **changes: Any) -> LlavaRecipe:
    train_settings: dict[str, Any] = {
        "epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 0.25, "precision": "float32",
        "log_every": 1, "save_every": 2, "trackers": [],
    }  # fmt: skip
    train_settings |= changes.pop("train", {})
    sections: dict[str, Any] = {
        "model": ModelConfig(name=str(paths.whole)),
        "data": DataConfig(path=str(drawn / "train.json"), template="llama3", num_workers=0),
        "adapter": AdapterConfig(method="moslora", r=4, dropout=0.0),
        "tower": TowerConfig(r=2),
        "output": str(output),
        "seed": 3,
    }
    found = LlavaRecipe(**(sections | changes), train=TrainConfig(**train_settings))
    assert recipe_problems(found) == []
    return found


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in lines(output) if "loss" in line]


@pytest.fixture(scope="module")
def whole(tiny_llava: TinyLlava, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(recipe(tiny_llava, drawn, output, train={"epochs": 2}))
    return output


def test_a_run_leaves_its_results_and_opens_again(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    metrics = results["metrics"]
    assert results["task"] == "llava"
    assert results["method"] == "moslora"
    assert results["n"] == SAMPLES
    assert metrics["total_supervised_tokens"] < metrics["total_tokens"] < metrics["total_positions"]
    assert metrics["padding_share"] == pytest.approx(1 - metrics["total_tokens"] / metrics["total_positions"])
    assert {"tokens_per_second", "supervised_tokens_per_second", "token_accuracy"} <= lines(whole)[0].keys()
    assert (whole / "plots" / "loss.png").is_file()
    samples = read_samples(whole)
    assert samples is not None
    assert (samples.kind, len(samples.items)) == ("chat", 8)
    assert "supervised" in describe(results, whole)
    course = losses(whole)
    assert sum(course[-3:]) < sum(course[:3])
    base = load_run(whole)
    projector = base.llava().model.multi_modal_projector
    saved = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert any("multi_modal_projector" in name for name in saved)
    assert not any(p.requires_grad for p in projector.parameters())


def test_a_finished_run_is_not_trained_again(whole: Path, tiny_llava: TinyLlava, drawn: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    results = train(recipe(tiny_llava, drawn, whole, train={"epochs": 2}))
    assert results["metrics"]["steps"] == 8
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_accumulation_does_not_change_the_trajectory(
    whole: Path, tiny_llava: TinyLlava, drawn: Path, tmp_path: Path
) -> None:
    train(recipe(tiny_llava, drawn, tmp_path, train={"epochs": 2, "gradient_accumulation_steps": 4}))
    # Float32 sums in another order, and AdamW divides small gradients by their own size. Some micro-batches here are
    # text alone, so this holds the dummy picture too.
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)


def test_an_interrupted_run_goes_on_exactly(
    whole: Path, tiny_llava: TinyLlava, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llava.objective

    calls = 0
    forward = llava.objective.LlavaObjective.forward

    def failing(self: Any, **batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return forward(self, **batch)

    wanted = recipe(tiny_llava, drawn, tmp_path, train={"epochs": 2})
    with monkeypatch.context() as patch:
        patch.setattr(llava.objective.LlavaObjective, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            train(wanted)
    train(dataclasses.replace(wanted, resume="must"))
    assert losses(tmp_path) == losses(whole)
    for name, value in load_file(whole / "adapter" / "adapter_model.safetensors").items():
        resumed = load_file(tmp_path / "adapter" / "adapter_model.safetensors")[name]
        assert resumed.equal(value), name


def test_packed_rows_learn_the_same_tokens(tiny_llava: TinyLlava, drawn: Path, tmp_path: Path) -> None:
    config = DataConfig(
        path=str(drawn / "train.json"), template="llama3", num_workers=0, batching="packed", max_text_tokens=128
    )
    results = train(recipe(tiny_llava, drawn, tmp_path / "packed", data=config, train={"warmup_steps": 0}))
    plain = dataclasses.replace(config, batching="random")
    other = train(recipe(tiny_llava, drawn, tmp_path / "plain", data=plain, train={"warmup_steps": 0}))
    for name in ("total_tokens", "total_supervised_tokens"):
        assert results["metrics"][name] == other["metrics"][name]
    assert results["metrics"]["total_positions"] < other["metrics"]["total_positions"]


def test_pretraining_trains_the_projector_alone(tiny_llava: TinyLlava, drawn: Path, tmp_path: Path) -> None:
    parts = ModelConfig(language_model=str(tiny_llava.language_model), vision_tower=str(tiny_llava.vision_tower))
    first = recipe(tiny_llava, drawn, tmp_path / "first", model=parts, stage="pretrain")
    results = train(first)
    assert results["method"] == "projector"
    projector = tmp_path / "first" / "projector.safetensors"
    assert results["metrics"]["trainable_parameters"] == sum(value.numel() for value in load_file(projector).values())
    second = dataclasses.replace(parts, projector=str(projector))
    base = load_model(second, template="llama3")
    trained = load_run(tmp_path / "first").llava().model.multi_modal_projector.state_dict()
    for name, value in base.llava().model.multi_modal_projector.state_dict().items():
        assert value.equal(trained[name]), name
    train(recipe(tiny_llava, drawn, tmp_path / "second", model=second))


def test_validation_loss_is_that_of_every_held_out_token(tiny_llava: TinyLlava, drawn: Path, tmp_path: Path) -> None:
    data = DataConfig(
        path=str(drawn / "train.json"), validation_path=str(drawn / "test.json"), template="llama3", num_workers=0
    )
    wanted = recipe(tiny_llava, drawn, tmp_path / "a", data=data)
    found = train(wanted)["metrics"]["validation_loss"]
    again = recipe(tiny_llava, drawn, tmp_path / "b", data=data, train={"gradient_accumulation_steps": 8})
    assert train(again)["metrics"]["validation_loss"] == pytest.approx(found, rel=1e-3)


def test_the_projector_may_have_its_own_learning_rate(tiny_llava: TinyLlava, drawn: Path, tmp_path: Path) -> None:
    still = ModelConfig(name=str(tiny_llava.whole), projector_learning_rate=1e-12)
    train(recipe(tiny_llava, drawn, tmp_path, model=still))
    before = load_model(ModelConfig(name=str(tiny_llava.whole)), template="llama3").llava()
    after = load_run(tmp_path).llava()
    weight = "multi_modal_projector.linear_1.weight"
    trained = {name.replace("modules_to_save.default.", ""): p for name, p in after.model.named_parameters()}
    difference = (trained[weight] - before.model.get_parameter(weight)).abs().max()
    assert difference < 1e-9


@pytest.mark.parametrize("batching", ["length", "modality_length", "random"])
def test_grouping_follows_the_recipe(tiny_llava: TinyLlava, drawn: Path, batching: str) -> None:
    base = load_model(ModelConfig(name=str(tiny_llava.whole)), template="llama3")
    config = DataConfig(path=str(drawn / "train.json"), template="llama3", batching=batching)  # type: ignore[arg-type]
    data = open_data(config, base.tokenizer, image_tokens=base.image_tokens, image_token_id=base.image_token_id)
    found = grouping(config, data.train)
    if batching == "random":
        assert found is None
        return
    assert found is not None
    assert found.lengths.tolist() == data.train.lengths.tolist()
    assert (found.classes is None) == (batching == "length")


def test_a_misspelt_layer_is_told_before_the_data_are_opened(
    tiny_llava: TinyLlava, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.train.open_data", lambda *_, **__: pytest.fail("the data were opened"))
    with pytest.raises(UserError, match=r"tower\.target_modules: 'qproj' matches no layer"):
        train(recipe(tiny_llava, drawn, tmp_path / "run", tower=TowerConfig(target_modules=["qproj"])))


def test_changed_conversations_stop_a_resume(tiny_llava: TinyLlava, drawn: Path, tmp_path: Path) -> None:
    samples = json.loads((drawn / "train.json").read_text(encoding="utf-8"))
    file = drawn / "other.json"
    file.write_text(json.dumps(samples), encoding="utf-8")
    data = DataConfig(path=str(file), template="llama3", num_workers=0)
    wanted = recipe(tiny_llava, drawn, tmp_path, data=data)
    run = RunDirectory.create(tmp_path, wanted, resume="auto")
    train(wanted)
    (run.path / "results.json").unlink()
    samples[0]["conversations"][1]["value"] = "something else"
    file.write_text(json.dumps(samples), encoding="utf-8")
    with pytest.raises(UserError, match="the conversations have changed since"):
        train(wanted)


def test_the_weights_are_kept_whatever_happens_to_the_samples(
    tiny_llava: TinyLlava, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory for an answer")

    monkeypatch.setattr("llava.train.answered_questions", fail)
    with pytest.raises(RuntimeError, match="no memory for an answer"):
        train(
            recipe(
                tiny_llava, drawn, tmp_path, train={"epochs": None, "max_steps": 1, "warmup_steps": 0, "save_every": 0}
            )
        )
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "results.json").exists()
