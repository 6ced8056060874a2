"""A run of a classifier on the disk: written, and opened again."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.adapters import balance_loss
from common.config import AdapterConfig, Method
from common.errors import UserError
from tests.vit_classify.classifiers import ADAPTERS, CLASSES, TEMPLATES, Load, config_for, disturb, pictures, trainable
from vit_classify.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_local
from vit_classify.config import ModelConfig, VitRecipe
from vit_classify.model import VitClassifier, load_model, load_run, prepare_training, save_run
from vit_classify.objective import ClassificationObjective


def finished(directory: Path, base: Path, method: Method, head: str) -> VitClassifier:
    """A run directory as `mosgoat vit train` leaves it; the trained weights are random ones."""
    model = ModelConfig(f"local-dir:{base}", head=head)  # type: ignore[arg-type]
    classifier = load_model(model, CLASSES, TEMPLATES)
    adapter = config_for(method)
    prepare_training(classifier, adapter)
    disturb(classifier)
    save_run(classifier, directory)
    (directory / "config.yaml").write_text(yaml.safe_dump(asdict(VitRecipe(model=model, adapter=adapter))))
    return classifier.eval()


CASES: list[tuple[Method, str]] = [
    *((method, "zero_shot") for method in (*ADAPTERS, "full")),
    *((method, "linear") for method in ("lora", "goat", "full", "linear_probe")),
]

LOAD_ALL = """
import sys
import torch
from safetensors.torch import save_file
from vit_classify.model import load_run

pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
with torch.no_grad():
    save_file({run: load_run(run)(pictures) for run in sys.argv[2:]}, sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_gives_identical_logits_in_a_fresh_process(tiny_base: Path, tmp_path: Path) -> None:
    expected = {}
    for method, head in CASES:
        run = tmp_path / f"{method}-{head}"
        run.mkdir()
        with torch.no_grad():
            expected[str(run)] = finished(run, tiny_base, method, head)(pictures())
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LOAD_ALL, str(tmp_path / "logits"), *expected]
    subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    found = load_file(tmp_path / "logits")
    assert [run for run, logits in expected.items() if not torch.equal(found[run], logits)] == []


def test_a_bf16_run_comes_back_with_the_same_trained_weights(load_tiny: Load, tiny_base: Path, tmp_path: Path) -> None:
    finished(tmp_path, tiny_base, "goat", "linear")
    classifier = load_tiny("linear")
    prepare_training(classifier, config_for("goat"), precision="bf16")
    disturb(classifier)
    save_run(classifier, tmp_path)
    loaded = load_run(tmp_path)
    trained = trainable(classifier)
    assert all(torch.equal(value, trained[name]) for name, value in loaded.named_parameters() if name in trained)
    classifier.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loaded(pictures()), classifier(pictures()))


def test_saving_twice_keeps_only_the_newer(tiny_base: Path, tmp_path: Path) -> None:
    classifier = finished(tmp_path, tiny_base, "lora", "linear")
    disturb(classifier)
    save_run(classifier, tmp_path)
    assert torch.equal(load_run(tmp_path)(pictures()), classifier(pictures()))
    assert not list(tmp_path.glob("*.tmp"))


def test_head_json_names_head_classes_and_prompts(tiny_base: Path, tmp_path: Path) -> None:
    finished(tmp_path, tiny_base, "lora", "zero_shot")
    about = json.loads((tmp_path / "head.json").read_text())
    assert about["kind"] == "zero_shot"
    assert about["class_names"] == CLASSES
    assert about["templates"] == TEMPLATES
    assert load_run(tmp_path).head.class_names == CLASSES


