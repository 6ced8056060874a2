"""A trained adapter in other people's tools, and one that belongs to another model.

Pictures are compared in PSNR over [0, 1]: above 40 dB an eye sees no difference; what remains is rounding, of A' = M·A
worked out once against x·A·M worked out each time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as library_logging
from torch import Tensor

from common.config import AdapterConfig, Method, TrainConfig
from common.errors import UserError
from common.export import main as export
from common.training import RunDirectory
from dreambooth.config import DataConfig, DreamboothRecipe, ModelConfig, TextEncoderConfig, with_places
from dreambooth.model import load_model, load_run, pipeline_of, prepare_training, save_run
from tests.dreambooth.drawn import draw_subject
from tests.dreambooth.tiny import tiny_sdxl


def make_run(path: Path, model: Path, method: Method = "moslora", *, text: bool = False) -> Path:
    """A finished run without the training: an adapter of random weights that changes pictures visibly."""
    recipe = with_places(
        DreamboothRecipe(
            model=ModelConfig(name=str(model)),
            data=DataConfig(path=str(draw_subject(path / "../pictures")), class_word="disc", resolution=16),
            adapter=AdapterConfig(method=method, r=4, num_experts=2 if method == "goat" else None),
            text_encoder=TextEncoderConfig(train=text, r=2 if text and method != "goat" else None),
            train=TrainConfig(max_steps=1, precision="float32"),
            output=str(path),
        )
    )
    run, base = RunDirectory.create(path, recipe, resume="never"), load_model(recipe.model)
    prepare_training(base, recipe)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in base.adapters.values():
            for parameter in (p for p in part.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    save_run(base, run.path, subject="disc", class_word="disc", token="ikat")
    run.write_results(task="dreambooth", metrics={}, n=1, seed=0)
    return path


def pictures_of(pipeline: Any) -> Tensor:
    """Two pictures (2, 16, 16, 3) from fixed noise."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    made = pipeline(["a photo of ikat disc", "a disc"], latents=noise, num_inference_steps=4, output_type="np")
    return torch.from_numpy(made.images)


def psnr(first: Tensor, second: Tensor) -> float:
    return float(-10 * (first - second).square().mean().clamp_min(1e-20).log10())


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """What diffusers and PEFT say while a test runs."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    keep, loggers = Keep(logging.WARNING), [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_warning()
    for logger in loggers:
        logger.addHandler(keep)
    yield found
    for logger in loggers:
        logger.removeHandler(keep)
    library_logging.set_verbosity(verbosity)


@pytest.fixture(scope="module", params=[False, True], ids=["unet", "unet and text encoders"])
def run(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", tiny_model, text=request.param)


@pytest.fixture(scope="module")
def live(run: Path) -> Tensor:
    """Pictures of the run's own adapter."""
    return pictures_of(pipeline_of(load_run(run)))


def test_the_adapter_changes_the_pictures(live: Tensor, tiny_model: Path) -> None:
    assert psnr(live, pictures_of(StableDiffusionXLPipeline.from_pretrained(tiny_model))) < 30


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_stock_pipeline_opens_the_export_without_a_remark_and_draws_the_same(
    form: str, run: Path, live: Tensor, tiny_model: Path, tmp_path: Path, remarks: list[str]
) -> None:
    export(["--run", str(run), "--to", "lora", "--format", form, "--output", str(tmp_path / "lora")])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_model)
    remarks.clear()
    pipeline.load_lora_weights(tmp_path / "lora")
    # diffusers says of every file without text encoders that it is "safe to ignore"
    assert [text for text in remarks if not text.startswith("No LoRA keys associated to CLIPText")] == []
    own = load_run(run).adapters
    for name in ("unet", "text_encoder", "text_encoder_2"):
        adapted = [layer for layer in getattr(pipeline, name).modules() if isinstance(layer, peft.tuners.lora.Linear)]
        expected = len([1 for key in own[name].state_dict() if "mosgoat_A" in key]) if name in own else 0  # type: ignore[index, literal-required]
        assert len(adapted) == expected, name
    assert psnr(pictures_of(pipeline), live) > 40


def test_stock_peft_opens_the_export_and_draws_the_same(
    run: Path, live: Tensor, tiny_model: Path, tmp_path: Path
) -> None:
    export(["--run", str(run), "--to", "lora", "--output", str(tmp_path / "lora")])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_model)
    for name in load_run(run).adapters:
        folder = tmp_path / "lora" / name if (tmp_path / "lora" / name).is_dir() else tmp_path / "lora"
        adapted = peft.PeftModel.from_pretrained(getattr(pipeline, name), str(folder))
        assert type(adapted.base_model) is peft.tuners.lora.LoraModel
    assert psnr(pictures_of(pipeline), live) > 40


def test_stock_pipeline_opens_the_merged_model_and_draws_the_same(run: Path, live: Tensor, tmp_path: Path) -> None:
    export(["--run", str(run), "--to", "merged", "--output", str(tmp_path / "merged")])
    assert psnr(pictures_of(StableDiffusionXLPipeline.from_pretrained(tmp_path / "merged")), live) > 40


@pytest.mark.parametrize(("to", "form"), [("lora", ["--format", "diffusers"]), ("lora", []), ("merged", [])])
def test_a_routed_method_is_refused_with_the_reason_and_runs_here(
    to: str, form: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", tiny_model, "goat")
    with pytest.raises(UserError, match=r"adapter.method=goat: it weighs its experts anew for every token"):
        export(["--run", str(run), "--to", to, *form, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    stock = pictures_of(StableDiffusionXLPipeline.from_pretrained(tiny_model))
    assert psnr(pictures_of(pipeline_of(load_run(run))), stock) < 40


@pytest.fixture
def own_run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run to be damaged."""
    return make_run(tmp_path / "run", tiny_model, "lora")


def change_recipe(run: Path, section: str, **values: Any) -> None:
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    recipe[section].update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def test_an_adapter_of_another_model_is_refused(own_run: Path, tmp_path: Path) -> None:
    change_recipe(own_run, "model", name=str(tiny_sdxl(tmp_path / "other", seed=2)))
    with pytest.raises(UserError, match=r"was trained on another model than this one \(fingerprint .*config.yaml must"):
        load_run(own_run)


def test_an_adapter_for_another_prediction_is_refused(own_run: Path) -> None:
    change_recipe(own_run, "model", prediction_type="v_prediction")
    with pytest.raises(UserError, match=r"was trained on another model than this one"):
        load_run(own_run)


def test_a_damaged_run_is_refused_by_name(own_run: Path) -> None:
    weights = own_run / "adapter" / "unet" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged or incomplete"):
        load_run(own_run)
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors is missing; did the run finish"):
        load_run(own_run)
    (own_run / "dreambooth.json").unlink()
    with pytest.raises(UserError, match=r"dreambooth.json is missing; either the run did not finish"):
        load_run(own_run)
    (own_run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"is not the directory of a run: config.yaml is missing"):
        load_run(own_run)


def test_a_run_of_another_pipeline_is_refused(own_run: Path) -> None:
    results = own_run / "results.json"
    results.write_text(results.read_text(encoding="utf-8").replace('"dreambooth"', '"llava"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"is a run of llava, not of dreambooth"):
        load_run(own_run)
