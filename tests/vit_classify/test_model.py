"""Loading a classifier, making it trainable, and getting a finished run back."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.adapters import balance_loss
from common.config import AdapterConfig, Method, Precision
from common.errors import UserError
from common.recipes import to_dict
from vit_classify.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_local
from vit_classify.config import ModelConfig, VitRecipe
from vit_classify.model import VitClassifier, load_model, load_run, prepare_training, save_run
from vit_classify.objective import ClassificationObjective

CLASSES = ["stop sign", "yield sign", "speed limit"]
TEMPLATES = ["a photo of a {}.", "a blurry {}"]
ADAPTERS: list[Method] = ["lora", "moslora", "goat", "goat_plus"]

Load = Callable[..., VitClassifier]


@pytest.fixture
def load_tiny(tiny_base: Path) -> Load:
    def load(head: str = "zero_shot", **options: Any) -> VitClassifier:
        return load_model(ModelConfig(f"local-dir:{tiny_base}", head=head), CLASSES, TEMPLATES, **options)  # type: ignore[arg-type]

    return load


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def disturb(classifier: VitClassifier) -> None:
    """Move everything that is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(classifier).values():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device))


def config_for(method: Method, **options: Any) -> AdapterConfig:
    return AdapterConfig(method, **({} if method in ("full", "linear_probe") else {"dropout": 0.0}), **options)


# -- loading


def test_zero_shot_logits_are_those_of_open_clip(tiny_base: Path, tiny_clip: open_clip.CLIP) -> None:
    classifier = load_model(ModelConfig(f"local-dir:{tiny_base}"), CLASSES, ["a photo of a {}."])
    text = open_clip.SimpleTokenizer()([f"a photo of a {name}." for name in CLASSES])
    with torch.no_grad():
        theirs, _ = tiny_clip.get_logits(pictures(), text)
        torch.testing.assert_close(classifier(pictures()), theirs, rtol=1e-5, atol=1e-5)


def test_a_quickgelu_model_read_without_quickgelu_would_give_other_logits(
    tiny_base: Path, tiny_cfg: dict[str, Any], tiny_clip: open_clip.CLIP, tmp_path: Path
) -> None:
    """Why a mismatch is an error: it is silent, and not small."""
    save_local(tiny_clip, {**tiny_cfg, "quick_gelu": False}, tmp_path)
    logits = [
        load_model(ModelConfig(f"local-dir:{folder}"), CLASSES, TEMPLATES)(pictures())
        for folder in (tiny_base, tmp_path)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["zero_shot", "linear"])
def test_a_loaded_classifier_is_frozen_and_has_no_text_tower(load_tiny: Load, head: str) -> None:
    classifier = load_tiny(head)
    assert trainable(classifier) == {}
    assert not classifier.training
    assert all(name.startswith(("tower.", "head.")) for name, _ in classifier.named_parameters())
    assert not any("token_embedding" in name for name in classifier.state_dict())
    assert classifier.image_size == 32
    assert classifier.mean == open_clip.OPENAI_DATASET_MEAN
    assert classifier(pictures()).shape == (2, 3)


