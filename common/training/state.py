"""The part of a model that training changes, as one safetensors file.

It is a few megabytes where the frozen base is gigabytes: the trainable parameters, the persistent buffers
of modules that own one of them, the frozen tensors of the adapters (the start values of GOAT), so that a resumed
run does not depend on how an adapter was initialised, and what methods with a schedule keep of it.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from common.adapters import adapter_tensors, schedule_tensors
from common.errors import UserError

_SHOWN = 5


def trained_state(objective: nn.Module) -> dict[str, Tensor]:
    """The tensors of `objective` that a checkpoint has to hold, by their names in it.

    They are the module's own tensors, not copies.
    """
    state = {name: tensor.detach() for name, tensor in objective.named_parameters() if tensor.requires_grad}
    state.update(_trained_buffers(objective))
    state.update({name: tensor.detach() for name, tensor in adapter_tensors(objective).items()})
    state.update(schedule_tensors(objective))
    return state


def _trained_buffers(objective: nn.Module) -> dict[str, Tensor]:
    # For example the running mean of a trained batch normalisation.
    found = {}
    for prefix, module in objective.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            kept = module.state_dict(prefix=f"{prefix}." if prefix else "", keep_vars=True)
            own = {f"{prefix}.{name}" if prefix else name for name, _ in module.named_buffers(recurse=False)}
            found.update({name: kept[name] for name in own & kept.keys()})
    return found


def save_trained_state(objective: nn.Module, path: Path) -> None:
    """Write `trained_state(objective)` to the safetensors file `path`."""
    state = trained_state(objective)
    # clone: safetensors refuses tensors that share memory, which views of one buffer do.
    safetensors.torch.save_file({name: value.cpu().clone().contiguous() for name, value in state.items()}, path)


def load_trained_state(objective: nn.Module, path: Path) -> None:
    """Copy a file of `save_trained_state` into `objective`; every name, shape and dtype must agree.

    Raises:
        UserError: the file belongs to another model or adapter; nothing was copied then.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: this is not a checkpoint of a mosgoat run")
    saved, own = safetensors.torch.load_file(path), trained_state(objective)
    problems = [f"{name} is missing from the checkpoint" for name in own if name not in saved]
    problems += [f"{name} is not part of the model" for name in saved if name not in own]
    problems += [
        f"{name} is {_describe(saved[name])} in the checkpoint and {_describe(own[name])} in the model"
        for name in own.keys() & saved.keys()
        if _describe(saved[name]) != _describe(own[name])
    ]
    if problems:
        more = f"\n  - and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"the checkpoint {path} belongs to another model or adapter:\n  - "
            + "\n  - ".join(sorted(problems)[:_SHOWN])
            + more
            + "\nUse the recipe that the checkpoint was made with, or another output."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def count_parameters(objective: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters."""
    parameters = list(objective.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
