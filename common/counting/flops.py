"""FLOPs of a forward pass and of a training step, counted from the shapes of the matrix products.

One multiplication and one addition are two FLOPs; only matrix products and convolutions are counted, as
`torch.utils.flop_counter` does, and attention as if no key were masked. Letters: r total rank, E experts of which
a token uses k, in and out the sides of a layer.

**As computed here** is measured: the base model runs forward and backward once on tensors without memory, with
a gradient wherever an adapter would need one, and each adapted layer runs by itself in each of its shapes. All
LoRA experts are computed for every token: they are r wide together, and the routing weights are zero where an
expert is not chosen (DESIGN 3.1). Work that does not grow with the tokens, such as M·A of MoSLoRA or the weight
that LoHa and DoRA build, is told apart: it is done once for a forward pass, however large the batch.

**As the paper counts** is the convention of [G] eq. 84-86, which compares LoRA experts with full fine-tuning of
experts: only the k chosen ones of a token are counted. The text of the equations could not be had when this was
written, so that the formulas below are derived anew, in our own symbols, for one layer and one token:

    base layer      2·in·out
    LoRA            2·r·(in + out)                       with a dense r×r mixer 2·r² more
    LoRA experts    2·(k/E)·r·(in + out) + 2·E·in        the second term is the router
    HydraLoRA       2·(r/E)·in + 2·r·out + 2·E·in        one A of r/E rows, every head is used
    full experts    (k - 1)·2·in·out + 2·E·in            beyond the base layer, in whose place they stand

Training: the forward; 2 more FLOPs for a weight and token where a gradient flows past the weight to its input; 2
more where the weight is trained. So a weight costs 6 in full fine-tuning, a frozen one above the lowest adapter 4,
one below it 2.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.adapters import METHODS, attach
from common.config import AdapterConfig
from common.counting.models import Architecture
from common.errors import UserError

DEFAULT_TOKENS = 512
PROMPT_TOKENS = 77  # of CLIP's text encoders, which condition a UNet


@dataclass(frozen=True)
class Flops:
    """FLOPs per unit.

    Args:
        unit: `token`, or `picture` where the layers see different numbers of tokens.
        tokens: of the sample that was counted; None where that is one picture.
        base: of the model without adapters, forward.
        adapter: of the adapters, forward, as computed here.
        adapter_once: of the adapters for one forward pass, whatever its size.
        adapter_paper: of the adapters, forward, as the paper counts; None where no formula is for the method.
        training: of the adapted model, forward and backward, as computed here.
        training_once: of the adapters for one forward and backward pass, whatever its size.
        full_training: forward and backward with every weight trained, three times the forward.
    """

    unit: str
    tokens: int | None
    base: float
    adapter: float
    adapter_once: int
    adapter_paper: float | None
    training: float
    training_once: int
    full_training: float


@dataclass(frozen=True)
class _Call:
    """One use of an adapted layer in a forward pass; `gradient`: whether its input needs one."""

    in_features: int
    out_features: int
    rows: int
    gradient: bool


@dataclass(frozen=True)
class _Base:
    """FLOPs of one sample through the frozen model, and how often it used the adapted layers."""

    tokens: int | None
    forward: int
    training: int
    calls: tuple[tuple[_Call, int], ...]


@dataclass(frozen=True)
class _Cost:
    """What adapters add: to a forward, and to forward and backward; for these rows, and once whatever the rows."""

    forward: int = 0
    forward_once: int = 0
    training: int = 0
    training_once: int = 0

    def plus(self, other: _Cost, times: int) -> _Cost:
        """This and `times` the other."""
        return _Cost(
            self.forward + times * other.forward,
            self.forward_once + times * other.forward_once,
            self.training + times * other.training,
            self.training_once + times * other.training_once,
        )


def model_flops(
    architecture: Architecture, adapter: AdapterConfig, targets: Sequence[str], tokens: int | None = None
) -> Flops:
    """Count one sample.

    Args:
        architecture: the model; its kind must not be `other`.
        adapter: the method and its settings; dropout is not counted.
        targets: the adapted layers.
        tokens: length of a text; None: `DEFAULT_TOKENS`, or less where the model allows no more. Pictures have their
            own number.

    Raises:
        UserError: the text is longer than the model allows.
    """
    base = _run_base(architecture, () if METHODS[adapter.method].build is None else tuple(targets), tokens)
    per = base.tokens or 1
    cost = _Cost()
    for call, times in base.calls:
        cost = cost.plus(_run_layer(replace(adapter, target_modules=None), call), times)
    full = 3 * base.forward
    return Flops(
        unit="picture" if base.tokens is None else "token",
        tokens=base.tokens,
        base=base.forward / per,
        adapter=cost.forward / per,
        adapter_once=cost.forward_once,
        adapter_paper=_paper_cost(adapter, base.calls, per),
        training=(full if adapter.method == "full" else base.training + cost.training) / per,
        training_once=cost.training_once,
        full_training=full / per,
    )


def paper_layer_flops(adapter: AdapterConfig, in_features: int, out_features: int) -> float | None:
    """What an adapter adds to a layer's forward for one token by the formulas above; None: none applies."""
    r, sides = adapter.r, in_features + out_features
    experts, chosen = adapter.experts, adapter.chosen_experts
    router = 2 * experts * in_features
    if adapter.method == "full_moe":
        return (chosen - 1) * 2 * in_features * out_features + router
    if adapter.method == "hydralora":
        return 2 * r // experts * in_features + 2 * r * out_features + router
    if adapter.method in _TOP_K:
        return 2 * r * chosen / experts * sides + router
    if adapter.method in _MIXED:
        return 2 * r * sides + 2 * r**2
    return 2 * r * sides if adapter.method in _PLAIN else None


