"""Parity of every method of our tuner with a float64 transcription of its paper, `reference.py`.

Tolerance: a norm-wise relative error of 1e-6, |actual - expected| <= 1e-6·|expected| in the Frobenius norm: a few
roundings of float32 (6e-8 each) over sums of up to 40 terms.
"""

import math
from collections.abc import Callable

import peft
import pytest
import torch

from common.adapters import METHODS, MosgoatConfig, balance_loss, build_config
from common.adapters.layer import MosgoatLinear
from tests.common.adapters import reference
from tests.common.adapters.reference import FROM_SEGMENTS, TOPK, Setting

IN, OUT, TOKENS = 24, 40, 11
WEIGHTS = ("A", "B", "mixer", "router", "threshold", "threshold_bias", "sigma")
OURS = tuple(
    name
    for name, method in METHODS.items()
    if method.ours and method.build and isinstance(build_config(name, r=8, target_modules=["x"]), MosgoatConfig)
)
MakeLayer = Callable[..., MosgoatLinear]


def config_of(method: str, at: Setting, **overrides: object) -> peft.PeftConfig:
    if method in TOPK:
        overrides |= {"top_k": at.k}
    if method in (*FROM_SEGMENTS, *TOPK, "hydralora", "adamole"):
        overrides |= {"num_experts": at.experts}
    return build_config(method, r=at.r, alpha=at.alpha, target_modules=["x"], **overrides)


def make(
    method: str, layer_of: MakeLayer, at: Setting, shape: tuple[int, int] = (IN, OUT), moved: bool = True
) -> MosgoatLinear:
    layer = layer_of(config_of(method, at), *shape)
    if moved:
        with torch.no_grad():
            for name in WEIGHTS:  # the frozen ones too, so that lora_fb's A and lora_fa's B are not the only ones
                store = getattr(layer, f"mosgoat_{name}")
                if "default" in store:
                    store["default"] += 0.1 * torch.randn_like(store["default"])
            for name in ("U", "V"):  # zero until LoRA-Dash has chosen its directions
                store = getattr(layer, f"mosgoat_{name}")
                if "default" in store:
                    store["default"].normal_()
    return layer


def in_float64(layer: MosgoatLinear) -> dict[str, torch.Tensor]:
    names = {"W0": layer.base_layer.weight, "bias": layer.base_layer.bias}
    for name in (*WEIGHTS, "A0", "B0", "U", "V"):
        store = getattr(layer, f"mosgoat_{name}")
        if "default" in store:
            names[name] = store["default"]
    return {name: value.detach().double().requires_grad_() for name, value in names.items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm()
    assert error <= 1e-6, f"{what}: relative error {error:.1e}"


def test_every_method_of_our_tuner_is_compared() -> None:
    assert set(OURS) == {
        *("ts_mixing", "moslora", "flora", "lora_fa", "lora_fb", "pissa", "milora", "hydralora", "adamole"),
        *("kasa", "lora_dash"),
        *("molora", "goat", "goat_plus", "goat_principal", "goat_minor", "goat_random", "goat_single"),
    }


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(Setting(r=4), id="experts-of-rank-one"),
        pytest.param(Setting(r=8), id="experts-of-rank-two"),
        pytest.param(Setting(r=16, alpha=3.0, experts=8, k=5), id="eight-experts"),
    ],
)
@pytest.mark.parametrize("method", OURS)
def test_forward_gradients_and_balance_loss_agree_with_the_papers(
    method: str, at: Setting, layer_of: MakeLayer
) -> None:
    layer = make(method, layer_of, at)
    weights = in_float64(layer)
    torch.manual_seed(7)
    x, g = torch.randn(TOKENS, IN), torch.randn(TOKENS, OUT)
    x64 = x.double().requires_grad_()
    x.requires_grad_()

    y = layer(x)
    loss = balance_loss(layer)
    y64, loss64, chosen = reference.forward(method, weights, x64, at)
    assert_close(y, y64, "output")
    coefficient = at.k * 1e-3 if method in TOPK else 1e-3
    assert loss.item() == pytest.approx(coefficient * loss64.item(), rel=1e-6)
    assert (loss > 0) == (method in TOPK or method == "adamole")
    if method == "adamole":  # or the threshold would not matter
        assert len({len(experts) for experts in chosen}) > 1

    ((y * g).sum() + 1e4 * loss).backward()
    ((y64 * g.double()).sum() + 1e4 * coefficient * loss64).backward()
    assert_close(x.grad, x64.grad, "gradient of x")
    frozen = {"lora_fa": "A", "lora_fb": "B"}.get(method)
    actual = {name: getattr(layer, f"mosgoat_{name}")["default"].grad for name in WEIGHTS if name in weights}
    assert [name for name, gradient in actual.items() if gradient is None] == ([frozen] if frozen else [])
    for names in (
        ("A",),
        ("B",),
        ("mixer",),
        ("router",),
        ("sigma",),
        ("threshold", "threshold_bias"),
    ):  # τ has one gradient
        if names[0] in weights and names[0] != frozen:
            ours, theirs = (
                torch.cat([grads[name].flatten() for name in names])
                for grads in (actual, {name: weights[name].grad for name in names})
            )
            assert_close(ours, theirs, f"gradient of {names[0]}")