def test_loading_is_deterministic_and_leaves_the_random_state_alone(load_tiny: Load) -> None:
    before = torch.get_rng_state()
    first, second, other = (load_tiny("linear", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(pictures()), second(pictures()))
    assert not torch.equal(first(pictures()), other(pictures()))


def test_no_classes_or_no_prompts_is_an_error(tiny_base: Path) -> None:
    config = ModelConfig(f"local-dir:{tiny_base}")
    with pytest.raises(UserError, match="no class"):
        load_model(config, [], TEMPLATES)
    with pytest.raises(UserError, match=r"data\.templates"):
        load_model(config, CLASSES, [])


def test_pictures_that_are_not_square_are_refused(tiny_cfg: dict[str, Any], tmp_path: Path) -> None:
    cfg = {**tiny_cfg, "vision_cfg": {**tiny_cfg["vision_cfg"], "image_size": [32, 16]}}
    save_local(open_clip.CLIP(**cfg), cfg, tmp_path)
    with pytest.raises(UserError, match="32x16"):
        load_model(ModelConfig(f"local-dir:{tmp_path}", head="linear"), CLASSES, TEMPLATES)


# -- making it trainable


@pytest.mark.parametrize("head", ["zero_shot", "linear"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_only_adapter_and_linear_head_are_trained(load_tiny: Load, method: Method, head: str) -> None:
    classifier = load_tiny(head)
    prepare_training(classifier, config_for(method))
    names = set(trainable(classifier))
    assert {name for name in names if name.startswith("head.")} == (
        {"head.weight", "head.bias"} if head == "linear" else set()
    )
    inside = {name for name in names if name.startswith("tower.")}
    assert inside
    assert all("lora_" in name or "mosgoat_" in name for name in inside)
    for layer in ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"):
        assert any(layer in name for name in inside)


def test_full_trains_the_whole_tower_and_linear_probe_only_the_head(load_tiny: Load) -> None:
    full, probe = load_tiny("zero_shot"), load_tiny("linear")
    prepare_training(full, config_for("full"))
    assert len(trainable(full)) == len(list(full.tower.parameters()))
    prepare_training(probe, config_for("linear_probe"))
    assert set(trainable(probe)) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("method", [*ADAPTERS, "full"])
def test_every_trained_weight_gets_a_gradient_within_two_steps(load_tiny: Load, method: Method) -> None:
    """Two steps, because B = 0 keeps the gradient from A and the mixer in the first."""
    classifier = load_tiny("linear")
    prepare_training(classifier, config_for(method))
    objective = ClassificationObjective(classifier.train(), lambda batch: batch["pixels"])
    optimizer = torch.optim.SGD(trainable(classifier).values(), lr=0.1)
    moved: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        out = objective(pixels=pictures(4), labels=torch.tensor([0, 1, 2, 0]))
        (out["loss"] + balance_loss(objective)).backward()
        moved |= {name for name, p in trainable(classifier).items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    # a key's bias shifts all logits of a query alike, which softmax does not see: its gradient is rounding or 0
    assert {name for name in set(trainable(classifier)) - moved if not name.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("method", [*ADAPTERS, "full", "linear_probe"])
def test_bf16_keeps_trained_weights_in_float32_and_frozen_linear_ones_in_bf16(load_tiny: Load, method: Method) -> None:
    exact, classifier = load_tiny("linear"), load_tiny("linear")
    prepare_training(exact, config_for(method))
    prepare_training(classifier, config_for(method), precision="bf16")
    assert {parameter.dtype for parameter in trainable(classifier).values()} == {torch.float32}
    weights = [
        module.weight
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in ("lora_", "mosgoat_"))
    ]
    assert len(weights) == 12
    assert {weight.dtype for weight in weights} == {torch.float32 if method == "full" else torch.bfloat16}
    logits, expected = classifier(pictures()), exact(pictures())
    assert logits.dtype == torch.float32
    # bfloat16 has 8 bits: a per cent of the logits' size over two blocks
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    assert not torch.equal(logits, expected)


@pytest.mark.parametrize("method", ["lora", "goat", "full"])
def test_gradient_checkpointing_changes_no_gradient(load_tiny: Load, method: Method) -> None:
    """Also not that of the balance loss, which reentrant checkpointing loses."""
    gradients = []
    for recompute in (False, True):
        classifier = load_tiny("linear")
        torch.manual_seed(0)  # the adapters' start
        prepare_training(classifier, config_for(method), gradient_checkpointing=recompute)
        disturb(classifier)
        objective = ClassificationObjective(classifier.train(), lambda batch: batch["pixels"])
        out = objective(pixels=pictures(4), labels=torch.tensor([0, 1, 2, 0]))
        (out["loss"] + balance_loss(objective)).backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(classifier).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=name)


def test_gradient_checkpointing_keeps_fewer_activations(load_tiny: Load) -> None:
    kept = []
    for recompute in (False, True):
        classifier = load_tiny("linear")
        prepare_training(classifier, config_for("lora"), gradient_checkpointing=recompute)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            classifier.train()(pictures(4))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("method", ADAPTERS)
def test_base_weight_is_never_modified(load_tiny: Load, method: Method) -> None:
    classifier = load_tiny("zero_shot")
    before = {name: value.clone() for name, value in classifier.tower.state_dict().items()}
    prepare_training(classifier, config_for(method))
    optimizer = torch.optim.AdamW(trainable(classifier).values(), lr=0.1)
    classifier.train()(pictures()).logsumexp(1).sum().backward()
    optimizer.step()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in classifier.tower.state_dict().items()
    }
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_a_target_that_matches_nothing_is_an_error(load_tiny: Load) -> None:
    with pytest.raises(UserError, match="q_proj"):
        prepare_training(load_tiny(), AdapterConfig(target_modules=["q_porj"]))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "precision"), [("moslora", "float32"), ("goat", "bf16")])
def test_the_forward_compiles_as_one_graph(load_tiny: Load, method: Method, precision: Precision) -> None:
    classifier = load_tiny("zero_shot")
    prepare_training(classifier, config_for(method), precision=precision)
    torch.compiler.reset()
    compiled = torch.compile(classifier.train(), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pictures()), classifier(pictures()), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ADAPTERS)
def test_a_gpu_gives_the_logits_of_the_cpu(load_tiny: Load, method: Method) -> None:
    logits = []
    for device in ("cpu", "cuda"):
        classifier = load_tiny("zero_shot", device=device)
        torch.manual_seed(0)
        prepare_training(classifier, config_for(method))
        disturb(classifier)
        logits.append(classifier(pictures().to(device)).detach().cpu())
    # float32 on both, summed in another order; TF32 is off by default
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


# -- runs


def finished(directory: Path, base: Path, method: Method, head: str) -> VitClassifier:
    """A run directory as `mosgoat vit train` leaves it; the trained weights are random ones."""
    model = ModelConfig(f"local-dir:{base}", head=head)  # type: ignore[arg-type]
    classifier = load_model(model, CLASSES, TEMPLATES)
    adapter = config_for(method)
    prepare_training(classifier, adapter)
    disturb(classifier)
    save_run(classifier, directory)
    (directory / "config.yaml").write_text(yaml.safe_dump(to_dict(VitRecipe(model=model, adapter=adapter))))
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
            "1 tensors are not finite",
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
    save_local(other, tiny_cfg, tmp_path / "other")
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
    save_local(open_clip.CLIP(**cfg), cfg, tmp_path / "base")
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
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(to_dict(recipe)))
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path / "run")(pictures(1, 224)), classifier.eval()(pictures(1, 224)))
