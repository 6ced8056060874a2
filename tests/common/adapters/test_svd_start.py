"""The decomposition behind GOAT's start: its tail, what it refuses, what the user sees of it, when it is left out."""

import io
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from tqdm import tqdm

from common.adapters import MosgoatConfig, build_config, tuner
from common.adapters.layer import MosgoatLinear
from common.adapters.start import svd_segments, svd_start
from common.errors import UserError


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def product(u: torch.Tensor, sigma: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return u * sigma @ v.T


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_segments_far_below_the_largest_value_are_found_too(shape: tuple[int, int]) -> None:
    """One Gram matrix squares 1e-9 into float64's rounding; the exact factors are known here."""
    u, v = orthonormal(shape[0], 40, 1), orthonormal(shape[1], 40, 2)
    sigma = torch.logspace(0, -9, 40, dtype=torch.float64)
    found = svd_segments(u * sigma @ v.T, list(range(40)), 1)
    # rounding W by 1e-16 moves the last values and vectors by about 1e-7; the docstring promises 1e-5
    torch.testing.assert_close(found[1], sigma, rtol=1e-5, atol=0)
    for i in range(40):
        exact = product(u[:, i : i + 1], sigma[i], v[:, i : i + 1])
        ours = product(*(t[..., i : i + 1] for t in found))
        assert (ours - exact).norm() < 1e-5 * sigma[i], i


def test_a_crowded_bulk_a_million_times_below_the_largest_value_is_decomposed() -> None:
    bulk = torch.randn(48, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = orthonormal(48, 4, 4) @ orthonormal(48, 4, 5).T + 1e-6 * bulk / 48**0.5
    exact = torch.linalg.svd(w)
    u, sigma, v = svd_segments(w, [20, 40], 4)
    for j, start in enumerate((20, 40)):
        theirs = product(exact.U[:, start : start + 4], exact.S[start : start + 4], exact.Vh[start : start + 4].T)
        ours = product(u[:, 4 * j : 4 * j + 4], sigma[4 * j : 4 * j + 4], v[:, 4 * j : 4 * j + 4])
        # one Gram matrix gives errors of 1e-2 to 1
        assert (ours - theirs).norm() < 1e-6 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_tiny_matrices_of_every_dtype_are_put_together_again(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    h = min(shape)
    torch.testing.assert_close(product(*svd_segments(w, [0], h)), w.double(), rtol=1e-12, atol=1e-12)


def test_the_triplets_of_a_rank_deficient_weight_stay_orthonormal_or_zero() -> None:
    w = orthonormal(30, 5, 7) @ orthonormal(20, 5, 8).T
    u, sigma, v = svd_segments(w, [0], 20)
    torch.testing.assert_close(v.T @ v, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-10)
    assert sigma[5:].max() < 1e-14
    torch.testing.assert_close(product(u, sigma, v), w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["goat", "kasa"])
def test_a_weight_that_is_not_finite_is_an_error_that_names_its_layer(method: str, value: float) -> None:
    net = nn.ModuleDict({"good": nn.Linear(16, 16), "bad": nn.Linear(16, 16)})
    with torch.no_grad():
        net["bad"].weight[3, 4] = value
    with pytest.raises(UserError, match="the weight of layer bad has values that are not finite"):
        peft.get_peft_model(net, build_config(method, r=8, target_modules=["good", "bad"]))


@pytest.mark.parametrize("rule", ["spread", "principal", "minor", "random"])
def test_a_weight_of_zeros_starts_at_zero(rule: str) -> None:
    start = svd_start(torch.zeros(24, 16), rule=rule, r=8, num_experts=4, scaling=3.0, rho=10.0, plus=False)
    assert not start.a0.any()
    assert not start.b0.any()


class Recorder(tqdm):
    """A progress bar at a terminal, shown from the start."""

    seen: list[tuple[int, int | None, float]] = []  # noqa: RUF012 - one list for the test to look at
    screen = io.StringIO()

    def __init__(self, **options: object) -> None:
        self.screen.isatty = lambda: True  # type: ignore[method-assign]
        self.wanted_delay = options.pop("delay")
        super().__init__(**options, delay=0, file=self.screen)  # type: ignore[arg-type]

    def close(self) -> None:
        if not self.disable:
            self.seen.append((self.n, self.total, float(str(self.wanted_delay))))
        super().close()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None, float]]:
    """(layers done, layers in all, delay in seconds) of each bar shown."""
    Recorder.seen = []
    monkeypatch.setattr(tuner, "tqdm", Recorder)
    return Recorder.seen


def test_the_progress_bar_counts_the_layers_out_of_all(
    bars: list[tuple[int, int | None, float]], mlp: Callable[[], nn.Module]
) -> None:
    model = peft.get_peft_model(mlp(), build_config("goat", r=8, target_modules=["fc1", "fc2"]))
    assert bars == [(2, 2, 2.0)]
    assert "2/2" in Recorder.screen.getvalue()
    model.add_adapter("second", build_config("goat", r=8, target_modules=["fc1"]))
    assert bars[1:] == [(1, 1, 2.0)]


def test_there_is_no_bar_where_nothing_is_decomposed(
    bars: list[tuple[int, int | None, float]], mlp: Callable[[], nn.Module], tmp_path: Path
) -> None:
    peft.get_peft_model(mlp(), build_config("moslora", r=8, target_modules=["fc1", "fc2"]))
    assert not bars


def test_nothing_is_printed_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mlp: Callable[[], nn.Module]
) -> None:
    monkeypatch.setattr(tuner, "tqdm", lambda delay, **options: tqdm(delay=0, **options))
    peft.get_peft_model(mlp(), build_config("goat", r=8, target_modules=["fc1", "fc2"]))
    assert "decomposing" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["goat", "goat_plus", "goat_minor"])