@pytest.mark.parametrize("shape", [(IN, OUT), (OUT, IN)])
@pytest.mark.parametrize("method", [m for m in (*FROM_SEGMENTS, "pissa", "milora") if m != "goat_random"])
def test_start_values_are_the_papers_segments(method: str, shape: tuple[int, int], layer_of: MakeLayer) -> None:
    at = Setting()
    layer = make(method, layer_of, at, shape, moved=False)
    w0 = layer.base_layer.weight.detach().double()
    products = reference.start_product(method, w0, at)
    width = at.r // len(products)
    for j, expected in enumerate(products):
        block = slice(j * width, (j + 1) * width)
        a = layer.mosgoat_A["default"].detach()[block]
        b = layer.mosgoat_B["default"].detach()[:, block]
        # the signs of singular vectors are free, their product is not
        assert_close(b @ a, expected, f"B0·A0 of segment {j}")
        sigma = torch.linalg.svdvals(expected)[:width]
        assert_close(a @ a.T, torch.diag(sigma), f"A0·A0ᵀ of segment {j}")  # √Σ goes to each side
    assert torch.equal(layer.mosgoat_A["default"], layer.mosgoat_A0["default"])
    assert torch.equal(layer.mosgoat_B["default"], layer.mosgoat_B0["default"])


def test_kasa_takes_the_smallest_triplets_out_of_the_weight(layer_of: MakeLayer) -> None:
    at = Setting()
    layer = make("kasa", layer_of, at, moved=False)
    (expected,) = reference.start_product("kasa", layer.base_layer.weight.detach().double(), at)
    assert_close(layer.mosgoat_B0["default"] @ layer.mosgoat_A0["default"], expected, "B0·A0")


def test_random_segments_are_singular_triplets_that_do_not_overlap(layer_of: MakeLayer) -> None:
    layer = make("goat_random", layer_of, Setting(), moved=False)
    a = layer.mosgoat_A0["default"].double()
    gram = a @ a.T
    sigma = torch.linalg.svdvals(layer.base_layer.weight.detach().double()) / (math.sqrt(3 * IN / 8) * 10)
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-6 * gram.max()  # orthogonal: all triplets differ
    nearest = (gram.diagonal()[:, None] - sigma).abs().min(1).values
    assert nearest.max() < 1e-6 * sigma.max()


KAIMING_A = ("ts_mixing", "moslora", "molora", "hydralora", "adamole", "lora_fa", "lora_dash", "kasa")


@pytest.mark.parametrize("method", KAIMING_A)
def test_other_methods_start_as_lora_does(method: str, layer_of: MakeLayer) -> None:
    layer = make(method, layer_of, Setting(r=64), (300, 200), moved=False)
    a = layer.mosgoat_A["default"]
    assert a.shape == (16 if method == "hydralora" else 64, 300)
    assert a.abs().max() <= 1 / math.sqrt(300)  # Kaiming-uniform with a=√5
    assert a.std().item() == pytest.approx(1 / math.sqrt(3 * 300), rel=0.03)  # at least 4800 draws
    assert layer.mosgoat_B["default"].count_nonzero() == 0
    for name in ("router", "threshold", "threshold_bias"):  # as nn.Linear starts
        store = getattr(layer, f"mosgoat_{name}")
        if "default" in store:
            assert 0 < store["default"].abs().max() <= 1 / math.sqrt(300)


def test_flora_starts_with_a_zero_core_between_random_factors(layer_of: MakeLayer) -> None:
    layer = make("flora", layer_of, Setting(r=64), (300, 200), moved=False)
    assert layer.mosgoat_mixer["default"].count_nonzero() == 0
    for store in (layer.mosgoat_A, layer.mosgoat_B):  # Kaiming-normal with a=√3 over the rank
        assert store["default"].std().item() == pytest.approx(math.sqrt(2 / (1 + 3) / 64), rel=0.03)


def test_lora_fb_starts_with_a_gaussian_b_and_a_zero_a(layer_of: MakeLayer) -> None:
    layer = make("lora_fb", layer_of, Setting(r=64), (300, 2000), moved=False)
    assert layer.mosgoat_A["default"].count_nonzero() == 0
    b = layer.mosgoat_B["default"]
    assert b.std().item() == pytest.approx(1 / math.sqrt(2000), rel=0.02)  # 128 000 draws
    assert (b.T @ b - torch.eye(64)).abs().max() < 5 / math.sqrt(2000)  # columns nearly orthonormal
