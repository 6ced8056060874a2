"""Routing, the balance loss, and the record that layers keep of it."""

import copy
import pickle
from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.adapters import MosgoatConfig, balance_loss, reset_router_load, router_load, set_token_mask
from common.adapters.layer import MosgoatLinear
from common.adapters.routing import expert_counts, load_balance, route, route_by_threshold

Adapted = Callable[..., peft.PeftModel]


def test_equal_logits_choose_exactly_k_experts_with_equal_weights() -> None:
    weights, chosen = route(torch.zeros(5, 8), 3)
    assert ((weights > 0).sum(-1) == 3).all()
    assert torch.equal(weights[weights > 0], torch.full((15,), 1 / 3))
    assert all(len(set(row.tolist())) == 3 for row in chosen)


def test_a_tie_at_the_edge_chooses_exactly_k_experts() -> None:
    weights, _ = route(torch.tensor([[1.0, 0.0, 0.0, -1.0]]), 2)
    assert (weights > 0).sum() == 2
    assert weights[0, 0] == pytest.approx(1 / (1 + torch.e**-1))
    assert weights.sum() == pytest.approx(1.0)


def test_routing_equals_softmax_then_top_k_then_renormalise() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    top, index = p.topk(2)
    expected = torch.zeros_like(p).scatter(1, index, top / top.sum(-1, keepdim=True))
    torch.testing.assert_close(route(logits, 2)[0], expected)


def test_logits_far_apart_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 3.0]], requires_grad=True)
    weights, chosen = route(logits, 2)
    (weights.sum() + load_balance(logits, chosen)).backward()
    assert torch.isfinite(logits.grad).all()


def test_equal_logits_choose_every_expert_below_any_threshold() -> None:
    weights, chosen = route_by_threshold(torch.zeros(3, 8), torch.tensor([[-50.0], [0.0], [5.0]]))
    torch.testing.assert_close(weights, torch.full((3, 8), 1 / 8))
    assert chosen.all()


def test_a_threshold_that_rounds_to_its_maximum_leaves_no_nan() -> None:
    logits, threshold = torch.zeros(2, 8, requires_grad=True), torch.full((2, 1), 100.0, requires_grad=True)
    weights, chosen = route_by_threshold(logits, threshold)
    assert torch.equal(weights, torch.zeros(2, 8))  # p = τ = 1/8 in float32
    assert chosen.all()
    weights.sum().backward()
    assert logits.grad.isfinite().all()
    assert threshold.grad.isfinite().all()


