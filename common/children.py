"""A command in a process of its own that does not outlive the one that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any

GRACE = 60.0  # seconds to take a checkpoint in
_LEFT_OVER = 5.0  # seconds for what a process that has ended has started itself
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came, and the command has ended.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def run_child(
    words: Sequence[str],
    grace: float = GRACE,
    *,
    output: IO[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command to its end.

    It is in a process group of its own. Ctrl-C and SIGTERM become SIGTERM for it, upon which a training takes a
    checkpoint; the second one, or `grace` seconds, end it and all that it has started.

    Args:
        words: the program and its arguments.
        grace: seconds.
        output: file for all that it prints; None: it prints where this process does.
        environment: its variables; None: those of this process.

    Returns:
        The exit status; minus the signal's number if one has killed it.

    Raises:
        Stopped: a signal came; nothing that was started runs on.
        OSError: it cannot be started.
    """
    watched = _Watched(grace)
    with _handled(watched.stop):
        errors = None if output is None else subprocess.STDOUT
        child = subprocess.Popen(list(words), stdout=output, stderr=errors, env=environment, process_group=0)
        watched.begin(child)
        try:
            status = child.wait()
        finally:
            watched.timer.cancel()
            _end_group(child.pid)
    if watched.signals:
        raise Stopped(watched.signals[0])
    return status


class _Watched:
    """A child and the signals that came while it ran.

    Args:
        grace: seconds that the first one leaves it.
    """

    def __init__(self, grace: float) -> None:
        self.signals: list[int] = []
        self.timer = threading.Timer(grace, self._kill)
        self.timer.daemon = True
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        if self.signals:  # they came while it was started
            self._end()

    def stop(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        self.signals.append(number)
        if self._child is not None:
            self._end()

    def _end(self) -> None:
        assert self._child is not None
        if self.timer.is_alive():
            self._kill()
            return
        self._child.terminate()
        self.timer.start()

    def _kill(self) -> None:
        assert self._child is not None
        _kill(self._child.pid)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals are given to `handler`; not those that are ignored, as SIGHUP is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows nothing else
        return
    wanted: dict[int, Any] = {number: handler for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}
    wanted[signal.SIGTTOU] = signal.SIG_IGN  # inherited: the child may print under `stty tostop` too
    previous = {number: signal.signal(number, each) for number, each in wanted.items()}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _end_group(group: int) -> None:
    """Wait a little for the processes that an ended one has left, then kill them."""
    until = time.monotonic() + _LEFT_OVER
    while _alive(group):
        if time.monotonic() > until:
            _kill(group)
            return
        time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
