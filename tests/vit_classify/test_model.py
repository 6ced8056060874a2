"""Loading a classifier, and making it trainable."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from common.adapters import balance_loss
from common.config import AdapterConfig, Method, Precision
from common.errors import UserError
from tests.vit_classify.classifiers import ADAPTERS, CLASSES, TEMPLATES, Load, config_for, disturb, pictures, trainable
from vit_classify.checkpoint import write_local
from vit_classify.config import ModelConfig
from vit_classify.model import load_model, prepare_training
from vit_classify.objective import ClassificationObjective

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
    write_local(tiny_clip.state_dict(), {**tiny_cfg, "quick_gelu": False}, tmp_path)
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
    write_local(open_clip.CLIP(**cfg).state_dict(), cfg, tmp_path)
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
