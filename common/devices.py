"""What the machine must have: the device that a command's `--device` names, a compiler for `torch.compile`."""

from __future__ import annotations

import os
import shutil

import torch

from common.errors import UserError
from common.words import first_line


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
        raise UserError(
            f"--device={device} cannot be used on this machine: {first_line(error)}; --device=cpu always can"
        ) from error
    return device


def require_compiler() -> None:
    """Raise `UserError` where `torch.compile` would end in a traceback, for want of a compiler of the system's.

    It writes C++ for a CPU, and Triton, on a GPU, a little C.
    """
    given, usual = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", ("g++",))
    names = [os.environ[given]] if given in os.environ else usual
    if not any(map(shutil.which, names)):
        raise UserError(
            f"train.compile=true needs the compiler {' or '.join(names)}, which is not installed: "
            f"apt-get install g++, or name one in ${given}, or set train.compile=false"
        )
