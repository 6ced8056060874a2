"""What the files of the contract share: the cases (method × tiny model), an adapted model, a little training.

Every adapter of `METHODS` joins by itself. Its declared flags say what is expected of it. All of them run on the
MLP; on the models of transformers and diffusers runs one of each family, for the cross product would cost minutes
and differ in nothing but the names of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import peft
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, nn

from common.adapters import METHODS, balance_loss, build_config
from common.adapters.schedule import AdapterSchedule, auxiliary_loss
from common.config import OPTIONS
from tests.common.adapters.tiny_models import MODELS, shake, tiny

METHOD_NAMES = tuple(name for name, method in METHODS.items() if method.build)
OURS = tuple(name for name in METHOD_NAMES if METHODS[name].ours)
FAMILIES = ("lora", "lokr", "moslora", "lora_dash", "hydralora", "goat", "full_moe")


def params(methods: Iterable[str], broken: Mapping[str, str] | None = None, *values: str) -> list[ParameterSet]:
    """The methods as parameters of a test.

    Args:
        methods: their names.
        broken: methods that break this contract -> why; the test must then fail, or it is time to strike the line.
        *values: parameters before the method.
    """
    marks = {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in (broken or {}).items()}
    return [pytest.param(*values, m, id="-".join([*values, m]), marks=marks.get(m, [])) for m in methods]


def cases(
    wanted: Callable[[str], bool] = lambda _: True, broken: Mapping[str, str] | None = None
) -> list[ParameterSet]:
    """Pairs (tiny model, method) for the wanted methods: every one on the MLP, one of each family on every model."""
    pairs = []
    for model in MODELS:
        pairs += params(filter(wanted, METHOD_NAMES if model == "mlp" else FAMILIES), broken, model)
    return pairs


def adapt(model: str, method: str, *, moved: bool = True, r: int = 8, **overrides: object) -> peft.PeftModel:
    """A tiny model with an adapter, in evaluation mode; `moved`: the adapter is not at its start."""
    torch.manual_seed(2)
    if "dropout" not in OPTIONS[method]:
        overrides.pop("dropout", None)
    config = build_config(method, r=r, **{"target_modules": MODELS[model].targets, **overrides})
    wrapped = peft.get_peft_model(tiny(model), config)
    if moved:
        shake(wrapped)
    return wrapped.eval()


def train(model: nn.Module, name: str, steps: int = 2) -> list[float]:
    """A few steps of AdamW towards a small output as our engine takes them, with all that the method asks for.

    The model stays in training mode.

    Returns:
        The losses.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = AdapterSchedule(model, total_steps=max(steps, 2))
    losses = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = MODELS[name].output(model.train()).float().square().mean()
        (loss + balance_loss(model) + auxiliary_loss(model)).backward()
        optimizer.step()
        schedule.after_step(step)
        losses.append(loss.item())
    return losses


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The base model's own tensors under their names before the adapter came."""
    plain = getattr(model, "base_model", model)
    plain = getattr(plain, "model", plain) if isinstance(model, peft.PeftModel) else model
    return {name.replace("base_layer.", ""): value for name, value in plain.state_dict().items()}


def assert_base_untouched(model: nn.Module, name: str) -> None:
    """Every tensor of the tiny model is there, bit by bit."""
    present = base_weights(model)
    for key, original in tiny(name).state_dict().items():
        assert torch.equal(present[key], original), key


# Rounding that depends on more than the weights: an upcycled expert gets rows that begin at any address, whose products
# are summed in another order; a saved AdaLoRA holds only the ranks that are left.
ROUNDING = {"full_moe": 1e-5, "adalora": 1e-5}


def same(a: Tensor, b: Tensor, method: str) -> bool:
    """Whether two outputs of one adapter are equal bit by bit, or within `ROUNDING` (bfloat16: one unit) if listed."""
    if method not in ROUNDING:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=2**-7 if a.dtype == torch.bfloat16 else 0, atol=ROUNDING[method])
