"""Recipe sections that every pipeline has, and the checks that need no model and no torch.

A recipe is a frozen dataclass made of these sections. jsonargparse fills it (command line > YAML >
default); `problems` then collects everything that is impossible, so that a user mends a recipe once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from common.errors import UserError

Method = Literal[
    "full",
    "linear_probe",
    "lora",
    "ts_mixing",
    "moslora",
    "molora",
    "goat",
    "goat_plus",
    "goat_principal",
    "goat_minor",
    "goat_random",
    "goat_single",
    "pissa",
    "milora",
    "flora",
    "lora_fa",
    "lora_fb",
    "hydralora",
    "adamole",
    "rslora",
    "dora",
    "adalora",
    "loha",
    "lokr",
    "neat",
    "kasa",
    "lora_dash",
    "full_moe",
]
ScalingRule = Literal["alpha_over_r", "alpha_over_sqrt_r", "alpha_over_expert_rank", "theory"]
MixerInit = Literal["kaiming", "orthogonal", "normal", "identity", "zero"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu"]
Precision = Literal["float32", "bf16"]
Schedule = Literal["cosine", "linear", "constant"]
Resume = Literal["auto", "never", "must"]

_ROUTED = frozenset({"num_experts", "top_k", "balance_coef"})
_LOW_RANK = frozenset({"alpha", "dropout", "target_modules", "scaling"})
_LYCORIS = frozenset({"alpha", "rank_dropout", "module_dropout", "target_modules"})
_GOAT_FAMILY = ("goat", "goat_plus", "goat_principal", "goat_minor", "goat_random")

# Which optional adapter settings have an effect on which method; a setting that would be ignored is an
# error. `common.adapters.METHODS` is built on the same table.
OPTIONS: dict[str, frozenset[str]] = {
    "full": frozenset(),
    "linear_probe": frozenset(),
    "lora": _LOW_RANK,
    "ts_mixing": _LOW_RANK,
    "moslora": _LOW_RANK | {"mixer_init"},
    "molora": _LOW_RANK | _ROUTED,
    **{name: _LOW_RANK | _ROUTED | {"rho", "eta"} for name in _GOAT_FAMILY},
    "goat_single": _LOW_RANK | {"num_experts", "rho", "eta"},  # num_experts: how many segments it starts from
    **dict.fromkeys(("pissa", "milora", "flora", "lora_fa", "lora_fb"), _LOW_RANK),
    "hydralora": _LOW_RANK | {"num_experts"},  # every head acts on every token: nothing to choose or to balance
    "adamole": _LOW_RANK | {"num_experts", "balance_coef"},
    "rslora": _LOW_RANK - {"scaling"},
    "dora": _LOW_RANK,
    "adalora": (_LOW_RANK - {"scaling"})
    | {"init_r", "tinit", "tfinal", "delta_t", "beta1", "beta2", "orthogonal_coef"},
    "loha": _LYCORIS,
    "lokr": _LYCORIS | {"decompose_both", "decompose_factor"},
    "neat": frozenset({"target_modules", "scaling", "depth", "activation"}),
    "kasa": _LOW_RANK | {"singular_coef", "orthogonal_coef"},
    "lora_dash": _LOW_RANK | {"num_directions", "dash_steps"},
    "full_moe": _ROUTED | {"target_modules"},
}


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained on the frozen model.

    Args:
        method: the adapter; docs/adapters.md explains each. `full` trains every weight,
            `linear_probe` only a new head.
        r: total rank (over all experts) of every adapted layer; without effect on methods that have none.
        alpha: numerator of the scaling; none given: 16. Not to be given where `scaling` is `theory` or a number.
        dropout: probability with which an entry of a layer's input is dropped before A; none given: 0.05.
        target_modules: names (or ends of names) of the layers to adapt; none given: the pipeline's own.
        scaling: the factor s before B·A; none given: the method's own ([G] Theorem 3.5 for GOAT, 1 for neat).
        mixer_init: start of the mixer of MoSLoRA; none given: `kaiming`.
        num_experts: number of experts of routed methods; none given: 8.
        top_k: how many experts each token uses; none given: 2.
        rho: [G] eq. 14, divides the start values; none given: 10.
        eta: [G] Theorem 3.5, learning-rate ratio of full fine-tuning to LoRA; none given: 1.
        balance_coef: weight of the balance loss summed over layers; none given: top_k · 1e-3.
        init_r: rank at the start, of which AdaLoRA keeps r on average; none given: 1.5 · r.
        tinit: steps before AdaLoRA takes ranks away; none given: a tenth of the run.
        tfinal: last steps, in which AdaLoRA's ranks stay as they are; none given: half of the run.
        delta_t: steps between two of AdaLoRA's allocations; none given: a hundredth of the run, at most 10.
        beta1: smoothing of AdaLoRA's sensitivity; none given: 0.85.
        beta2: smoothing of AdaLoRA's uncertainty; none given: 0.85.
        orthogonal_coef: weight of the loss that keeps A and B orthogonal; none given: 0.5 for adalora, 1e-3 for kasa.
        singular_coef: weight of the squares of KaSA's singular values in the loss; none given: 1e-4.
        rank_dropout: probability with which a row of LoHa's or LoKr's update is dropped; none given: 0.
        module_dropout: probability with which a layer goes without LoHa's or LoKr's update; none given: 0.
        decompose_both: whether LoKr's small factor is of low rank too; none given: no.
        decompose_factor: size of LoKr's small factor; none given: -1, the factors as square as can be.
        depth: hidden layers of NEAT's encoder, and of its decoder; none given: 0.
        activation: nonlinearity of NEAT; none given: `relu`.
        num_directions: how many singular directions LoRA-Dash trains; none given: 8.
        dash_steps: steps as plain LoRA before LoRA-Dash chooses its directions; none given: 100, at most half of
            the run.
    """

    method: Method = "lora"
    r: int = 8
    alpha: float | None = None
    dropout: float | None = None
    target_modules: list[str] | None = None
    scaling: ScalingRule | float | None = None
    mixer_init: MixerInit | None = None
    num_experts: int | None = None
    top_k: int | None = None
    rho: float | None = None
    eta: float | None = None
    balance_coef: float | None = None
    init_r: int | None = None
    tinit: int | None = None
    tfinal: int | None = None
    delta_t: int | None = None
    beta1: float | None = None
    beta2: float | None = None
    orthogonal_coef: float | None = None
    singular_coef: float | None = None
    rank_dropout: float | None = None
    module_dropout: float | None = None
    decompose_both: bool | None = None
    decompose_factor: int | None = None
    depth: int | None = None
    activation: Activation | None = None
    num_directions: int | None = None
    dash_steps: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How the trained weights are optimised.

    Args:
        epochs: passes over the training data; none given: the data set's own in the paper's protocol.
        max_steps: stop after so many optimizer steps, whatever `epochs` says.
        batch_size: samples in one optimizer step, over all processes and accumulated micro-batches.
        gradient_accumulation_steps: micro-batches a process runs in one step; saves memory.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: steps of linear warm-up; a number below 1 is a share of all steps.
        schedule: course of the learning rate after the warm-up, down to zero unless constant.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        precision: `bf16` keeps frozen weights in bfloat16 and trained ones in float32 under autocast.
        gradient_checkpointing: recompute activations in the backward; less memory, more time.
        compile: run the model through `torch.compile`.
        evaluate_every: steps between two evaluations on the validation split; 0: only at the end.
        save_every: steps between two checkpoints; 0: none, so that the run cannot be resumed.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        log_every: steps between two lines of metrics.
        trackers: where metrics go beside `metrics.jsonl`; any name that transformers' Trainer knows.
    """

    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 512
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int | float = 100
    schedule: Schedule = "cosine"
    max_grad_norm: float = 1.0
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


def adapter_problems(config: AdapterConfig, section: str = "adapter") -> list[str]:
    """All impossible values of an adapter section, one sentence each, empty where it is sound."""
    found = []
    options = OPTIONS[config.method]
    for key in sorted(frozenset.union(*OPTIONS.values())):
        value = getattr(config, key)
        if value is not None and key not in options and (key, value) != ("dropout", 0):
            able = ", ".join(method for method in get_args(Method) if key in OPTIONS[method])
            found.append(
                f"{section}.{key}={value} has no effect with {section}.method={config.method}; "
                f"remove it, or choose a method that uses it: {able}"
            )
    if config.alpha is not None and "alpha" in options and not uses_alpha(config):
        found.append(
            f"{section}.alpha={config.alpha} has no effect with {section}.scaling={config.scaling or 'theory'}; "
            f"remove it, or set {section}.scaling to alpha_over_r, alpha_over_sqrt_r or alpha_over_expert_rank"
        )
    found += value_problems(config, f"{section}.")
    found += _scaling_problems(config, section)
    if config.r < 1:
        found.append(f"{section}.r={config.r} must be at least 1")
    found += _range_problems(config, section)
    if config.method == "ts_mixing" and config.r % 2:
        found.append(f"{section}.r={config.r} must be even for ts_mixing: the butterfly has two halves")
    if "num_experts" in options:
        found += _expert_problems(config, section)
    if config.init_r is not None and config.init_r <= config.r:
        found.append(f"{section}.init_r={config.init_r} must exceed {section}.r={config.r}, which is kept of it")
    return found


def _range_problems(config: AdapterConfig, section: str) -> list[str]:
    found = []
    for key in ("dropout", "rank_dropout", "module_dropout"):
        value = getattr(config, key)
        if value is not None and not 0 <= value < 1:
            found.append(f"{section}.{key}={value} must lie in [0, 1)")
    for key in ("beta1", "beta2"):
        value = getattr(config, key)
        if value is not None and not 0 < value < 1:
            found.append(f"{section}.{key}={value} must lie strictly between 0 and 1")
    for key in ("alpha", "scaling", "rho", "eta"):
        value = getattr(config, key)
        if isinstance(value, int | float) and value <= 0:
            found.append(f"{section}.{key}={value} must be positive")
    for key in ("balance_coef", "orthogonal_coef", "singular_coef", "tinit", "tfinal", "depth"):
        value = getattr(config, key)
        if value is not None and value < 0:
            found.append(f"{section}.{key}={value} must not be negative")
    for key in ("delta_t", "num_directions", "dash_steps"):
        value = getattr(config, key)
        if value is not None and value < 1:
            found.append(f"{section}.{key}={value} must be at least 1")
    if config.decompose_factor is not None and config.decompose_factor < 1 and config.decompose_factor != -1:
        found.append(f"{section}.decompose_factor={config.decompose_factor} must be -1 or at least 1")
    return found


def _scaling_problems(config: AdapterConfig, section: str) -> list[str]:
    options = OPTIONS[config.method]
    if "scaling" not in options:
        return []
    impossible = [] if "num_experts" in options else ["alpha_over_expert_rank"]
    if config.method in ("lora", "dora"):  # PEFT's own know no such rule
        impossible.append("theory")
    if config.method == "neat":  # which has no alpha
        impossible = list(get_args(ScalingRule))
    if config.scaling not in impossible:
        return []
    able = [rule for rule in get_args(ScalingRule) if rule not in impossible]
    words = f"{', '.join(able)} or a number" if able else "a number"
    return [f"{section}.scaling={config.scaling} is not for {config.method}; use {words}"]


def uses_alpha(config: AdapterConfig) -> bool:
    """Whether the scaling of a low-rank method is computed from alpha."""
    if config.scaling is None:
        return config.method not in (*_GOAT_FAMILY, "goat_single")
    return isinstance(config.scaling, str) and config.scaling != "theory"


def with_method(config: AdapterConfig, method: Method) -> AdapterConfig:
    """The same settings for another method, without those that would have no effect there.

    The scaling is a matter of the method, so that a new method gets its own.
    """
    if method == config.method:
        return config
    kept = {key: getattr(config, key) for key in OPTIONS[method] - {"scaling"}}
    changed = AdapterConfig(method=method, r=config.r, **kept)
    return changed if uses_alpha(changed) else replace(changed, alpha=None)


def _expert_problems(config: AdapterConfig, section: str) -> list[str]:
    experts = 8 if config.num_experts is None else config.num_experts
    top_k = 2 if config.top_k is None else config.top_k
    if experts < 2:
        return [f"{section}.num_experts={experts} must be at least 2"]
    found = []
    if config.r % experts and config.method != "full_moe":
        fitting = ", ".join(str(experts * i) for i in (1, 2, 3))
        found.append(f"{section}.r={config.r} is not a multiple of {section}.num_experts={experts}; use {fitting}, ...")
    if not 1 <= top_k <= experts:
        found.append(f"{section}.top_k={top_k} must lie between 1 and {section}.num_experts={experts}")
    return found


def train_problems(config: TrainConfig, section: str = "train") -> list[str]:
    """All impossible values of a train section, one sentence each, empty where it is sound."""
    found = []
    least = {
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "weight_decay": 0,
        "max_grad_norm": 0,
        "evaluate_every": 0,
        "save_every": 0,
        "keep_checkpoints": 1,
        "log_every": 1,
        "max_steps": 1,
    }
    for key, bound in least.items():
        value = getattr(config, key)
        if value is not None and value < bound:
            found.append(f"{section}.{key}={value} must be at least {bound}")
    if config.warmup_steps >= 1 and config.warmup_steps != int(config.warmup_steps):
        found.append(f"{section}.warmup_steps={config.warmup_steps} must be a whole number, or a share below 1")
    for key in ("epochs", "learning_rate"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            found.append(f"{section}.{key}={value} must be positive")
    found += value_problems(config, f"{section}.")
    accumulation = config.gradient_accumulation_steps
    if accumulation > 0 and config.batch_size % accumulation:
        found.append(
            f"{section}.batch_size={config.batch_size} is not a multiple of "
            f"{section}.gradient_accumulation_steps={accumulation}"
        )
    return found


def value_problems(section: Any, prefix: str = "") -> list[str]:
    """Values that no key can mean: not finite, beyond any count, an empty text or list.

    Args:
        section: a dataclass; its own values are looked at, not those of the dataclasses in it.
        prefix: in front of its keys, such as `train.`.
    """
    found = []
    for key in (each.name for each in fields(section)):
        value = getattr(section, key)
        if isinstance(value, float) and not math.isfinite(value):
            found.append(f"{prefix}{key}={value} must be a finite number")
        elif isinstance(value, int) and abs(value) >= 2**32:
            found.append(f"{prefix}{key}={value} must be less than {2**32}")
        elif value == "":  # what an unset shell variable leaves
            found.append(f"{prefix}{key} is an empty text; give a value, or leave the key out")
        elif value == [] and key != "trackers":
            found.append(f"{prefix}{key} is an empty list; name at least one, or leave the key out")
    return found


def require_sound(problems: Iterable[str]) -> None:
    """Raise one `UserError` that lists every problem, or return if there is none."""
    lines = list(problems)
    if lines:
        head = "this recipe cannot run:" if len(lines) == 1 else f"this recipe has {len(lines)} problems:"
        raise UserError("\n  - ".join([head, *lines]))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A phrase that names up to three near matches of `name`, or all of `known` where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}"
