"""What a quantised base model needs before an adapter is put on it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.errors import UserError

# PEFT's layers of these methods compute with the base weight's entries, or its shape.
PLAIN_WEIGHTS_ONLY = frozenset({"loha", "lokr", "neat"})


def is_quantised(layer: nn.Linear) -> bool:
    """Whether a linear layer's weight is stored in another form than (out, in) floating-point entries."""
    # 4-bit weights are packed, into a floating dtype too where FSDP is to shard them
    weight = layer.weight
    return not weight.is_floating_point() or tuple(weight.shape) != (layer.out_features, layer.in_features)


def require_plain_weights(method: str, model: nn.Module, targets: Sequence[str]) -> None:
    """Raise `UserError` if a method cannot work on the weights of a layer that it targets.

    Args:
        method: its name.
        model: the model.
        targets: names or ends of names of layers.
    """
    if method not in PLAIN_WEIGHTS_ONLY:
        return
    ends = tuple("." + target for target in targets)
    for name, layer in model.named_modules():
        if f".{name}".endswith(ends) and isinstance(layer, nn.Linear) and is_quantised(layer):
            raise UserError(
                f"method={method} cannot be put on {name}, whose weight is quantised; load the model in bfloat16, or "
                "use lora, moslora, goat or another method"
            )


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from laying 4-bit weights out anew for evaluation, which it does on some CPUs.

    On a CPU with AVX512-BF16 the first evaluation of a `Linear4bit` rearranges its bits for a faster kernel, for good
    (bitsandbytes 0.50). That kernel has no backward, so that training after an evaluation would lose the gradients
    of all layers before it behind a warning; and the rearranged bits dequantise to other weights, from which a
    decomposition would compute a wrong start. Without bitsandbytes, or on another device, nothing happens.

    Args:
        model: changed in place; layers that are laid out anew already are put back, but for bitsandbytes' rounding
            of their scales to bfloat16.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a name that nn.Module does not declare
            module.state_dict()  # asking for the state puts the bits back
