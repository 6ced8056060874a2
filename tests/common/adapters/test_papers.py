"""Parity with a transcription of the two papers in float64, written token by token and expert by expert.

It shares no code with the package. Tolerance: 1e-6 of the largest entry, a few float32 roundings.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import nn

from common.adapters import MosgoatConfig, balance_loss, build_config
from common.adapters.layer import MosgoatLinear
from common.adapters.routing import route

IN, OUT, TOKENS, E, K = 24, 40, 11, 4, 2
OURS = ("ts_mixing", "moslora", "molora", "goat", "goat_plus", "goat_principal", "goat_minor", "goat_random")
ROUTED = ("molora", "goat", "goat_plus", "goat_principal", "goat_minor", "goat_random")
MakeLayer = Callable[..., MosgoatLinear]


def experts_of(method: str) -> dict[str, int]:
    return {"num_experts": E, "top_k": K} if method in ROUTED else {}


def make(method: str, layer_of: MakeLayer, r: int = 8, moved: bool = True, **overrides: object) -> MosgoatLinear:
    config = build_config(method, r=r, alpha=16.0, target_modules=["x"], **experts_of(method), **overrides)
    layer = layer_of(config, IN, OUT)
    if moved:
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
    return layer


def in_float64(layer: MosgoatLinear) -> dict[str, torch.Tensor]:
    names = {"W0": layer.base_layer.weight, "bias": layer.base_layer.bias}
    for name in ("A", "B", "mixer", "router", "A0", "B0"):
        store = getattr(layer, f"mosgoat_{name}")
        if "default" in store:
            names[name] = store["default"]
    return {name: value.detach().double().requires_grad_() for name, value in names.items()}


def expert_scalings(method: str, w0: torch.Tensor, r: int) -> list[float]:
    """s of every expert, from the papers' formulas and an ordinary SVD."""
    if method == "molora":
        return [16.0 / (r / E)] * E
    s = math.sqrt(3 * IN / r)  # [G] Theorem 3.5
    if method != "goat_plus":
        return [s] * E
    sigma = torch.linalg.svdvals(w0)
    h, d = min(w0.shape), r // E
    sums = [sigma[j * (h // E) : j * (h // E) + d].sum() for j in range(E)]
    return [s * math.sqrt(sums[0] / each) for each in sums]  # [G] eq. 83


def transcribed(method: str, p: dict[str, torch.Tensor], x: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (T, out) and the balance loss."""
    d = r // E
    outputs, probabilities, counts = [], [], [0] * E
    scalings = expert_scalings(method, p["W0"].detach(), r)
    for token in x:
        y = p["W0"] @ token + p["bias"]
        if method == "moslora":
            y = y + 16.0 / r * (p["B"] @ (p["mixer"] @ (p["A"] @ token)))
        elif method == "ts_mixing":
            a1, a2, b1, b2 = p["A"][: r // 2], p["A"][r // 2 :], p["B"][:, : r // 2], p["B"][:, r // 2 :]
            for b in (b1, b2):  # every subspace of B with every one of A
                for a in (a1, a2):
                    y = y + 16.0 / r * (b @ (a @ token))
        else:
            z = p["router"] @ token
            best = sorted(range(E), key=lambda i, z=z: -z[i].item())[:K]
            total = sum(z[i].exp() for i in best)
            for i in range(E):
                block = slice(i * d, (i + 1) * d)
                if i in best:
                    y = y + scalings[i] * z[i].exp() / total * (p["B"][:, block] @ (p["A"][block] @ token))
                    counts[i] += 1
                if "A0" in p:
                    y = y - scalings[i] / E * (p["B0"][:, block] @ (p["A0"][block] @ token))
            probabilities.append(z.exp() / z.exp().sum())
        outputs.append(y)
    loss = torch.zeros((), dtype=torch.float64)
    if probabilities:
        mean = torch.stack(probabilities).mean(0)
        loss = sum(E / (K * len(x)) * counts[i] * mean[i] for i in range(E))
    return torch.stack(outputs), loss


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6, f"{what}: relative error {error:.1e}"


@pytest.mark.parametrize("r", [4, 8])
@pytest.mark.parametrize("method", OURS)
def test_forward_gradients_and_balance_loss_agree_with_the_papers(method: str, r: int, layer_of: MakeLayer) -> None:
    layer = make(method, layer_of, r=r)  # r = 4 = E: experts of rank one
    reference = in_float64(layer)
    torch.manual_seed(7)
    x, g = torch.randn(TOKENS, IN), torch.randn(TOKENS, OUT)
    x64 = x.double().requires_grad_()
    x.requires_grad_()

    y = layer(x)
    loss = balance_loss(layer)
    y64, loss64 = transcribed(method, reference, x64, r)
    assert_close(y, y64, "output")
    coefficient = K * 1e-3 if method in ROUTED else 0.0
    assert loss.item() == pytest.approx(coefficient * loss64.item(), rel=1e-6)

    ((y * g).sum() + 1e4 * loss).backward()
    ((y64 * g.double()).sum() + 1e4 * coefficient * loss64).backward()
    assert_close(x.grad, x64.grad, "gradient of x")
    for name in ("A", "B", "mixer", "router"):
        if name in reference:
            actual = getattr(layer, f"mosgoat_{name}")["default"].grad
            assert_close(actual, reference[name].grad, f"gradient of {name}")


@pytest.mark.parametrize("shape", [(IN, OUT), (OUT, IN)])
@pytest.mark.parametrize("method", [m for m in ROUTED if m not in ("molora", "goat_random")])
def test_start_values_are_the_papers_segments(method: str, shape: tuple[int, int], layer_of: MakeLayer) -> None:
    config = build_config(method, r=8, target_modules=["x"], num_experts=E, top_k=K)
    layer = layer_of(config, *shape)
    w0 = layer.base_layer.weight.detach().double()
    u, sigma, vt = torch.linalg.svd(w0, full_matrices=False)
    h, d, rho = min(shape), 2, 10.0
    s = math.sqrt(3 * shape[0] / 8)
    for j in range(E):
        start = {"goat_principal": j * d, "goat_minor": h - (j + 1) * d}.get(method, j * (h // E))
        part = slice(start, start + d)
        s_j = s
        if method == "goat_plus":
            s_j = s * math.sqrt(sigma[:d].sum() / sigma[part].sum())
        block = slice(j * d, (j + 1) * d)
        a = layer.mosgoat_A["default"].detach()[block]
        b = layer.mosgoat_B["default"].detach()[:, block]
        # the signs of singular vectors are free, their product is not
        assert_close(b @ a, u[:, part] * sigma[part] @ vt[part] / (s_j * rho), f"B0·A0 of expert {j}")
        assert_close(a @ a.T, torch.diag(sigma[part]) / (s_j * rho), f"A0·A0ᵀ of expert {j}")
    assert torch.equal(layer.mosgoat_A["default"], layer.mosgoat_A0["default"])
    assert torch.equal(layer.mosgoat_B["default"], layer.mosgoat_B0["default"])


def test_random_segments_are_singular_triplets_that_do_not_overlap(layer_of: MakeLayer) -> None:
    layer = make("goat_random", layer_of, moved=False)
    a = layer.mosgoat_A0["default"].double()
    gram = a @ a.T
    sigma = torch.linalg.svdvals(layer.base_layer.weight.detach().double()) / (math.sqrt(3 * IN / 8) * 10)
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-6 * gram.max()  # orthogonal: all triplets differ
    nearest = (gram.diagonal()[:, None] - sigma).abs().min(1).values
    assert nearest.max() < 1e-6 * sigma.max()


@pytest.mark.parametrize(("in_features", "r", "expected"), [(768, 8, 16.97), (4096, 8, 39.19), (4096, 32, 19.60)])
def test_theory_scaling_is_theorem_3_5_with_the_total_rank(in_features: int, r: int, expected: float) -> None:
    config = MosgoatConfig(r=r, mixer="topk", init="spread", scaling="theory")
    assert config.scaling_factor(r, 16.0, in_features) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("method", ["goat", "goat_plus", "goat_principal"])
def test_the_mean_effect_of_the_goat_start_is_zero(method: str, layer_of: MakeLayer) -> None:
    """[G] Theorem 3.4: averaged over every possible choice of k experts the adapted weight equals W0."""
    layer = make(method, layer_of, moved=False)
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
