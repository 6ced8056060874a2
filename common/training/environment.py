"""What a run or an evaluation ran on: versions, commit, devices. No host name and no environment variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from common.training import processes

_PACKAGES = (
    "mosgoat",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "peft",
    "open_clip_torch",
    "diffusers",
    "datasets",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "pillow",
)


def describe_environment() -> dict[str, Any]:
    """Versions of Python and of the packages in use, git commit, devices, number of processes, time (UTC)."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "git": _git(Path(__file__).resolve().parent),
        "devices": _devices(),
        "cpu_count": os.cpu_count(),
        "world_size": processes.world_size(),
    }


def made_by(prog: str, argv: Sequence[str]) -> dict[str, Any]:
    """What the results of an evaluation say of their making: `command`, as it was typed, and `environment`.

    Args:
        prog: the command, such as `mosgoat eval images`.
        argv: the words behind it; of an address in them the user, the password and the query, which may hold secrets,
            are left out.
    """
    environment = describe_environment()
    del environment["started"]  # the same measurement twice is the same file
    words = [without_secrets(word) for word in argv]
    return {"command": shlex.join([*prog.split(), *words]), "environment": environment}


def without_secrets(word: str) -> str:
    """A word of a command line, of whose address user, password and query are left out."""
    word = re.sub(r"(\w://)[^/?#\s]*@", r"\1***@", word)
    return re.sub(r"(\w://[^?#\s]*)[?#].*", r"\1?***", word, flags=re.DOTALL)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed_files": None if changed is None else len(changed.splitlines())}


def _ask_git(folder: Path, *question: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *question], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _devices() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return [{"name": "cpu", "threads": torch.get_num_threads()}]
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in found]
