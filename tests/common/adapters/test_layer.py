"""The adapted layer itself: strength, patterns, frozen parts, dtypes and compilation."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from common.adapters import (
    METHODS,
    MosgoatConfig,
    adapter_tensors,
    balance_loss,
    build_config,
    reset_router_load,
    router_load,
)
from common.adapters.layer import MosgoatLinear
from common.errors import UserError
from tests.common.adapters.tiny_models import shake

OURS = tuple(
    name
    for name, method in METHODS.items()
    if method.build and isinstance(build_config(name, r=8, target_modules=["x"]), MosgoatConfig)
)
Adapted = Callable[..., peft.PeftModel]
MakeMlp = Callable[[], nn.Module]


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_patterns_give_layers_their_own_rank_and_alpha(method: str, mlp: MakeMlp) -> None:
    overrides = {} if method == "moslora" else {"num_experts": 4, "scaling": "alpha_over_r"}
    config = build_config(
        method, r=8, target_modules=["fc1", "fc2"], rank_pattern={"fc2": 16}, alpha_pattern={"fc2": 8}, **overrides
    )
    model = peft.get_peft_model(mlp(), config).base_model.model
    assert model.fc1.mosgoat_A["default"].shape == (8, 24)
    assert model.fc2.mosgoat_A["default"].shape == (16, 40)
    assert (model.fc1.scaling["default"], model.fc2.scaling["default"]) == (2.0, 0.5)


def test_a_mixer_pattern_gives_layers_their_own_mixer_and_is_saved(
    mlp: MakeMlp, x: torch.Tensor, tmp_path: Path
) -> None:
    targets = ["fc1", "fc2"]
    mixers = {"fc1": "identity"}
    model = peft.get_peft_model(mlp(), build_config("moslora", r=8, target_modules=targets, mixer_pattern=mixers))
    shake(model)
    fc1, fc2 = model.base_model.model.fc1, model.base_model.model.fc2
    assert ("default" in fc1.mosgoat_mixer, "default" in fc2.mosgoat_mixer) == (False, True)
    update = 2 * x @ fc1.mosgoat_A["default"].T @ fc1.mosgoat_B["default"].T  # α/r = 2, no mixer
    torch.testing.assert_close(fc1(x), fc1.base_layer(x) + update)
    model.save_pretrained(tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).mixer_pattern == mixers
    loaded = peft.PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(loaded(x), model(x))
    torch.testing.assert_close(model.merge_and_unload()(x), loaded(x), rtol=0, atol=1e-5)


def test_a_butterfly_of_odd_rank_is_an_error_that_names_the_layer(mlp: MakeMlp) -> None:
    config = build_config(
        "moslora", r=8, target_modules=["fc1", "fc2"], mixer_pattern={"fc2": "butterfly"}, rank_pattern={"fc2": 5}
    )
    with pytest.raises(UserError, match="r=5 for layer fc2 must be even for mixer=butterfly"):
        peft.get_peft_model(mlp(), config)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "mixer_pattern"])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_near_names(key: str, mlp: MakeMlp) -> None:
    value = "identity" if key == "mixer_pattern" else 4
    model = mlp()
    with pytest.raises(UserError, match=f"{key}: 'fc3' matches no module; did you mean fc2 or fc1"):
        peft.get_peft_model(model, build_config("moslora", r=8, target_modules=["fc1"], **{key: {"fc3": value}}))
    assert type(model.fc1) is nn.Linear


@pytest.mark.parametrize("shape", [(4, 40), (40, 4)])
@pytest.mark.parametrize("method", OURS)
def test_a_layer_smaller_than_the_rank_is_an_error_for_every_method(method: str, shape: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Linear(*shape))
    with pytest.raises(UserError, match=r"r=8 is larger than the smaller side of layer 0 .*use r <= 4"):
        peft.get_peft_model(net, build_config(method, r=8, target_modules=["0"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_frozen_a_saves_nothing_that_grows_with_the_input_width(
    dropout: float, dtype: torch.dtype, layer_of: Callable[..., MosgoatLinear]
) -> None:
    layer = layer_of(build_config("lora_fa", r=4, target_modules=["x"], dropout=dropout), 256, 64).to(dtype)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        y = layer(torch.randn(1024, 256, dtype=dtype, requires_grad=True))
    assert y.requires_grad
    assert (1024, 4) in shapes  # h, for the gradient of B
    assert max(shape[0] * shape[-1] for shape in shapes if 1024 in shape) == 1024 * 4


@pytest.mark.parametrize("method", OURS)
def test_set_scale_weakens_the_whole_update_residual_included(method: str, adapted: Adapted, x: torch.Tensor) -> None:
    layer = adapted(method).eval().base_model.model.fc1
    base = layer.base_layer(x)
    update = layer(x) - base
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(layer(x) - base, 0.5 * update, rtol=0, atol=1e-5)
    layer.scale_layer(2.0)
    torch.testing.assert_close(layer(x) - base, update, rtol=0, atol=1e-5)
    layer.scale_layer(4.0)
    layer.unscale_layer(4.0)
    torch.testing.assert_close(layer(x) - base, update, rtol=0, atol=1e-5)
    layer.scale_layer(3.0)
    layer.unscale_layer()
    torch.testing.assert_close(layer(x) - base, update, rtol=0, atol=1e-5)
    layer.set_scale("default", 0.0)
    assert torch.equal(layer(x), base)


@pytest.mark.parametrize("method", ["moslora", "goat_plus", "ts_mixing", "hydralora", "adamole"])
def test_compiling_a_layer_breaks_no_graph_and_changes_no_value(method: str, adapted: Adapted, x: torch.Tensor) -> None:
    layer = adapted(method).base_model.model.fc1
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        layer.zero_grad()
        y = run(x)
        loss = balance_loss(layer)
        (y.square().sum() + 100 * loss).backward()
        results.append([y.detach(), loss.detach(), *[p.grad for p in layer.parameters() if p.requires_grad]])
        layer.eval()  # router load is counted there
        results[-1].append(run(x).detach())
        results[-1] += router_load(layer).values()
        reset_router_load(layer)
        layer.train()
    for plain, other in zip(*results, strict=True):
        # norm-wise: float32 sums in another order, which the difference p - τ of adamole magnifies in single entries
        assert (other - plain).norm() <= 2e-6 * plain.norm()


def test_compiled_dropout_drops_and_keeps_the_mean(layer_of: Callable[..., MosgoatLinear]) -> None:
    layer = layer_of(MosgoatConfig(r=8, mixer="topk", init="spread", dropout=0.5, num_experts=4))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 24)
    outputs = compiled(x.expand(20_000, 24)).detach()
    expected = layer.eval()(x)
    assert outputs.std(0).max() > 0
    assert ((outputs.mean(0) - expected[0]).abs() < 5 * outputs.std(0) / 20_000**0.5 + 1e-5).all()


def test_the_start_on_a_bfloat16_base_is_not_rounded(layer_of: Callable[..., MosgoatLinear]) -> None:
    net = nn.Sequential(nn.Linear(24, 40).to(torch.bfloat16))
    config = build_config("goat", r=8, target_modules=["0"])
    layer = peft.get_peft_model(net, config).base_model.model[0]
    a = layer.mosgoat_A0["default"]
    assert not torch.equal(a, a.bfloat16().float())
    assert torch.equal(layer.mosgoat_A["default"], a)


@pytest.mark.parametrize("frozen", ["train_a", "train_b", "train_mixer"])
def test_a_frozen_part_stays_frozen_through_every_switch(frozen: str, mlp: MakeMlp, x: torch.Tensor) -> None:
    init = "gaussian_b" if frozen == "train_b" else "kaiming"
    config = MosgoatConfig(mixer="threshold", init=init, target_modules=["fc1", "fc2"], **{frozen: False})
    model = peft.get_peft_model(mlp(), config)
    parts = {"train_a": ["mosgoat_A"], "train_b": ["mosgoat_B"], "train_mixer": ["mosgoat_router", "mosgoat_threshold"]}
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if any(part in name for part in parts[frozen])]


@pytest.mark.parametrize(("method", "frozen"), [("lora_fa", "mosgoat_A"), ("lora_fb", "mosgoat_B")])
def test_moving_an_adapter_to_another_device_trains_nothing_more(method: str, frozen: str, adapted: Adapted) -> None:
    """PEFT moves an adapter that was read with `low_cpu_mem_usage`; the meta device stands in for a GPU."""
    layer = adapted(method).base_model.model.fc1
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    layer._move_adapter_to_device_of_base_layer("default", torch.device("meta"))
    assert getattr(layer, frozen)["default"].is_meta
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("wrong", [{"alpha": 0}, {"alpha": -1}, {"scaling": 0.0}, {"alpha_pattern": {"fc1": -2}}])
@pytest.mark.parametrize("method", ["pissa", "kasa", "moslora"])
def test_a_strength_of_zero_or_less_is_an_error_and_no_nan(method: str, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*must be positive"):
        build_config(method, r=8, target_modules=["fc1"], **wrong)


def test_the_adapters_tensors_are_named_as_in_the_state_dict(adapted: Adapted) -> None:
    for method in ("goat_plus", "lora"):
        model = adapted(method)
        tensors = adapter_tensors(model)
        state = model.state_dict()
        assert set(tensors) == {name for name in state if "mosgoat_" in name or "lora_" in name}
        assert {n for n, p in model.named_parameters() if p.requires_grad} <= set(tensors)
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert adapter_tensors(nn.Linear(2, 2)) == {}
    layer = adapted("goat").base_model.model.fc1
    assert set(adapter_tensors(layer)) == {f"mosgoat_{name}.default" for name in ("A", "B", "router", "A0", "B0")}
