"""Runs of the toy that are killed, as one program: it imports torch once and forks a process for each run.

`python -m tests.common.training.scenarios FOLDER` writes one run directory per scenario; the tests in
`test_killed.py` compare them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from common.errors import UserError
from common.training import checkpoint as checkpoints
from tests.common.training.toy import train_toy, trained


def kill_at_forward(number: int, how: signal.Signals = signal.SIGKILL) -> Callable[[nn.Module], nn.Module]:
    """A `wrap` for `train_toy`: the process gets a signal in the given forward of the objective."""
    count = 0

    def hook(_module: nn.Module, _inputs: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), how)

    def wrap(objective: nn.Module) -> nn.Module:
        objective.register_forward_pre_hook(hook)
        return objective

    return wrap


def kill_in_save(number: int) -> None:
    """Let this process be killed when all files of its n-th checkpoint are written but it has no name yet."""
    write, count = checkpoints.fsync_tree, 0

    def fsync_tree(folder: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder)

    checkpoints.fsync_tree = fsync_tree


def run(output: Path, **settings: Any) -> None:
    """Train, and keep the final weights beside the run."""
    _, objective = train_toy(output, **settings)
    if os.environ.get("RANK", "0") == "0":
        safetensors.torch.save_file(trained(objective), output / "final.safetensors")


def final(output: Path) -> dict[str, Tensor]:
    """What `run` kept."""
    return safetensors.torch.load_file(output / "final.safetensors")


def forked(*programs: Callable[[], None]) -> list[int]:
    """Run programs as the ranks of one distributed run, or a single one by itself; gives their statuses.

    A negative status is the signal that ended a process. As torchrun does, the others are ended with it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(program, rank, len(programs), port) for rank, program in enumerate(programs)]
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] < 0:
            for other in set(children) - statuses.keys():
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in children]


def _fork(program: Callable[[], None], rank: int, world_size: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    status = 1
    try:
        program()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except UserError:
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main(folder: Path) -> None:
    """All scenarios; a status that is not the expected one fails at once."""

    def expect(statuses: list[int], *programs: Callable[[], None]) -> None:
        found = forked(*programs)
        assert found == statuses, f"exit statuses {found}, expected {statuses}"

    random: dict[str, Any] = {"dropout": 0.3, "num_workers": 2}
    killed, terminated = -signal.SIGKILL, 143

    expect([0], lambda: run(folder / "whole", **random))
    expect([killed], lambda: run(folder / "killed", wrap=kill_at_forward(7), **random))
    expect([killed], lambda: run(folder / "killed", wrap=kill_at_forward(6), **random))
    expect([0], lambda: run(folder / "killed", **random))

    def killed_in_second_save() -> None:
        kill_in_save(2)
        run(folder / "killed_in_save", **random)

    expect([killed], killed_in_second_save)
    expect([0], lambda: run(folder / "killed_in_save", **random))

    def pair(*settings: dict[str, Any], name: str, **shared: Any) -> list[Callable[[], None]]:
        return [lambda own=own: run(folder / name, **own, **shared) for own in settings]  # type: ignore[misc]

    # 25 samples: the last batch of an epoch has one sample, so the second process gets a filler.
    exact: dict[str, Any] = {"method": "goat", "balance_coef": 0.0, "size": 25}
    expect([0], lambda: run(folder / "one", **exact))
    expect([0, 0], *pair({}, {}, name="two", **exact))
    expect([0, 0], *pair({}, {}, name="two_random", **random))
    expect([killed, killed], *pair({}, {"wrap": kill_at_forward(7)}, name="two_killed", **random))
    expect([0, 0], *pair({}, {}, name="two_killed", **random))
    soft = {"wrap": kill_at_forward(6, signal.SIGTERM)}
    expect([terminated, terminated], *pair({}, soft, name="two_terminated", **random))
    expect([0, 0], *pair({}, {}, name="two_terminated", **random))
    expect([terminated, terminated], *pair({}, soft, name="two_then_one", **exact))
    expect([0], lambda: run(folder / "two_then_one", **exact))
    refused = forked(*pair({}, {}, name="two", **exact, learning_rate=0.5))
    (folder / "refused").write_text(" ".join(map(str, refused)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
