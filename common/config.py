"""Recipe sections that every pipeline has, and which settings have an effect on which method.

A recipe is a frozen dataclass made of these sections. jsonargparse fills it (command line > YAML > default);
`common.config_checks` then collects everything that is impossible, so that a user mends a recipe once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

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
OnError = Literal["skip", "raise"]
LossMean = Literal["global_batch", "micro_batch"]

# Where a recipe does not say.
DEFAULT_ALPHA = 16.0
DEFAULT_EXPERTS = 8
DEFAULT_TOP_K = 2

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

    @property
    def experts(self) -> int:
        """`num_experts`, or its default."""
        return DEFAULT_EXPERTS if self.num_experts is None else self.num_experts

    @property
    def chosen_experts(self) -> int:
        """`top_k`, or its default."""
        return DEFAULT_TOP_K if self.top_k is None else self.top_k


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
