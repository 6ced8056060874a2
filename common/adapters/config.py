"""The configuration of mosgoat's own PEFT tuner; `common.adapters.build_config` fills it for a method."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

from peft import PeftConfig

from common.adapters.routing import balance_weight
from common.config import DEFAULT_ALPHA, DEFAULT_EXPERTS, DEFAULT_TOP_K
from common.errors import UserError

Mixer = Literal["identity", "butterfly", "dense", "diagonal", "topk", "shared_a", "threshold"]
MixerInit = Literal["kaiming", "orthogonal", "normal", "identity", "zero"]
Start = Literal["kaiming", "gaussian", "kaiming_both", "gaussian_b", "spread", "principal", "minor", "random"]
ScalingRule = Literal["alpha_over_r", "alpha_over_sqrt_r", "alpha_over_expert_rank", "theory"]

# Starts that cut segments out of the singular value decomposition of the base weight.
SVD_STARTS: frozenset[str] = frozenset({"spread", "principal", "minor", "random"})
# Mixers that weigh experts for every token anew, so that no single weight equals the adapter.
ROUTED_MIXERS: frozenset[str] = frozenset({"topk", "shared_a", "threshold"})
_FIXED_MIXERS = tuple(mixer for mixer in get_args(Mixer) if mixer not in ROUTED_MIXERS)


class MosgoatPeftType(str, Enum):  # noqa: UP042 - PEFT tests for both bases
    """PEFT looks its tables up by a str-Enum member or by its text; name and value must be equal."""

    MOSGOAT = "MOSGOAT"


@dataclass
class MosgoatConfig(PeftConfig):
    """A low-rank adapter with a mixer: y = W0 x + s · B · M(x) · A · x - R x.

    Args:
        r: rank of A and B, over all experts.
        alpha: numerator of the scalings named `alpha_over_...`.
        dropout: probability with which an entry of x is dropped before A; one mask for all experts.
        target_modules: names or ends of names of the `nn.Linear` layers to adapt, or one regular expression.
        exclude_modules: names or ends of names to leave out although they are targeted.
        modules_to_save: modules that are trained whole and saved with the adapter.
        rank_pattern: layer name or regular expression -> r of the layers it matches.
        alpha_pattern: layer name or regular expression -> alpha of the layers it matches.
        mixer_pattern: layer name or regular expression -> mixer of the layers it matches; only where none of the
            mixers is routed.
        mixer: `identity`: M = I (LoRA); `butterfly`: [[I, I], [I, I]] ([M] eq. 6); `dense`: trained r × r
            ([M] eq. 7); `diagonal`: trained, started at N(0, 1) (KaSA); `topk`: block-diagonal routing weights of
            r/num_experts wide experts ([G] eq. 10);
            `shared_a`: one A of r/num_experts rows for num_experts heads, softmax over all of them (HydraLoRA);
            `threshold`: experts whose softmax exceeds a learned threshold of the token (AdaMoLE).
        mixer_init: start of a dense mixer; `normal` draws from N(0, 1/r).
        train_mixer: whether a dense mixer, or the router with its threshold, is trained.
        train_a: whether A is trained.
        train_b: whether B is trained.
        init: start of A and B. `kaiming` and `gaussian` (std 1/r) start A at random and B at zero; `gaussian_b`
            starts A at zero and B at random (std 1/√out, so that its columns are nearly orthonormal);
            `kaiming_both` starts both at random (std 1/√(2r), as FLoRA does). `spread`, `principal`, `minor` and
            `random` start expert j from a segment of the singular value decomposition of W0 ([G] eq. 14 and E.3)
            and subtract the start's mean effect R ([G] eq. 15).
        scaling: s: alpha/r, alpha/√r, alpha/(r/num_experts), `theory` = √(3·in·eta/r) ([G] Theorem 3.5 with
            the total rank), or a number.
        segment_scaling: GOAT+ ([G] eq. 83): sᵢ = s · √(Σσ of segment 1 / Σσ of segment i).
        truncate: whether the r smallest singular triplets of W0 are taken away, as R (KaSA eq. 4).
        num_directions: how many singular directions of W0 are trained beside A and B (LoRA-Dash).
        dash_steps: optimizer steps after which `AdapterSchedule` chooses these directions; none given: 100, at most
            half of the run.
        singular_coef: weight of the squares of a diagonal mixer in `auxiliary_loss` (KaSA eq. 10).
        orthogonal_coef: weight of ‖BᵀB - I‖ + ‖AAᵀ - I‖ there (KaSA eq. 11).
        num_experts: number of experts, and of segments of an SVD start.
        top_k: how many experts a token uses, with mixer=topk.
        rho: divides the start values of an SVD start ([G] eq. 14).
        eta: ratio of the learning rates of full fine-tuning and LoRA in `theory`.
        balance_coef: weight of the balance loss summed over layers; none given: top_k · 1e-3 with mixer=topk,
            1e-3 with mixer=threshold. mixer=shared_a has no such loss.
        weights_saved: true in a saved configuration: A, B, A0 and B0 come from the file that lies beside it, so
            no start is computed (and a fresh adapter made from such a configuration is NaN until loaded).

    Raises:
        UserError: for impossible values.
    """

    r: int = 8
    alpha: float = DEFAULT_ALPHA
    dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    mixer_pattern: dict[str, Mixer] = field(default_factory=dict)
    mixer: Mixer = "dense"
    mixer_init: MixerInit = "kaiming"
    train_mixer: bool = True
    train_a: bool = True
    train_b: bool = True
    init: Start = "kaiming"
    scaling: ScalingRule | float = "alpha_over_r"
    segment_scaling: bool = False
    truncate: bool = False
    num_directions: int = 0
    dash_steps: int | None = None
    singular_coef: float = 0.0
    orthogonal_coef: float = 0.0
    num_experts: int = DEFAULT_EXPERTS
    top_k: int = DEFAULT_TOP_K
    rho: float = 10.0
    eta: float = 1.0
    balance_coef: float | None = None
    weights_saved: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MosgoatPeftType.MOSGOAT
        if isinstance(self.target_modules, (list, tuple, set)):
            # a list, sorted: the saved file does not depend on the order of a set
            self.target_modules = sorted(self.target_modules)
        self._require_known("mixer", get_args(Mixer))
        self._require_known("mixer_init", get_args(MixerInit))
        self._require_known("init", get_args(Start))
        if not isinstance(self.scaling, (int, float)):
            self._require_known("scaling", get_args(ScalingRule))
        require_whole_numbers({**self.rank_pattern, "r": self.r, "num_experts": self.num_experts, "top_k": self.top_k})
        self._require_numbers()
        for rank in (self.r, *self.rank_pattern.values()):
            self.require_rank(rank, self.mixer)
        self._require_mixers()
        if (self.init in ("kaiming", "gaussian") and not self.train_b) or (
            self.init == "gaussian_b" and not self.train_a
        ):
            zero = "A" if self.init == "gaussian_b" else "B"
            raise UserError(
                f"init={self.init} starts {zero} at zero, where it would stay with train_{zero.lower()}=False"
            )
        if self.segment_scaling and self.init not in SVD_STARTS:
            raise UserError(f"segment_scaling needs one of init={', '.join(sorted(SVD_STARTS))}, not {self.init}")

    @property
    def has_residual(self) -> bool:
        """Whether there is a frozen branch R, made from the singular value decomposition of W0."""
        return self.init in SVD_STARTS or self.truncate

    @property
    def routed(self) -> bool:
        """Whether M depends on x, so that the adapter cannot be merged."""
        return self.mixer in ROUTED_MIXERS

    @property
    def balance_weight(self) -> float:
        """The coefficient of the balance loss, with its default."""
        return balance_weight(self.balance_coef, self.top_k if self.mixer == "topk" else 1)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, marked so that loading it computes no start."""
        saved = copy.copy(self)
        saved.weights_saved = True
        super(MosgoatConfig, saved).save_pretrained(save_directory, **kwargs)

    def scaling_factor(self, r: int, alpha: float, in_features: int) -> float:
        """The factor s of a layer of rank `r` with `in_features` inputs."""
        rules = {
            "alpha_over_r": alpha / r,
            "alpha_over_sqrt_r": alpha / math.sqrt(r),
            "alpha_over_expert_rank": alpha * self.num_experts / r,
            "theory": math.sqrt(3 * in_features * self.eta / r),  # [G] Theorem 3.5
        }
        return rules[self.scaling] if isinstance(self.scaling, str) else float(self.scaling)

    def _require_known(self, key: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, key) not in allowed:
            raise UserError(f"{key}={getattr(self, key)} is unknown; use one of {', '.join(allowed)}")

    def _require_numbers(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} must lie in [0, 1)")
        for key in ("rho", "eta", "alpha", "scaling"):
            if not isinstance(getattr(self, key), str) and not 0 < getattr(self, key) < math.inf:
                raise UserError(f"{key}={getattr(self, key)} must be positive and finite")
        for name, alpha in self.alpha_pattern.items():
            if not alpha > 0:
                raise UserError(f"alpha_pattern: {name}={alpha} must be positive")
        for key in ("balance_coef", "singular_coef", "orthogonal_coef", "num_directions"):
            if not 0 <= (getattr(self, key) or 0) < math.inf:  # nor NaN
                raise UserError(f"{key}={getattr(self, key)} must be finite and not negative")
        if self.dash_steps is not None and self.dash_steps < 1:
            raise UserError(f"dash_steps={self.dash_steps} must be at least 1")
        if self.num_experts < 1:
            raise UserError(f"num_experts={self.num_experts} must be at least 1")
        if self.mixer == "topk" and not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"top_k={self.top_k} must lie between 1 and num_experts={self.num_experts}")

    def _require_mixers(self) -> None:
        for name, mixer in self.mixer_pattern.items():
            if mixer not in get_args(Mixer):
                raise UserError(f"mixer_pattern: {name}={mixer} is unknown; use one of {', '.join(_FIXED_MIXERS)}")
            if mixer in ROUTED_MIXERS or self.routed:
                raise UserError(
                    f"mixer_pattern: {name}={mixer} beside mixer={self.mixer}: layers may differ only between mixers "
                    f"that do not route tokens ({', '.join(_FIXED_MIXERS)})"
                )
        if self.init == "kaiming_both" and ({self.mixer, *self.mixer_pattern.values()}, self.mixer_init) != (
            {"dense"},
            "zero",
        ):
            raise UserError(
                "init=kaiming_both needs mixer=dense and mixer_init=zero, or the start would change the model"
            )
        if self.truncate and (self.routed or self.init in SVD_STARTS):
            raise UserError("truncate=True needs a mixer that does not route tokens, and a start that is random")
        if self.num_directions and (self.routed or self.has_residual):
            raise UserError("num_directions needs a mixer that does not route tokens, and no residual branch")
        if self.init in SVD_STARTS:
            for mixer in (self.mixer, *self.mixer_pattern.values()):
                if mixer not in ("identity", "topk"):
                    raise UserError(
                        f"init={self.init} needs mixer=identity or topk, not {mixer}: its residual branch removes "
                        "the mean effect of the start, which is known for these mixers only"
                    )

    def require_rank(self, r: int, mixer: Mixer, layer: str = "") -> None:
        """Raise `UserError` if a rank does not go with a mixer or with the number of experts.

        Args:
            r: total rank.
            mixer: the layer's mixer.
            layer: its name, for the message.
        """
        where = f" for layer {layer}" if layer else ""
        if r < 1:
            raise UserError(f"r={r}{where} must be at least 1")
        if mixer == "butterfly" and r % 2:
            raise UserError(f"r={r}{where} must be even for mixer=butterfly, which has two halves")
        if (self.routed or self.init in SVD_STARTS) and r % self.num_experts:
            fitting = ", ".join(str(self.num_experts * i) for i in (1, 2, 3))
            raise UserError(f"r={r}{where} is not a multiple of num_experts={self.num_experts}; use {fitting}, ...")


def require_whole_numbers(values: Mapping[str, Any]) -> None:
    """Raise `UserError` for a value that is no int, such as the "8" of a file that was edited by hand."""
    for key, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{key}={value!r} must be a whole number")