def test_a_tie_above_the_threshold_gives_equal_weights_and_below_it_none() -> None:
    weights, chosen = route_by_threshold(torch.tensor([[2.0, 2.0, 0.0, 0.0]]), torch.tensor([[10.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert chosen.tolist() == [[True, True, False, False]]


def test_every_token_has_an_expert_whatever_its_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, threshold = torch.randn(500, 8, generator=generator), 5 * torch.randn(500, 1, generator=generator)
    weights, chosen = route_by_threshold(logits, threshold)
    torch.testing.assert_close(weights.sum(-1), torch.ones(500))
    assert torch.equal(weights > 0, chosen)
    assert len(set(chosen.sum(-1).tolist())) > 4  # the number differs from token to token


def test_the_balance_loss_of_a_threshold_is_the_mean_number_of_experts_when_balanced() -> None:
    chosen = torch.eye(4, dtype=torch.bool).repeat(3, 1)
    for number in (1, 2):
        each = chosen | chosen.roll(1, dims=-1) if number == 2 else chosen
        assert load_balance(torch.zeros(12, 4), each).item() == pytest.approx(number)
    mask = torch.arange(12) < 5
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_balance(logits, chosen, mask), load_balance(logits[:5], chosen[:5]))


def test_the_balance_loss_is_one_when_balanced_and_e_over_k_when_collapsed() -> None:
    balanced = 30 * torch.eye(4).repeat(3, 1)
    _, chosen = route(balanced, 1)
    assert load_balance(balanced, chosen).item() == pytest.approx(1.0, abs=1e-5)
    collapsed = torch.tensor([[40.0, 40.0, 0.0, 0.0]]).repeat(6, 1)
    _, chosen = route(collapsed, 2)
    assert load_balance(collapsed, chosen).item() == pytest.approx(2.0, abs=1e-5)


def test_masked_tokens_do_not_count() -> None:
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    _, chosen = route(logits, 2)
    mask = torch.arange(10) < 6
    torch.testing.assert_close(load_balance(logits, chosen, mask), load_balance(logits[:6], chosen[:6]))
    assert torch.equal(expert_counts(chosen, 4, mask), expert_counts(chosen[:6], 4))


def test_no_token_at_all_gives_no_loss_and_no_nan() -> None:
    logits, chosen = torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64)
    assert load_balance(logits, chosen) == 0
    logits, chosen = torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.int64)
    assert load_balance(logits, chosen, torch.zeros(3, dtype=torch.bool)) == 0


def test_the_models_balance_loss_is_the_weighted_sum_over_layers(adapted: Adapted) -> None:
    model = adapted(num_experts=4, top_k=2)
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    model(x)
    expected = 0.0
    layers = [m for m in model.modules() if isinstance(m, MosgoatLinear)]
    for layer, seen in zip(layers, (x, torch.tanh(layers[0](x))), strict=True):
        logits = seen @ layer.mosgoat_router["default"].T
        expected = expected + 2e-3 * load_balance(logits, logits.topk(2).indices)
    model(x)
    torch.testing.assert_close(balance_loss(model), expected)


def test_heads_that_all_act_have_no_balance_loss_and_keep_no_graph(adapted: Adapted) -> None:
    model = adapted("hydralora")
    model(torch.randn(6, 24))
    assert balance_loss(model) == 0
    assert all(layer.routing["default"].logits is None for layer in model.modules() if isinstance(layer, MosgoatLinear))


def test_the_balance_loss_is_zero_without_routed_layers_in_evaluation_and_when_another_adapter_is_active(
    adapted: Adapted, mlp: Callable[[], nn.Module]
) -> None:
    x = torch.randn(6, 24)
    assert balance_loss(mlp()) == 0
    plain = adapted("moslora")
    plain(x)
    assert balance_loss(plain) == 0
    model = adapted()
    model(x)
    assert balance_loss(model) > 0
    model.eval()(x)
    assert balance_loss(model) == 0


@pytest.mark.parametrize("method", ["goat", "adamole"])
def test_the_token_mask_reaches_the_balance_loss_and_stays_until_replaced(method: str, adapted: Adapted) -> None:
    model = adapted(method)
    x = torch.randn(2, 5, 24)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    model(x[mask.bool()])
    expected = balance_loss(model)
    set_token_mask(model, mask)
    model(x)
    torch.testing.assert_close(balance_loss(model), expected)
    set_token_mask(model, None)
    assert balance_loss(model) != expected
    set_token_mask(model, mask[:1])
    with pytest.raises(ValueError, match="has 5 entries but the routed layer saw 10 tokens"):
        balance_loss(model)


@pytest.mark.parametrize("method", ["goat", "adamole", "hydralora", "lora_fa"])
def test_gradient_checkpointing_gives_the_same_gradients_balance_loss_included(method: str, adapted: Adapted) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = adapted(method, dropout=0.1, **{"balance_coef": 5.0} if method in ("goat", "adamole") else {})
        torch.manual_seed(4)
        x = torch.randn(7, 24)
        y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        loss = y.square().sum() + balance_loss(model)
        before = torch.get_rng_state()
        loss.backward()
        assert torch.equal(before, torch.get_rng_state())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert any("router" in name for name in gradients[0]) or method == "lora_fa"
    for name, plain in gradients[0].items():
        assert torch.equal(plain, gradients[1][name]), name


def test_recomputation_in_the_backward_keeps_no_second_graph(adapted: Adapted) -> None:
    model = adapted()
    y = checkpoint(model, torch.randn(7, 24), use_reentrant=False)
    records = [layer.routing["default"] for layer in model.modules() if isinstance(layer, MosgoatLinear)]
    kept = [record.logits for record in records]
    (y.sum() + balance_loss(model)).backward()
    assert all(record.logits is logits for record, logits in zip(records, kept, strict=True))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("method", ["goat", "adamole"])
def test_a_model_copies_while_a_balance_loss_is_pending(method: str, copier: Callable, adapted: Adapted) -> None:
    model = adapted(method)
    x = torch.randn(3, 24)
    model(x)
    twin = copier(model)
    assert balance_loss(model) > 0
    assert balance_loss(twin) == 0
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_router_load_is_the_share_of_slots_over_evaluation_passes(adapted: Adapted) -> None:
    model = adapted(num_experts=4, top_k=2).eval()
    parts = torch.randn(12, 24, generator=torch.Generator().manual_seed(0)).split(5)
    for part in parts:
        model(part)
    load = router_load(model)
    assert sorted(load) == ["base_model.model.fc1", "base_model.model.fc2"]
    logits = torch.cat(parts) @ model.base_model.model.fc1.mosgoat_router["default"].T
    expected = torch.bincount(logits.topk(2).indices.flatten(), minlength=4) / 24
    torch.testing.assert_close(load["base_model.model.fc1"], expected)
    model.train()(parts[0])
    assert torch.equal(router_load(model)["base_model.model.fc1"], load["base_model.model.fc1"])
    reset_router_load(model)
    assert router_load(model) == {}


def probabilities(model: peft.PeftModel, x: torch.Tensor) -> torch.Tensor:
    return (x @ model.base_model.model.fc1.mosgoat_router["default"].T).softmax(-1)


def test_router_load_of_a_threshold_counts_the_experts_above_it(adapted: Adapted) -> None:
    model = adapted("adamole", num_experts=4).eval()
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    set_token_mask(model, torch.arange(50) < 30)
    model(x)
    fc1 = model.base_model.model.fc1
    tau = (x @ fc1.mosgoat_threshold["default"].T + fc1.mosgoat_threshold_bias["default"]).sigmoid() / 4
    counts = (probabilities(model, x) > tau)[:30].sum(0)
    assert 30 < counts.sum() < 120  # more than one expert a token, and not all
    torch.testing.assert_close(router_load(model)["base_model.model.fc1"], counts / counts.sum())


def test_router_load_of_heads_that_all_act_is_their_mean_weight(adapted: Adapted) -> None:
    model = adapted("hydralora", num_experts=4).eval()
    parts = torch.randn(12, 24, generator=torch.Generator().manual_seed(0)).split(5)
    for part in parts:
        model(part)
    load = router_load(model)["base_model.model.fc1"]
    assert not load.requires_grad
    torch.testing.assert_close(load, probabilities(model, torch.cat(parts)).mean(0).detach())
    reset_router_load(model)
    set_token_mask(model, torch.tensor([1, 0, 1, 0, 0]))
    model(parts[0])
    load = router_load(model)["base_model.model.fc1"]
    torch.testing.assert_close(load, probabilities(model, parts[0])[[0, 2]].mean(0).detach())


def test_logits_are_float32_on_bfloat16_activations(layer_of: Callable[..., MosgoatLinear]) -> None:
    layer = layer_of(MosgoatConfig(r=8, mixer="topk", num_experts=4))
    layer.base_layer.to(torch.bfloat16)
    x = torch.randn(9, 24).bfloat16().requires_grad_()
    y = layer(x)
    logits = layer.routing["default"].logits
    assert y.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, x.float() @ layer.mosgoat_router["default"].T)
    (y.float().sum() + balance_loss(layer)).backward()
    assert layer.mosgoat_router["default"].grad.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
