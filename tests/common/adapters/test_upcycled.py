"""The upcycled mixture of experts: what it computes, what it trains, what it costs, what it refuses."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from common.adapters import (
    GOAT_TABLE_1_PARAMETERS,
    adapter_tensors,
    balance_loss,
    build_config,
    reset_router_load,
    router_load,
)
from common.adapters.upcycled import UpcycledConfig, UpcycledLinear
from common.errors import UserError
from tests.common.adapters.tiny_models import Mlp, shake


def adapted(moved: bool = True, **overrides: object) -> nn.Module:
    torch.manual_seed(1)
    config = build_config("full_moe", r=8, target_modules=["fc1", "fc2"], **overrides)
    model = peft.get_peft_model(Mlp(), config)
    if moved:
        shake(model)
    return model


def plain() -> Mlp:
    torch.manual_seed(1)
    return Mlp()


def transcription(layer: UpcycledLinear, x: torch.Tensor, top_k: int) -> torch.Tensor:
    """Every token by itself, in float64: the copies W_e = W0 + Δ_e of its k best experts, weighed by a softmax."""
    router, deltas = (layer.get_parameter(f"upcycled_{n}.default").detach().double() for n in ("router", "experts"))
    base = layer.base_layer.weight.detach().double()
    rows = []
    for token in x.double():
        logits = router @ token
        best = sorted(range(len(logits)), key=lambda e: -logits[e])[:top_k]
        weights = torch.tensor([logits[e].exp() for e in best]).double()
        experts = torch.stack([(base + deltas[e]) @ token for e in best])
        rows.append((weights / weights.sum()) @ experts + layer.base_layer.bias.detach().double())
    return torch.stack(rows)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("compiled", [False, True])
def test_output_is_that_of_the_chosen_copies(
    num_experts: int, top_k: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = adapted(num_experts=num_experts, top_k=top_k).eval().base_model.model.fc1
    x = torch.randn(11, 24, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)  # the branch without shapes that depend on x
    torch.testing.assert_close(layer(x).double(), transcription(layer, x, top_k), rtol=1e-5, atol=2e-6)


def test_gradients_are_those_of_the_copies() -> None:
    layer = adapted().train().base_model.model.fc1
    x = torch.randn(11, 24, generator=torch.Generator().manual_seed(4))
    layer(x).square().sum().backward()
    found = layer.upcycled_experts["default"].grad, layer.upcycled_router["default"].grad
    deltas = layer.upcycled_experts["default"].detach().double().requires_grad_()
    router = layer.upcycled_router["default"].detach().double().requires_grad_()
    logits = x.double() @ router.T
    top, chosen = logits.topk(2)
    every = torch.einsum("ni,eoi->neo", x.double(), layer.base_layer.weight.detach().double() + deltas)
    picked = every.gather(1, chosen[..., None].expand(-1, -1, every.shape[-1]))
    out = (top.softmax(-1)[..., None] * picked).sum(1) + layer.base_layer.bias.detach().double()
    out.square().sum().backward()
    for one, other in zip(found, (deltas.grad, router.grad), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_the_start_is_the_base_model_bit_by_bit() -> None:
    x = torch.randn(3, 5, 24)
    assert torch.equal(adapted(moved=False).eval()(x), plain()(x))


def test_an_expert_without_tokens_gets_a_zero_gradient_and_not_none() -> None:
    model = adapted(num_experts=8, top_k=1).train()
    (model(torch.randn(2, 24)).sum() + balance_loss(model)).backward()  # 2 tokens, 8 experts
    gradient = model.base_model.model.fc1.upcycled_experts["default"].grad
    assert gradient.flatten(1).any(1).sum() <= 2
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_balance_loss_and_router_load_see_its_routers() -> None:
    model = adapted(balance_coef=0.25)
    x = torch.randn(50, 24)
    model.train()(x)
    layer = model.base_model.model.fc1
    logits = x @ layer.upcycled_router["default"].T
    shares = torch.zeros(8)
    for row in logits.topk(2).indices:
        shares[row] += 8 / (2 * 50)
    first = (shares * logits.softmax(-1).mean(0)).sum() * 0.25
    hidden = torch.tanh(layer(x))
    logits = hidden @ model.base_model.model.fc2.upcycled_router["default"].T
    shares = torch.zeros(8).index_add(0, logits.topk(2).indices.flatten(), torch.full((100,), 8 / 100))
    second = (shares * logits.softmax(-1).mean(0)).sum() * 0.25
    model(x)
    torch.testing.assert_close(balance_loss(model), first + second, rtol=1e-5, atol=0)
    reset_router_load(model)
    model.eval()(x)
    assert [len(share) for share in router_load(model).values()] == [8, 8]


def test_only_experts_and_routers_are_trained_and_saved(tmp_path: Path) -> None:
    model = adapted()
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 8 * (24 * 40 + 40 * 20) + 8 * (24 + 40)
    assert set(adapter_tensors(model)) == set(trained)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(plain(), tmp_path).eval()
    x = torch.randn(3, 24)
    assert torch.equal(again(x), model.eval()(x))
    assert isinstance(again.peft_config["default"], UpcycledConfig)


def test_its_size_on_vit_b_32_is_that_of_goats_table_1() -> None:
    block = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (768, 768))
    block |= {"c_fc": (768, 3072), "c_proj": (3072, 768)}
    with torch.device("meta"):
        base = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in block.items()})
        model = peft.get_peft_model(base, build_config("full_moe", r=8, target_modules=list(block)))
    ours = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = 12 * sum(rows * columns for rows, columns in block.values())
    assert ours == 8 * weights + 12 * 8 * (5 * 768 + 3072)
    # the paper's 770 %: the rest of the model, which stays frozen here, is trained too
    assert int(100 * (ours + GOAT_TABLE_1_PARAMETERS - weights) / GOAT_TABLE_1_PARAMETERS) == 770


def test_merging_is_an_error_that_says_why() -> None:
    model = adapted()
    with pytest.raises(UserError, match=r"routes every token to 2 of 8 experts.*cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(UserError, match="top_k=9 must lie between 1 and num_experts=8"):
        build_config("full_moe", r=8, target_modules=["x"], top_k=9)


def test_experts_stay_in_float32_beside_a_bfloat16_base() -> None:
    torch.manual_seed(1)
    config = build_config("full_moe", r=8, target_modules=["fc1", "fc2"])
    model = peft.get_peft_model(Mlp().to(torch.bfloat16), config)
    shake(model)
    assert all(t.dtype == torch.float32 for t in adapter_tensors(model).values())
    with torch.autocast("cpu", torch.bfloat16):
        y = model.train()(torch.randn(5, 24))
        (y.float().square().mean() + balance_loss(model)).backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
