"""Properties that the papers claim or that follow from them; parity with their formulas is in test_parity.py."""

import copy
import itertools
from collections.abc import Callable

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn

from common.adapters import MosgoatConfig, build_config, trainable_fraction
from common.adapters.layer import MosgoatLinear
from common.adapters.routing import route

IN, OUT, E, K = 24, 40, 4, 2
MakeLayer = Callable[..., MosgoatLinear]


@pytest.mark.parametrize(("in_features", "r", "expected"), [(768, 8, 16.97), (4096, 8, 39.19), (4096, 32, 19.60)])
def test_theory_scaling_is_theorem_3_5_with_the_total_rank(in_features: int, r: int, expected: float) -> None:
    config = MosgoatConfig(r=r, mixer="topk", init="spread", scaling="theory")
    assert config.scaling_factor(r, 16.0, in_features) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("method", ["goat", "goat_plus", "goat_principal"])
def test_the_mean_effect_of_the_goat_start_is_zero(method: str, layer_of: MakeLayer) -> None:
    """[G] Theorem 3.4: averaged over every possible choice of k experts the adapted weight equals W0."""
    layer = layer_of(build_config(method, r=8, target_modules=["x"], num_experts=E, top_k=K), IN, OUT)
    torch.manual_seed(0)
    x = torch.randn(7, IN).abs()  # so that a router row of ones gives a positive logit
    updates = []
    for pair in itertools.combinations(range(E), K):
        with torch.no_grad():
            layer.mosgoat_router["default"].fill_(-1.0)[list(pair)] = 1.0
            updates.append(layer(x) - layer.base_layer(x))
    largest = max(update.abs().max() for update in updates)
    assert largest > 0.01  # a single choice does change the output
    assert torch.stack(updates).mean(0).abs().max() < 1e-5 * largest  # float32 sums of six terms


@pytest.mark.parametrize("method", ["goat_single", "pissa", "milora", "flora", "lora_fa", "lora_fb"])
def test_without_routing_the_start_changes_nothing_though_the_factors_are_not_zero(
    method: str, layer_of: MakeLayer
) -> None:
    """W0 + s·B·M·A - R = W0."""
    layer = layer_of(build_config(method, r=8, alpha=4.0, target_modules=["x"]), IN, OUT)
    x = torch.randn(7, IN, generator=torch.Generator().manual_seed(0))
    expected = layer.base_layer(x)
    assert (layer(x) - expected).norm() <= 1e-6 * expected.norm()  # s·B·A - R cancels to float32 rounding
    assert layer.mosgoat_A["default"].count_nonzero() + layer.mosgoat_B["default"].count_nonzero() > 0


def test_random_routing_has_the_papers_mean_and_variance() -> None:
    """[G]: E[w] = 1/E and Var[w] = (E-k)/(kE²) when the k chosen logits are nearly equal."""
    torch.manual_seed(0)
    weights, _ = route(1e-4 * torch.randn(200_000, 8), 2)
    assert weights.mean(0).sub(1 / 8).abs().max() < 2e-3  # five standard errors
    assert weights.var(0).sub(6 / (2 * 64)).abs().max() < 1e-3


def sgd(layer: nn.Module, x: torch.Tensor, target: torch.Tensor, steps: int = 20) -> None:
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("trained", [False, True])
def test_a_fixed_orthogonal_mixer_is_lora_and_a_trained_one_is_not(trained: bool, layer_of: MakeLayer) -> None:
    """[M] eq. 9 and 10: with M orthogonal and fixed, training equals LoRA's started at Â = M·A."""
    ours = layer_of(MosgoatConfig(r=4, mixer="dense", mixer_init="orthogonal", train_mixer=trained)).double()
    lora = layer_of(MosgoatConfig(r=4, mixer="identity")).double()
    with torch.no_grad():
        # orthogonal to float64 precision, as the tolerance below asks
        ours.mosgoat_mixer["default"].copy_(torch.linalg.qr(ours.mosgoat_mixer["default"]).Q)
        lora.mosgoat_A["default"].copy_(ours.mosgoat_mixer["default"] @ ours.mosgoat_A["default"])
    torch.manual_seed(5)
    x, target = torch.randn(64, 24).double(), torch.randn(64, 40).double()
    for layer in (ours, lora):
        sgd(layer, x, target)
    difference = (ours(x) - lora(x)).abs().max().item()
    assert (ours(x) - ours.base_layer(x)).abs().max() > 0.1  # both learned something
    assert difference > 1e-3 if trained else difference < 1e-12


def test_zero_mixer_and_zero_b_get_no_gradient(layer_of: MakeLayer) -> None:
    layer = layer_of(MosgoatConfig(r=4, mixer="dense", mixer_init="zero"))
    layer(torch.randn(5, 24)).square().sum().backward()
    assert all(p.grad.count_nonzero() == 0 for p in layer.parameters() if p.requires_grad)


