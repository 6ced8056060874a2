"""What commands have in common: options, checks of options, and how they speak to who waits. Imports no torch."""

from __future__ import annotations

import argparse
import os
import sys

from common.errors import UserError


def say(text: str) -> None:
    """Tell who waits at the terminal, beside the output; for one process, see `common.training.processes.say`."""
    print(text, file=sys.stderr, flush=True)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--device`, which `common.devices.usable_device` takes."""
    parser.add_argument("--device", help="such as cuda, cuda:1, cpu; default: a GPU where there is one")


def require_between(option: str, value: float, least: float = 1, most: float = 2**20, remark: str = "") -> None:
    """Refuse a number that is out of range, NaN too.

    Args:
        option: its name, such as `--batch-size`.
        value: the number.
        least: smallest that is allowed.
        most: largest that is allowed; the default stands for more than any machine can take at once.
        remark: what else there is to say.

    Raises:
        UserError: it is out of range.
    """
    if not least <= value <= most:
        raise UserError(f"{option}={value} must be from {least} to {most}{f'; {remark}' if remark else ''}")


def require_one_process(command: str, instead: str) -> None:
    """Refuse to be started by torchrun, where processes would do the same work and write the same files.

    Args:
        command: whose name is told.
        instead: what to do to use several devices.

    Raises:
        UserError: this is one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command} is one process; {instead}")
