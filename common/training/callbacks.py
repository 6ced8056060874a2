"""What happens beside the optimisation: the metrics file, the bar, trackers, SIGTERM."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from common.errors import UserError
from common.files import append_json_line
from common.training import processes
from common.words import did_you_mean

_SECONDS_BETWEEN_LINES = 30.0


class Cadence(TrainerCallback):
    """Keeps the epoch of the data, and asks for the log, evaluation and checkpoints when they are due.

    Args:
        steps_per_epoch: optimizer steps in one pass over the data.
        evaluate_every: steps between two evaluations; 0: none before the last step.
        evaluates: whether there is anything to evaluate.
    """

    def __init__(self, steps_per_epoch: int, evaluate_every: int, evaluates: bool) -> None:
        self._steps_per_epoch, self._evaluate_every, self._evaluates = steps_per_epoch, evaluate_every, evaluates

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set what the Trainer is to do after this step."""
        state.epoch = state.global_step / self._steps_per_epoch
        last = state.global_step >= state.max_steps
        due = self._evaluate_every > 0 and state.global_step % self._evaluate_every == 0
        control.should_log |= last
        control.should_evaluate |= self._evaluates and (due or last)


class MetricsFile(TrainerCallback):
    """Appends every line of metrics to a JSON-lines file, in the main process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write one line: `step`, then the metrics; a value that is not finite is written as null."""
        if state.is_world_process_zero and logs:
            values = {name: value if math.isfinite(value) else None for name, value in logs.items()}
            append_json_line(self._path, {"step": state.global_step, **values})


class Progress(TrainerCallback):
    """A progress bar on a terminal; elsewhere a line of text every half minute."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._last_line = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest loss."""
        shown = {name: f"{value:.4g}" for name, value in (logs or {}).items() if not name.startswith("epoch")}
        if self._bar is not None:
            self._bar.set_postfix({name: shown[name] for name in ("loss",) if name in shown}, refresh=False)
        elif state.is_world_process_zero and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"step {state.global_step}/{state.max_steps}  {shown}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class StopOnSigterm(TrainerCallback):
    """Ends the training after the current step, with a checkpoint, once any process got SIGTERM.

    The library's own facility (`enable_jit_checkpoint`) saves between the gradient and the optimizer step,
    from which no run resumes exactly, and processes may save after different steps. Here they agree: over a
    group of their own on the CPU, one step late, so that no GPU is waited for.

    Args:
        saves: whether to ask for a checkpoint.
    """

    def __init__(self, saves: bool) -> None:
        self._saves = saves
        self._signalled = False
        self._previous: Any = None
        self._group: Any = dist.new_group(backend="gloo") if processes.world_size() > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None
        self.stopped = False

    def install(self) -> None:
        """Take over SIGTERM; outside the main thread Python allows no handler and nothing is done."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def remove(self) -> None:
        """Give SIGTERM back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def close(self) -> None:
        """Finish the last agreement, after a training that ended in the same step in every process."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._signalled = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if it was agreed."""
        if self._agreed() and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True
            control.should_save = self._saves

    def _agreed(self) -> bool:
        if self._group is None:
            return self._signalled
        agreed = False
        if self._pending is not None:
            self._pending.wait()
            agreed = bool(self._flag.item())
        self._flag.fill_(int(self._signalled))
        self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed


def tracker_callbacks(names: list[str], tensorboard: Path, resumed_step: int) -> list[TrainerCallback]:
    """The Trainer's callbacks for the named trackers.

    Args:
        names: any of the names that transformers knows; empty for none.
        tensorboard: folder for TensorBoard's event files.
        resumed_step: later points of an interrupted run are hidden.

    Raises:
        UserError: a name that is not known, or whose package is not installed.
    """
    made: list[TrainerCallback] = []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"train.trackers: {name!r} is unknown; {did_you_mean(name, INTEGRATION_TO_CALLBACK)}")
        try:
            made.append(
                _tensorboard(tensorboard, resumed_step) if name == "tensorboard" else INTEGRATION_TO_CALLBACK[name]()
            )
        except (RuntimeError, ImportError) as error:
            raise UserError(f"train.trackers: {name} cannot be used: {error}") from error
    return made


def _tensorboard(folder: Path, resumed_step: int) -> TrainerCallback:
    if not processes.is_main():
        return TrainerCallback()
    from torch.utils.tensorboard import SummaryWriter

    _tell_disk_errors_once()
    purge = resumed_step + 1 if resumed_step else None
    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=purge))


def _tell_disk_errors_once() -> None:
    """Keep TensorBoard's thread from printing a traceback where the disk is full.

    It hands the error to the next write, which raises it in the main thread, and there it is put in words.
    """
    previous = threading.excepthook
    if getattr(previous, "tells_once", False):
        return

    def hook(told: threading.ExceptHookArgs) -> None:
        from_tensorboard = type(told.thread).__module__.startswith("tensorboard.")
        if not (from_tensorboard and isinstance(told.exc_value, OSError)):
            previous(told)

    hook.tells_once = True  # type: ignore[attr-defined]
    threading.excepthook = hook
