"""`mosgoat export` of vit_classify runs, opened by stock PEFT and open_clip."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from common import export
from common.config import AdapterConfig
from common.errors import UserError
from vit_classify.attention import split_attention
from vit_classify.checkpoint import WEIGHTS_FILE
from vit_classify.config import ModelConfig, VitRecipe
from vit_classify.head import LinearHead
from vit_classify.model import load_model, load_run, prepare_training, save_run

CLASSES, TEMPLATES = ["cat", "dog", "owl"], ["a photo of a {}.", "a {}"]
# Merged or folded into other products, float32 through two layers of a tower whose logits are about 10.
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-4}


def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def finished(run: Path, base: Path, method: str, head: str = "zero_shot") -> Path:
    """A run directory as `mosgoat vit train` leaves it, its trained weights moved away from their start."""
    run.mkdir()
    model = ModelConfig(f"local-dir:{base}", head=head)  # type: ignore[arg-type]
    classifier = load_model(model, CLASSES, TEMPLATES)
    options = {} if method in ("full", "linear_probe") else {"r": 8, "dropout": 0.0}
    adapter = AdapterConfig(method, **options)  # type: ignore[arg-type]
    prepare_training(classifier, adapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_run(classifier, run)
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(VitRecipe(model=model, adapter=adapter))))
    results = {"task": "vit_classify", "method": method, "metrics": {"accuracy": 0.0}, "n": 1, "seed": 0}
    (run / "results.json").write_text(json.dumps(results))
    return run


def logits(classifier: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return classifier.eval()(pictures())


def run_export(run: Path, to: str, out: Path, *more: str) -> Path:
    assert export.main(["--run", str(run), "--to", to, "--output", str(out), *more]) == 0
    return out


@pytest.mark.parametrize("method", ["lora", "moslora", "pissa", "full"])
def test_a_merged_model_loads_as_a_base_and_gives_the_runs_logits(method: str, tiny_base: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_base, method)
    out = run_export(run, "merged", tmp_path / "out")
    expected = logits(load_run(run))
    merged = load_model(ModelConfig(f"local-dir:{out}"), CLASSES, TEMPLATES)
    torch.testing.assert_close(logits(merged), expected, **TOLERANCE)
    base = logits(load_model(ModelConfig(f"local-dir:{tiny_base}"), CLASSES, TEMPLATES))
    assert (expected - base).abs().max() > 0.1


def test_open_clip_itself_opens_the_merged_model(tiny_base: Path, tiny_clip: open_clip.CLIP, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_base, "moslora")
    out = run_export(run, "merged", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = open_clip.create_model(f"local-dir:{out}").eval()
    with torch.no_grad():
        features = model.encode_image(pictures())
        expected = load_run(run).tower(pictures())
    torch.testing.assert_close(features, expected, **TOLERANCE)
    # the names are open_clip's own, and the text side is the base's, bit by bit
    assert model.state_dict().keys() == tiny_clip.state_dict().keys()
    assert torch.equal(model.state_dict()["token_embedding.weight"], tiny_clip.state_dict()["token_embedding.weight"])


def test_a_linear_head_lies_beside_the_merged_model_and_fits_it(tiny_base: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_base, "moslora", head="linear")
    out = run_export(run, "merged", tmp_path / "out")
    merged = load_model(ModelConfig(f"local-dir:{out}", head="linear"), CLASSES, TEMPLATES)
    assert isinstance(merged.head, LinearHead)
    merged.head.load_state_dict(load_file(out / "head.safetensors"))
    torch.testing.assert_close(logits(merged), logits(load_run(run)), **TOLERANCE)
    assert json.loads((out / "head.json").read_text())["class_names"] == CLASSES


@pytest.mark.parametrize("method", ["lora", "moslora", "ts_mixing", "pissa"])
def test_stock_peft_opens_the_lora_on_a_fresh_tower(
    method: str, tiny_base: Path, tiny_clip: open_clip.CLIP, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run", tiny_base, method)
    out = run_export(run, "lora", tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    tower = split_attention(open_clip.create_model(f"local-dir:{tiny_base}").get_submodule("visual"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of missing and of unknown keys
        model = peft.PeftModel.from_pretrained(tower, out)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pictures()), load_run(run).tower(pictures()), **TOLERANCE)
    assert (out / "head.safetensors").is_file()


@pytest.mark.parametrize(("to", "message"), [("lora", "no plain LoRA equals it"), ("merged", "no single weight")])
def test_a_routed_run_is_refused_before_anything_is_loaded(
    to: str, message: str, tiny_base: Path, tmp_path: Path
) -> None:
    run = finished(tmp_path / "run", tiny_base, "goat")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"adapter.method=goat: .*{message}.*train moslora or lora"):
        run_export(run, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_adapter_is_an_error_and_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_base, "moslora")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    for to in ("lora", "merged"):
        with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
            run_export(run, to, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_base_is_not_changed_by_an_export(tiny_base: Path, tmp_path: Path) -> None:
    before = (tiny_base / WEIGHTS_FILE).read_bytes()
    run_export(finished(tmp_path / "run", tiny_base, "moslora"), "merged", tmp_path / "out")
    assert (tiny_base / WEIGHTS_FILE).read_bytes() == before
