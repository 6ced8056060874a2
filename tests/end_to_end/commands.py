"""The command line as a user runs it, and what its runs leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": _PATH}
Mosgoat = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*words: str, processes: int = 1) -> list[str]:
    """`mosgoat WORDS...` in this environment, under torchrun where `processes` is more than one."""
    launcher = ["-m", "common.cli"]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher = [*torchrun, "-m", "--", "common.cli"]  # without the -- torchrun takes --run for an option of its own
    return [sys.executable, *launcher, *words]


def run_command(
    *words: str, processes: int = 1, status: int = 0, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `mosgoat WORDS...`; an unexpected exit status fails the test with the end of what it printed."""
    done = subprocess.run(
        command(*words, processes=processes),
        cwd=ROOT,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def kill_after_first_checkpoint(run: Path, *words: str) -> None:
    """Start `mosgoat WORDS...`, which trains into `run`, and kill all of it once there is a checkpoint."""
    process = subprocess.Popen(
        command(*words),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None, "it ended before its first checkpoint"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "results.json").exists(), "it was to be killed before its end"


def assert_resumed_exactly(run: Path, whole: Path, step: int) -> None:
    """The killed run went on from `step` or later, with the losses of the one never interrupted, to the bit."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["resumed"][0]["step"] >= step, environment["resumed"]
    assert losses(run) == losses(whole)


def results(run: Path) -> dict[str, Any]:
    """The `results.json` of a run."""
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def losses(run: Path) -> dict[int, float]:
    """Step → training loss, from `metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
