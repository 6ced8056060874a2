"""Singular segments and start values against independent computations."""

import math

import pytest
import torch

from common.adapters import MosgoatConfig
from common.adapters.start import mixer_start, random_a, segment_starts, svd_segments, svd_start
from common.errors import UserError


def graded(rows: int, columns: int, decades: float) -> torch.Tensor:
    """A float64 matrix whose singular values fall by so many decades."""
    generator = torch.Generator().manual_seed(0)
    h = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, h, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, h, generator=generator, dtype=torch.float64)).Q
    return u * torch.logspace(0, -decades, h, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_segments_equal_the_ordinary_decomposition(shape: tuple[int, int]) -> None:
    w = graded(*shape, decades=3)
    u, sigma, v = svd_segments(w, [0, 9, 20], 3)
    full_u, full_sigma, full_vt = torch.linalg.svd(w, full_matrices=False)
    index = torch.tensor([0, 1, 2, 9, 10, 11, 20, 21, 22])
    torch.testing.assert_close(sigma, full_sigma[index], rtol=1e-9, atol=0)
    for j, i in enumerate(index):  # signs are free: compare the rank-one products
        torch.testing.assert_close(
            torch.outer(u[:, j], v[:, j]), torch.outer(full_u[:, i], full_vt[i]), rtol=0, atol=1e-8
        )


def test_tail_segments_are_more_accurate_than_a_float32_decomposition() -> None:
    w = graded(192, 64, decades=5)
    exact = torch.linalg.svd(w.float().double(), full_matrices=False)
    u, sigma, v = svd_segments(w.float(), [60], 4)
    single = torch.linalg.svd(w.float(), full_matrices=False)
    target = exact.U[:, 60:] * exact.S[60:] @ exact.Vh[60:]
    ours = (u * sigma @ v.T - target).norm()
    theirs = ((single.U[:, 60:] * single.S[60:] @ single.Vh[60:]).double() - target).norm()
    assert ours < theirs / 100


def test_a_rank_deficient_weight_gives_finite_start_values() -> None:
    w = graded(40, 24, decades=1)
    w = w[:, :6] @ torch.randn(6, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = svd_start(w, rule="spread", r=8, num_experts=4, scaling=3.0, rho=10.0, plus=True)
    assert all(torch.isfinite(t).all() for t in (start.a0, start.b0, start.segment_scale))
    assert start.segment_scale.max() < 10  # no segment of rounding noise is blown up
    zero = svd_start(torch.zeros(40, 24), rule="minor", r=8, num_experts=4, scaling=3.0, rho=10.0, plus=True)
    assert all(torch.isfinite(t).all() for t in (zero.a0, zero.b0, zero.segment_scale))


def test_segments_begin_where_the_paper_says() -> None:
    assert segment_starts("spread", 768, 8, 1) == [0, 96, 192, 288, 384, 480, 576, 672]
    assert segment_starts("principal", 768, 4, 2) == [0, 2, 4, 6]
    assert segment_starts("minor", 768, 4, 2) == [766, 764, 762, 760]
    torch.manual_seed(0)
    drawn = segment_starts("random", 20, 4, 3)
    assert len(set(drawn)) == 4
    assert all(start % 3 == 0 and 0 <= start <= 17 for start in drawn)


def test_segments_are_drawn_on_the_cpu_whatever_the_default_device_is() -> None:
    """So that a start is the same on every machine; the meta device, which draws nothing, stands in for a GPU."""
    torch.manual_seed(0)
    expected = segment_starts("random", 20, 4, 3)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert segment_starts("random", 20, 4, 3) == expected


def test_random_starts_have_the_stated_spread() -> None:
    torch.manual_seed(0)
    kaiming = random_a("kaiming", 64, 300)
    assert kaiming.abs().max() <= 1 / math.sqrt(300)  # bound of a=√5
    assert kaiming.std().item() == pytest.approx(1 / math.sqrt(3 * 300), rel=0.02)  # 19 200 draws
    assert random_a("gaussian", 64, 300).std().item() == pytest.approx(1 / 64, rel=0.02)


def test_mixer_starts_are_what_their_names_say() -> None:
    torch.manual_seed(0)
    q = mixer_start("orthogonal", 16)
    torch.testing.assert_close(q @ q.T, torch.eye(16), rtol=0, atol=1e-6)
    assert torch.equal(mixer_start("identity", 4), torch.eye(4))
    assert torch.equal(mixer_start("zero", 4), torch.zeros(4, 4))
    assert mixer_start("kaiming", 64).abs().max() <= 1 / 8
    assert mixer_start("normal", 64).std().item() == pytest.approx(1 / 8, rel=0.05)  # 4096 draws


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": "topk", "r": 12}, "r=12 is not a multiple of num_experts=8; use 8, 16, 24"),
        ({"mixer": "topk", "r": 8, "rank_pattern": {"fc1": 4}}, "r=4 is not a multiple"),
        ({"mixer": "butterfly", "r": 7}, "r=7 must be even"),
        ({"mixer": "topk", "top_k": 9}, "top_k=9 must lie between 1 and num_experts=8"),
        ({"mixer": "dense", "init": "spread"}, "init=spread needs mixer=identity or topk"),
        ({"mixer": "topk", "segment_scaling": True}, "segment_scaling needs one of init"),
        ({"mixer": "shared_a", "r": 12}, "r=12 is not a multiple of num_experts=8; use 8, 16, 24"),
        ({"mixer": "threshold", "num_experts": 0}, "num_experts=0 must be at least 1"),
        ({"mixer": "threshold", "init": "spread"}, "init=spread needs mixer=identity or topk, not threshold"),
        ({"init": "kaiming_both"}, "init=kaiming_both needs mixer=dense and mixer_init=zero"),
        ({"mixer_pattern": {"fc1": "topk"}}, "mixer_pattern: fc1=topk beside mixer=dense: layers may differ only"),
        ({"mixer": "topk", "mixer_pattern": {"fc1": "dense"}}, "mixer_pattern: fc1=dense beside mixer=topk"),
        ({"mixer_pattern": {"fc1": "lower"}}, "fc1=lower is unknown; use one of identity, butterfly, dense"),
        ({"mixer": "identity", "init": "minor", "mixer_pattern": {"fc1": "dense"}}, "init=minor needs mixer=identity"),
        ({"train_b": False}, "init=kaiming starts B at zero, where it would stay with train_b=False"),
        ({"init": "gaussian_b", "train_a": False}, "init=gaussian_b starts A at zero, where it would stay"),
        ({"init": "svd"}, "init=svd is unknown; use one of kaiming"),
        ({"scaling": "rslora"}, "scaling=rslora is unknown"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"rho": 0}, "rho=0 must be positive"),
        ({"r": 0}, "r=0 must be at least 1"),
        ({"mixer": "topk", "balance_coef": -1.0}, "balance_coef=-1.0 must be finite and not negative"),
    ],
)
def test_an_impossible_configuration_names_key_value_and_what_is_allowed(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MosgoatConfig(**settings)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("alpha_over_r", 2.0),
        ("alpha_over_sqrt_r", 16 / math.sqrt(8)),
        ("alpha_over_expert_rank", 8.0),
        ("theory", math.sqrt(3 * 100 * 2 / 8)),
        (0.5, 0.5),
    ],
)
def test_scalings_follow_their_names(scaling: str | float, expected: float) -> None:
    config = MosgoatConfig(scaling=scaling, num_experts=4, eta=2.0)
    assert config.scaling_factor(8, 16.0, 100) == pytest.approx(expected)