def _change(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def _break_one(state: dict[str, Tensor]) -> None:
    next(iter(state.values())).view(-1)[0] = float("nan")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("method", "damage", "message"),
    [
        ("lora", lambda run: (run / "head.json").unlink(), r"head\.json cannot be read .*did the run finish"),
        ("lora", lambda run: (run / "head.safetensors").unlink(), "no weights file at .*head"),
        ("lora", lambda run: (run / "config.yaml").unlink(), r"config\.yaml is missing"),
        ("lora", lambda run: (run / "adapter/adapter_model.safetensors").unlink(), "did the run finish"),
        ("goat", lambda run: _cut(run / "adapter/adapter_model.safetensors"), "damaged or incomplete"),
        ("full", lambda run: _cut(run / "model.safetensors"), "damaged or incomplete"),
        ("full", lambda run: (run / "model.safetensors").unlink(), "no weights file at .*model"),
        ("lora", lambda run: _change(run / "head.safetensors", lambda s: s.pop("bias")), "1 missing: bias"),
        ("lora", lambda run: (run / "head.json").write_text("[1]"), r"head\.json cannot be read"),
        ("lora", lambda run: (run / "adapter/adapter_config.json").write_text("[1]"), "no kind of adapter"),
        (
            "goat",
            lambda run: _change(run / "adapter/adapter_model.safetensors", _break_one),
            "1 tensor not finite",
        ),
    ],
)
def test_a_damaged_run_says_what_is_wrong(
    tiny_base: Path, tmp_path: Path, method: Method, damage: Callable[[Path], object], message: str
) -> None:
    finished(tmp_path, tiny_base, method, "linear")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize("method", ["lora", "goat"])
def test_an_adapter_key_too_few_or_too_many_is_an_error(tiny_base: Path, tmp_path: Path, method: Method) -> None:
    finished(tmp_path, tiny_base, method, "zero_shot")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    dropped = sorted(whole)[0]
    _change(file, lambda state: state.pop(dropped))
    with pytest.raises(UserError, match=r"does not fit (the base|this model)") as caught:
        load_run(tmp_path)
    assert dropped in str(caught.value)
    save_file({**whole, dropped.replace("resblocks.0", "resblocks.7"): whole[dropped].clone()}, file)
    with pytest.raises(UserError, match=r"does not fit .*resblocks\.7"):
        load_run(tmp_path)


def test_a_run_on_another_base_of_the_same_shape_is_refused(
    tiny_base: Path, tiny_clip: open_clip.CLIP, tiny_cfg: dict[str, Any], tmp_path: Path
) -> None:
    finished(tmp_path, tiny_base, "lora", "zero_shot")
    other = copy.deepcopy(tiny_clip)
    with torch.no_grad():
        other.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    write_local(other.state_dict(), tiny_cfg, tmp_path / "other")
    text = (tmp_path / "config.yaml").read_text().replace(str(tiny_base), str(tmp_path / "other"))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="was trained on other weights"):
        load_run(tmp_path)


def test_a_run_whose_base_has_moved_names_the_place(tiny_base: Path, tmp_path: Path) -> None:
    finished(tmp_path, tiny_base, "lora", "linear")
    text = (tmp_path / "config.yaml").read_text().replace(str(tiny_base), "/gone")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=f"no /gone/{CONFIG_FILE}"):
        load_run(tmp_path)


@pytest.mark.slow
def test_vit_b_32_trains_two_steps_and_comes_back(tmp_path: Path) -> None:
    """The real shape with random weights, through the local folder that a user would use."""
    torch.manual_seed(0)
    cfg = open_clip.get_model_config("ViT-B-32-quickgelu")
    write_local(open_clip.CLIP(**cfg).state_dict(), cfg, tmp_path / "base")
    model = ModelConfig("ViT-B-32-quickgelu", str(tmp_path / "base" / WEIGHTS_FILE))
    classifier = load_model(model, CLASSES, TEMPLATES)
    adapter = AdapterConfig("goat")
    prepare_training(classifier, adapter)
    objective = ClassificationObjective(classifier.train(), lambda batch: batch["pixels"])
    optimizer = torch.optim.AdamW(trainable(classifier).values(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective(pixels=pictures(2, 224), labels=torch.tensor([0, 2]))["loss"]
        (loss + balance_loss(objective)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    save_run(classifier, tmp_path / "run")
    recipe = VitRecipe(model=model, adapter=adapter)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path / "run")(pictures(1, 224)), classifier.eval()(pictures(1, 224)))
