"""Which process of a run this one is, and the few things on which processes must agree."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from common.errors import UserError

T = TypeVar("T")


def start() -> None:
    """Join the process group that torchrun, accelerate or Slurm has laid out; nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=not torch.accelerator.is_available())


def leave() -> None:
    """Leave the process group, where a command has ended well; NCCL warns about processes that do not."""
    if _joined():
        dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 in a single process."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def say(text: str) -> None:
    """Tell who waits at the terminal, beside the output; the main process speaks for all."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def gather(value: T) -> list[T]:
    """`value` of every process, in the order of their ranks; a collective call."""
    if not _joined():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def on_main(action: Callable[[], T]) -> T:
    """Run `action` in the main process; every process gets its result.

    A collective call. The result must pickle.

    Raises:
        UserError: in every process, if `action` raised one; another error is raised as it is in the main
            process and as a RuntimeError in the others, so that none of them waits for ever.
    """
    if not _joined():
        return action()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if is_main():
        try:
            outcome[0] = action()
        except Exception as caught:
            error = caught
            outcome[1] = (isinstance(caught, UserError), str(caught))
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        users, message = outcome[1]
        raise UserError(message) if users else RuntimeError(f"the main process failed: {message}")
    return outcome[0]
