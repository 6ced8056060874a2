"""The device that a command's `--device` names."""

from __future__ import annotations

import torch

from common.errors import UserError


def usable_device(name: str | None) -> torch.device:
    """The device of a name, tried out: a name may be sound where this machine has no such device.

    Args:
        name: such as cuda, cuda:1 or cpu; None: a GPU where there is one, else the CPU.

    Raises:
        UserError: it is no device, or not one of this machine.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device={name} is no device; give cuda, cuda:N or cpu") from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a build without CUDA asserts
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--device={device} cannot be used on this machine: {reason}; --device=cpu always can"
        ) from error
    return device