def test_the_first_step_moves_the_weight_by_the_equivalent_gradient() -> None:
    """[G]: one step of SGD on A and B moves s·BA by -lr·s²(BBᵀg + gAᵀA), g the gradient of the full weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40))
    config = MosgoatConfig(r=8, mixer="identity", init="principal", scaling=2.0, rho=1.0, target_modules=["0"])
    layer = get_peft_model(net, config).base_model.model[0].double()
    x, g_y = torch.randn(9, 24).double(), torch.randn(9, 40).double()
    g = g_y.T @ x
    a, b = (store["default"].detach().clone() for store in (layer.mosgoat_A, layer.mosgoat_B))
    before = layer.get_delta_weight("default")
    (layer(x) * g_y).sum().backward()
    lr = 1e-7  # the step's second-order term is lr times smaller
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter -= lr * parameter.grad
    moved = (layer.get_delta_weight("default") - before) / -lr
    expected = 2.0**2 * (b @ b.T @ g + g @ a.T @ a)
    assert (moved - expected).abs().max() < 1e-3 * expected.abs().max()


def solve(layer: nn.Module, x: torch.Tensor, target: torch.Tensor) -> None:
    """Train to the optimum of the squared error."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    settings = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 1e-18}
    optimizer = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **settings)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_lora_fa_reaches_the_closed_form_optimum_of_its_frozen_a(layer_of: MakeLayer) -> None:
    """On a linear regression with target W*: B* = W*·XXᵀA0ᵀ(A0·XXᵀA0ᵀ)⁻¹, here divided by s."""
    layer = layer_of(build_config("lora_fa", r=4, alpha=8.0, target_modules=["x"]), IN, OUT).double()
    torch.manual_seed(0)
    x, w = torch.randn(100, IN).double(), torch.randn(OUT, IN).double()
    a0 = layer.mosgoat_A["default"].detach().clone()
    solve(layer, x, layer.base_layer(x).detach() + x @ w.T)
    gram = x.T @ x
    expected = w @ gram @ a0.T @ torch.linalg.inv(a0 @ gram @ a0.T) / 2.0
    assert torch.equal(layer.mosgoat_A["default"], a0)
    torch.testing.assert_close(layer.mosgoat_B["default"].detach(), expected, rtol=0, atol=1e-6 * expected.abs().max())


def test_lora_fb_reaches_the_closed_form_optimum_of_its_frozen_orthonormal_b(layer_of: MakeLayer) -> None:
    """On a linear regression with target W*: A* = B0ᵀW*, here divided by s."""
    layer = layer_of(build_config("lora_fb", r=4, alpha=8.0, target_modules=["x"]), IN, OUT).double()
    torch.manual_seed(0)
    x, w = torch.randn(100, IN).double(), torch.randn(OUT, IN).double()
    b0 = torch.linalg.qr(torch.randn(OUT, 4).double()).Q
    with torch.no_grad():
        layer.mosgoat_B["default"].copy_(b0)
    solve(layer, x, layer.base_layer(x).detach() + x @ w.T)
    expected = b0.T @ w / 2.0
    assert torch.equal(layer.mosgoat_B["default"], b0)
    torch.testing.assert_close(layer.mosgoat_A["default"].detach(), expected, rtol=0, atol=1e-6 * expected.abs().max())


def pissa_pair() -> tuple[peft.PeftModel, peft.PeftModel]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, IN))
    ours = get_peft_model(copy.deepcopy(base), build_config("pissa", r=6, alpha=12.0, target_modules=["0", "2"]))
    settings = {"r": 6, "lora_alpha": 12, "target_modules": ["0", "2"], "init_lora_weights": "pissa"}
    return ours, get_peft_model(base, peft.LoraConfig(**settings))


def test_pissa_starts_where_pefts_does_and_leaves_the_base_weight_alone() -> None:
    ours, theirs = pissa_pair()
    for name in ("0", "2"):
        mine, other = (model.base_model.model.get_submodule(name) for model in (ours, theirs))
        a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
        # signs are free, and PEFT's decomposition is in float32
        torch.testing.assert_close(mine.mosgoat_B["default"] @ mine.mosgoat_A["default"], b @ a, rtol=0, atol=1e-6)
        restored = other.base_layer.weight + 2.0 * b @ a  # PEFT has taken the start out of the weight itself
        torch.testing.assert_close(mine.base_layer.weight, restored, rtol=0, atol=1e-6)


def test_pissa_trains_as_pefts_does() -> None:
    torch.manual_seed(1)
    x, target = torch.randn(32, IN), torch.randn(32, IN)
    losses: list[list[float]] = []
    for model in pissa_pair():
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses.append([])
        for _ in range(5):  # AdamW does not see the sign of a singular vector either
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32, five steps of 1e-2
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("pissa", 8 * (IN + OUT)),
        ("milora", 8 * (IN + OUT)),
        ("goat_single", 8 * (IN + OUT)),
        ("ts_mixing", 8 * (IN + OUT)),
        ("moslora", 8 * (IN + OUT) + 8 * 8),
        ("flora", 8 * (IN + OUT) + 8 * 8),
        ("lora_fa", 8 * OUT),
        ("lora_fb", 8 * IN),
        ("molora", 8 * (IN + OUT) + 8 * IN),
        ("goat", 8 * (IN + OUT) + 8 * IN),
        ("adamole", 8 * (IN + OUT) + 8 * IN + IN + 1),  # and the threshold's weight and bias
        ("hydralora", 1 * IN + 8 * OUT + 8 * IN),  # one A of rank r/E = 1
    ],
)
def test_a_layer_trains_as_many_parameters_as_its_method_says(method: str, trained: int) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(IN, OUT))
    model = get_peft_model(net, build_config(method, r=8, target_modules=["0"]))
    assert trainable_fraction(model).trainable == trained