_TOP_K = frozenset({"molora", "goat", "goat_plus", "goat_principal", "goat_minor", "goat_random"})
_MIXED = frozenset({"moslora", "flora"})
_PLAIN = frozenset({"lora", "rslora", "pissa", "milora", "ts_mixing", "lora_fa", "lora_fb", "goat_single"})


def _paper_cost(adapter: AdapterConfig, calls: Sequence[tuple[_Call, int]], per: int) -> float | None:
    total = 0.0
    for call, times in calls:
        each = paper_layer_flops(adapter, call.in_features, call.out_features)
        if each is None:
            return None
        total += each * call.rows * times
    return total / per


@functools.lru_cache(maxsize=512)
def _run_layer(adapter: AdapterConfig, call: _Call) -> _Cost:
    """What an adapter adds to one use of a layer."""
    if adapter.method == "full_moe":
        return _full_moe_cost(adapter, call)
    with torch.device("meta"):
        layer = nn.ModuleDict({"layer": nn.Linear(call.in_features, call.out_features, bias=False)})
        adapted = attach(layer.requires_grad_(False), adapter, ["layer"])
    target = adapted.get_submodule("base_model.model.layer")
    # fake tensors pass for the CPU's: the layers ask for autocast, which the meta device has not. In evaluation mode
    # nothing is dropped, at random or otherwise, and the gradients are the same.
    with FakeTensorMode(allow_non_fake_inputs=True):
        adapted.to_empty(device="cpu").eval()
        once = [_added(target, call, rows) for rows in (call.rows, 2 * call.rows)]
    (forward, training), (forward_twice, training_twice) = once
    # what does not double does not depend on the rows
    return _Cost(
        forward=forward_twice - forward,
        forward_once=2 * forward - forward_twice,
        training=training_twice - training,
        training_once=2 * training - training_twice,
    )


def _added(target: nn.Module, call: _Call, rows: int) -> tuple[int, int]:
    """FLOPs of an adapted layer for so many rows beyond those of the layer itself."""
    x = torch.empty(rows, call.in_features, requires_grad=call.gradient)
    forward, training = _counted(lambda: target(x))
    plain = 2 * rows * call.in_features * call.out_features
    return forward - plain, training - plain * (2 if call.gradient else 1)