def test_a_saved_adapter_loads_with_no_decomposition(
    method: str, monkeypatch: pytest.MonkeyPatch, mlp: Callable[[], nn.Module], x: torch.Tensor, tmp_path: Path
) -> None:
    model = peft.get_peft_model(mlp(), build_config(method, r=8, target_modules=["fc1", "fc2"])).eval()
    expected = model(x)
    model.save_pretrained(tmp_path)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("decomposed")

    for name in ("eigh", "svd", "qr", "eig"):
        monkeypatch.setattr(torch.linalg, name, fail)
    with pytest.raises(AssertionError, match="decomposed"):
        peft.get_peft_model(mlp(), build_config(method, r=8, target_modules=["fc1"]))
    loaded = peft.PeftModel.from_pretrained(mlp(), tmp_path).eval()
    assert torch.equal(loaded(x), expected)
    loaded.load_adapter(str(tmp_path), adapter_name="second")
    loaded.set_adapter("second")
    assert torch.equal(loaded(x), expected)


def test_the_start_of_a_bfloat16_weight_is_that_of_its_values(layer_of: Callable[..., MosgoatLinear]) -> None:
    settings = {"r": 8, "mixer": "topk", "init": "spread", "num_experts": 4, "scaling": 3.0}
    layer = layer_of(MosgoatConfig(**settings))
    weight = layer.base_layer.weight.detach().bfloat16()
    options = {"rule": "spread", "r": 8, "num_experts": 4, "scaling": 3.0, "rho": 10.0, "plus": False}
    half, full = svd_start(weight, **options), svd_start(weight.double(), **options)
    assert torch.equal(half.a0, full.a0)
    assert torch.equal(half.b0, full.b0)


def test_a_4_bit_weight_starts_from_the_values_it_stands_for() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    net = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 128, bias=False, quant_type="nf4", compute_dtype=torch.float32))
    net.to("cpu")  # quantises
    values = net(torch.eye(64)).detach().T  # (out, in)
    torch.manual_seed(0)
    original = nn.Linear(64, 128, bias=False).weight
    layer = peft.get_peft_model(net, build_config("goat", r=8, target_modules=["0"])).base_model.model[0]
    found = layer.mosgoat_B0["default"] @ layer.mosgoat_A0["default"]
    options = {"rule": "spread", "r": 8, "num_experts": 8, "scaling": (3 * 64 / 8) ** 0.5, "rho": 10.0, "plus": False}
    expected, other = svd_start(values, **options), svd_start(original, **options)
    # bitsandbytes may give its values back in bfloat16, 8 bits
    error = (found - expected.b0 @ expected.a0).norm() / found.norm()
    assert error < 0.1 < (found - other.b0 @ other.a0).norm() / found.norm()
