"""The one table of methods: name -> what it is and how its PEFT configuration is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from peft import LoHaConfig, LoKrConfig

from common.adapters import builders
from common.adapters.builders import Build

_PEFT = frozenset({"exclude_modules", "modules_to_save"})
_PATTERNS = _PEFT | {"rank_pattern", "alpha_pattern"}


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Args:
        name: as in recipes and tables.
        paper: where it comes from.
        equation: the update in words.
        mergeable: whether it can be merged into the base weights.
        routed: whether it sends tokens to experts.
        exportable: whether `export_lora` turns it into a LoRA that other tools open.
        ours: whether our own tuners implement it; PEFT does otherwise.
        build: makes the configuration from (r, alpha, target_modules, overrides); None: not an adapter.
        note: what a user of it must know beside the equation.
        extra: settings of `build` beside the recipe's; they concern PEFT rather than the method.
        ranked: whether it has a rank r.
        scheduled: whether something happens between its steps, so that a loop of one's own needs `AdapterSchedule`.
    """

    name: str
    paper: str
    equation: str
    mergeable: bool
    routed: bool
    exportable: bool
    ours: bool
    build: Build | None
    note: str = ""
    extra: frozenset[str] = _PATTERNS
    ranked: bool = True
    scheduled: bool = False


def _whole(name: str, equation: str) -> Method:
    """No adapter."""
    return Method(name, "", equation, False, False, False, False, None, extra=frozenset(), ranked=False)


def _peft(name: str, paper: str, equation: str, build: Build, *, exportable: bool = False, **more: Any) -> Method:
    """PEFT's own implementation."""
    return Method(name, paper, equation, True, False, exportable, False, build, **more)


def _plain(name: str, paper: str, equation: str, *, about: dict[str, Any] | None = None, **fixed: Any) -> Method:
    """A method of ours whose mixer does not depend on x."""
    build = builders.mosgoat(**{"mixer": "identity", **fixed})
    return Method(name, paper, equation, True, False, True, True, build, **(about or {}))


def _expert(name: str, paper: str, equation: str, **fixed: Any) -> Method:
    """A routed method of ours that starts at B = 0."""
    build = builders.mosgoat(scaling="alpha_over_expert_rank", **fixed)
    return Method(name, paper, equation, False, True, False, True, build)


def _goat(name: str, equation: str, **fixed: Any) -> Method:
    build = builders.mosgoat(mixer="topk", scaling="theory", **fixed)
    return Method(name, _GOAT_PAPER, equation, False, True, False, True, build)


_GOAT_PAPER = "Fan et al. 2025, Make LoRA Great Again"
_MOSLORA_PAPER = "Wu et al. 2024, Mixture-of-Subspaces in Low-Rank Adaptation"
_LYCORIS_PAPER = "Yeh et al. 2023, Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation"
_ROUTED = "top-k routed experts"
_MIXERS: dict[str, Any] = {"extra": _PATTERNS | {"mixer_pattern"}}
# one segment of r triplets, whole: s·B0·A0 is that part of W0 itself
_SVD: dict[str, Any] = {"num_experts": 1, "rho": 1.0}
_NO_DROPOUT = "PEFT builds ΔW, as large as the layer, in every forward; no dropout of the layer's input."