def _full_moe_cost(adapter: AdapterConfig, call: _Call) -> _Cost:
    """Experts are computed for their own tokens only: which depends on values, how much does not."""
    experts, chosen = adapter.experts, adapter.chosen_experts
    # k whole experts beside the base layer, from which they are kept as differences
    forward = 2 * call.rows * call.in_features * (chosen * call.out_features + experts)
    return _Cost(forward=forward, training=forward * (3 if call.gradient else 2))


@functools.lru_cache(maxsize=8)
def _run_base(architecture: Architecture, targets: tuple[str, ...], tokens: int | None) -> _Base:
    model = architecture.make()
    calls: Counter[_Call] = Counter()
    # a zero added to what an adapted layer gives: the gradient then flows to where an adapter's would
    probe = torch.zeros((), device="meta", requires_grad=True)

    def note(module: nn.Linear, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        x = given[0]
        rows = x.numel() // module.in_features
        calls[_Call(module.in_features, module.out_features, rows, x.requires_grad)] += 1
        return result + probe

    for name, module in model.named_modules():
        if matched(name, targets):
            module.register_forward_hook(note)
    with torch.device("meta"):
        tokens = tokens_of(architecture, model.config, tokens)
        inputs = sample_inputs(architecture, model.config, tokens)
        forward, training = _counted(lambda: model(**inputs), backward=bool(targets))
    return _Base(tokens, forward, training, tuple(calls.items()))


def matched(name: str, targets: Sequence[str]) -> str | None:
    """The target that a layer's name is or ends with."""
    return next((target for target in targets if name == target or name.endswith("." + target)), None)


def _counted(run: Callable[[], Any], backward: bool = True) -> tuple[int, int]:
    """FLOPs of a forward, and of it with its backward."""
    # the plain attention: the counter has no formula for the fused one of the CPU, and would leave it out
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = run()
        forward = counter.get_total_flops()
        if backward:
            torch.stack([tensor.sum() for tensor in _float_tensors(outputs) if tensor.requires_grad]).sum().backward()
    return forward, counter.get_total_flops()


def _float_tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, dict):
        yield from _float_tensors(tuple(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for each in outputs:
            yield from _float_tensors(each)


def tokens_of(architecture: Architecture, config: Any, tokens: int | None) -> int | None:
    """How many tokens a sample has; None for a UNet, whose layers see different numbers of them."""
    if architecture.kind == "pictures":
        return (config.image_size // config.patch_size) ** 2 + 1  # the patches and the class token
    if architecture.kind == "unet":
        return None
    # RoBERTa counts positions from behind its padding index
    longest = config.max_position_embeddings - (1 + config.pad_token_id if config.model_type == "roberta" else 0)
    if tokens is not None and tokens > longest:
        raise UserError(f"--tokens={tokens} is longer than {architecture.name} allows; use at most {longest}")
    return min(DEFAULT_TOKENS, longest) if tokens is None else tokens


def sample_inputs(architecture: Architecture, config: Any, tokens: int | None, batch: int = 1) -> dict[str, Any]:
    """Samples of zeros, one or a batch."""
    if architecture.kind == "text":
        assert tokens is not None
        # a whole mask: making one from a row of ones looks at its values
        mask = torch.zeros(batch, 1, tokens, tokens)
        return {"input_ids": torch.zeros(batch, tokens, dtype=torch.long), "attention_mask": mask}
    if architecture.kind == "pictures":
        return {"pixel_values": torch.zeros(batch, config.num_channels, config.image_size, config.image_size)}
    assert architecture.kind == "unet", architecture.kind
    inputs: dict[str, Any] = {
        "sample": torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.zeros(batch),
        "encoder_hidden_states": torch.zeros(batch, PROMPT_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":  # SDXL: the pooled prompt and six numbers of sizes
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": torch.zeros(batch, pooled), "time_ids": torch.zeros(batch, 6)}
    return inputs
