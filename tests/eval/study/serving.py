"""The study's server as its own process, as an organiser starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def running(study: Path, log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`mosgoat eval study serve` at a free port: the process and its address; killed at the end if it still runs."""
    command = [sys.executable, "-m", "common.cli", "eval", "study", "serve", "--study", str(study), "--port", "0"]
    with log.open("a") as errors:
        server = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ
        )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()  # printed once it listens
        assert "http://" in line, line + log.read_text()
        yield server, line.split("served at ")[1].split(";")[0]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