_ALL = (
    _whole("full", "every weight is trained"),
    _whole("linear_probe", "only a new head is trained"),
    _peft("lora", "Hu et al. 2021, LoRA", "(α/r)·B·A", builders.lora(), exportable=True),
    _peft(
        "rslora",
        "Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        "(α/√r)·B·A",
        builders.lora(use_rslora=True),
        exportable=True,
    ),
    _peft(
        "dora",
        "Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation",
        "m·(W0 + (α/r)·B·A)/‖W0 + (α/r)·B·A‖ - W0, norms of the rows of W, m trained",
        builders.lora(use_dora=True),
        exportable=True,
        note="PEFT builds B·A, as large as the layer, in every forward. Exported as a LoRA with its magnitude vector.",
    ),
    _peft(
        "adalora",
        "Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation",
        "(α/r₀)·B·diag(E)·A, started with rank r₀, the least important ranks taken away until r are left on average",
        builders.adalora,
        exportable=True,
        extra=_PEFT,
        scheduled=True,
        note="r is the average rank at the end; with orthogonality as a further loss. One trained adapter per model.",
    ),
    _peft(
        "loha",
        "Hyeon-Woo et al. 2021, FedPara; " + _LYCORIS_PAPER,
        "(α/r)·(B₁·A₁) ∘ (B₂·A₂), the product entry by entry",
        builders.lycoris(LoHaConfig),
        note=_NO_DROPOUT,
    ),
    _peft(
        "lokr",
        "Edalati et al. 2022, KronA; " + _LYCORIS_PAPER,
        "(α/r)·C ⊗ (B·A), Kronecker product; B·A is one full factor where r is no smaller than half of it",
        builders.lycoris(LoKrConfig),
        note=_NO_DROPOUT,
    ),
    _peft(
        "neat",
        "Zhong et al. 2024, NEAT: Nonlinear Parameter-efficient Adaptation (PEFT's PEANuT)",
        "s·(f(W0ᵀ·A)·B)ᵀ, a small network of the weight itself",
        builders.neat,
        extra=_PEFT,
        note=_NO_DROPOUT + " Without alpha: `scaling` is s itself.",
    ),
    _plain("ts_mixing", _MOSLORA_PAPER, "(α/r)·B·M·A, fixed butterfly M, eq. 6", mixer="butterfly", about=_MIXERS),
    _plain("moslora", _MOSLORA_PAPER, "(α/r)·B·M·A, trained r×r mixer M, eq. 7", mixer="dense", about=_MIXERS),
    _plain("pissa", "Meng et al. 2024, PiSSA", "(α/r)·B·A from the r largest triplets", init="principal", **_SVD),
    _plain("milora", "Wang et al. 2024, MiLoRA", "(α/r)·B·A from the r smallest triplets", init="minor", **_SVD),
    _plain(
        "kasa",
        "Wang et al. 2024, KaSA: Knowledge-Aware Singular-Value Adaptation",
        "(α/r)·B·diag(d)·A, d trained, minus the r smallest triplets of W0",
        mixer="diagonal",
        truncate=True,
        singular_coef=1e-4,
        orthogonal_coef=1e-3,
        about={
            "note": "Ours, since PEFT's KaSA takes the triplets out of the base weight for good; here they are a "
            "frozen branch. With two further losses, see singular_coef and orthogonal_coef."
        },
    ),
    _plain(
        "flora",
        "Si et al. 2024, FLoRA: Low-Rank Core Space for N-dimension",
        "(α/r)·B·G·A with a trained r×r core G, zero at the start",
        mixer="dense",
        mixer_init="zero",
        init="kaiming_both",
    ),
    _plain("lora_fa", "Zhang et al. 2023, LoRA-FA", "(α/r)·B·A, A frozen", train_a=False),
    _plain(
        "lora_fb",
        "Zhu et al. 2024, Asymmetry in Low-Rank Adapters of Foundation Models",
        "(α/r)·B·A with B frozen, Gaussian, and A = 0 at the start",
        init="gaussian_b",
        train_b=False,
    ),
    _plain(
        "lora_dash",
        "Si et al. 2024, Unleashing the Power of Task-Specific Directions",
        "(α/r)·B·A + Σ Δσᵢ·uᵢ·vᵢᵀ over the t directions of W0 that the first steps changed most",
        num_directions=8,
        about={"scheduled": True, "note": "Exported as a LoRA of rank r + t."},
    ),
    _expert(
        "molora",
        "Zadouri et al. 2023, Pushing Mixture of Experts to the Limit",
        f"{_ROUTED}, B = 0 at the start",
        mixer="topk",
    ),
    _expert(
        "hydralora",
        "Tian et al. 2024, HydraLoRA",
        "(α/d)·Σ wᵉ·Bᵉ·A, one A of rank d = r/E for E heads, softmax over all of them",
        mixer="shared_a",
    ),
    _expert(
        "adamole",
        "Liu and Luo 2024, AdaMoLE",
        "(α/d)·Σ wᵉ·Bᵉ·Aᵉ, experts whose softmax exceeds a learned threshold of the token",
        mixer="threshold",
    ),
    _goat("goat", f"{_ROUTED} from SVD segments over the whole spectrum, eq. 13-19", init="spread"),
    _goat("goat_plus", "goat with its own scaling for every segment, eq. 83", init="spread", segment_scaling=True),
    _goat("goat_principal", f"{_ROUTED} from the largest singular triplets, E.3", init="principal"),
    _goat("goat_minor", f"{_ROUTED} from the smallest singular triplets, E.3", init="minor"),
    _goat("goat_random", f"{_ROUTED} from random segments, E.3", init="random"),
    _plain(
        "goat_single",
        _GOAT_PAPER,
        "s·B·A, one LoRA from all of goat's segments and no routing, E.3",
        init="spread",
        scaling="theory",
    ),
    Method(
        "full_moe",
        "Komatsuzaki et al. 2022, Sparse Upcycling; [G] Table 1",
        "Σ wᵉ·ΔWᵉ, top-k routed, every expert as large as the layer",
        False,
        True,
        False,
        True,
        builders.full_moe,
        extra=_PEFT,
        ranked=False,
        note="E times the layer's weights are trained and saved. The rest of the model stays frozen.",
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
