"""Adapters under torch.compile, autocast, half-precision bases and gradient checkpointing."""

import copy
import shutil

import peft
import pytest
import torch
from torch import nn

from common.adapters import adapter_tensors, balance_loss, build_config
from common.config import OPTIONS
from tests.common.adapters.contract import METHOD_NAMES, OURS, adapt, cases, params
from tests.common.adapters.tiny_models import MODELS, Mlp, shake

# Methods whose layer is another one's with other start values would compile the same graph again.
SAME_GRAPH = (
    "rslora",
    "milora",
    "flora",
    "lora_fb",
    "goat",
    "goat_principal",
    "goat_minor",
    "goat_random",
    "goat_single",
)
GRAPHS = tuple(name for name in METHOD_NAMES if name not in SAME_GRAPH)
# PEFT's own methods that break a contract, and why.
UNCOMPILED = {
    "dora": "PEFT's DoRA asks for the name of a class, which torch.compile cannot trace",
    **dict.fromkeys(("loha", "lokr"), "PEFT draws module_dropout on the host, which breaks the graph"),
}
NO_AUTOCAST = dict.fromkeys(("loha", "lokr"), "PEFT's layer gives float32 under autocast")


def gradients(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Gradients of a training step with a fixed dropout mask, the balance loss included."""
    model.zero_grad()
    torch.manual_seed(11)
    output = MODELS[name].output(model.train())
    (output.float().square().mean() + 100 * balance_loss(model)).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("mode", "method"),
    [*params(GRAPHS, UNCOMPILED, "training"), *params(["moslora", "goat_plus", "full_moe"], None, "evaluation")],
)
def test_an_adapted_layer_compiles_into_one_graph_with_the_same_values(mode: str, method: str) -> None:
    torch.compiler.reset()
    layer = adapt("mlp", method).base_model.model.fc1.train(mode == "training")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = MODELS["mlp"].batch()["x"]
    results = []
    for run in (layer, compiled):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        (y.square().sum() + balance_loss(layer)).backward()
        results.append([y, leaf.grad, *(p.grad for p in layer.parameters() if p.requires_grad)])
    for compiled_value, value in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled_value, value, rtol=1e-4, atol=1e-5)  # float32, sums in another order


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's inductor needs g++")
def test_inductors_code_gives_the_same_values() -> None:
    torch.compiler.reset()
    model = adapt("mlp", "goat")
    x = MODELS["mlp"].batch()["x"]
    torch.testing.assert_close(torch.compile(model, fullgraph=False)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", params(METHOD_NAMES, NO_AUTOCAST))
def test_bfloat16_base_and_autocast_keep_float32_adapter_weights(method: str) -> None:
    x = MODELS["mlp"].batch()["x"]
    torch.manual_seed(1)
    base = Mlp().bfloat16()
    torch.manual_seed(2)
    settings = {"dropout": 0.1} if "dropout" in OPTIONS[method] else {}
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["fc1", "fc2"], **settings))
    assert all(t.dtype == torch.float32 for t in adapter_tensors(model).values() if t.is_floating_point())
    shake(model)
    exact = copy.deepcopy(model).float().eval()
    for cast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = model.train()(x if cast else x.bfloat16())
            assert y.dtype == torch.bfloat16
            (y.float().square().mean() + balance_loss(model)).backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            output = model.eval()(x if cast else x.bfloat16()).float()
        # bfloat16 keeps 8 bits; on average, for a rounded token near a tie may be routed elsewhere
        assert (output - exact(x)).abs().mean() < 0.02 * exact(x).abs().mean()


@pytest.mark.parametrize("method", OURS)
def test_optimizer_steps_on_a_bfloat16_base_are_not_rounded_away(method: str) -> None:
    torch.manual_seed(2)
    model = peft.get_peft_model(Mlp().bfloat16(), build_config(method, r=8, target_modules=["fc1"]))
    shake(model)
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1 + 1e-4)  # below bfloat16's resolution of 2^-8
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters() if key in before)


@pytest.mark.parametrize(("name", "method"), [case for case in cases() if case.values[0] != "mlp"])
def test_gradient_checkpointing_gives_the_same_gradients_balance_loss_included(name: str, method: str) -> None:
    model = adapt(name, method, dropout=0.1)
    expected = gradients(model, name)
    assert expected
    plain = model.base_model.model
    if name == "sdxl":
        plain.enable_gradient_checkpointing()
    else:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # in a frozen model the checkpointed blocks see an input without gradient
    actual = gradients(model, name)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-6)
