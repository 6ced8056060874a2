"""Packages that are missing or do not fit, in one line: an import that fails shows where, and seldom why."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from common.words import first_line

_INSTALL = f"python -m pip install -e {Path(__file__).resolve().parents[1]}"
_TORCHVISION = "torchvision::"  # its operators, where its binary does not load beside this torch


def explain_import_error(error: BaseException) -> str | None:
    """What is wrong with the installed packages, and how to mend it.

    Args:
        error: of a command.

    Returns:
        One line; None where the packages are what mosgoat asks for, and the error is ours.
    """
    causes = _causes(error)
    mismatched = any(_TORCHVISION in str(each) for each in causes)
    if not isinstance(error, ImportError) and not mismatched:
        return None
    found = _problems()
    if not found and mismatched:
        return (
            f"torchvision {_version('torchvision')} was not built for the installed torch {_version('torch')}; install "
            "both of one build, from the same place: either both for the CPU, or both for the same CUDA"
        )
    if not found:
        return None
    return (
        f"{'; '.join(found)} ({first_line(causes[-1])}). `{_INSTALL}` installs what mosgoat needs; to keep your torch, "
        "see the README"
    )


def _problems() -> list[str]:
    """What mosgoat asks for and is not there, or in a version that does not fit; torchvision's wish for torch too."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["the package packaging is not installed"]
    found = []
    for owner in ("mosgoat", "torchvision"):
        for requirement in map(Requirement, _requires(owner)):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            have = _version(requirement.name)
            wish = f"{requirement.name}{requirement.specifier}"
            if have is None:
                found.append(f"the package {requirement.name} is not installed")
            elif not requirement.specifier.contains(have, prereleases=True):
                found.append(f"{owner} needs {wish}, and {have} is installed")
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
