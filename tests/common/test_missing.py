"""A package that is missing or does not fit is told in one line, and our own errors keep their traceback."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from common import missing
from common.missing import explain_import_error

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that are told for packages in place of the true ones; None: not installed."""
    told: dict[str, str | None] = {}
    true = importlib.metadata.version

    def version(name: str) -> str:
        found = told.get(name, true(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(missing, "version", version)
    monkeypatch.setattr(missing, "requires", lambda name: REQUIRES[name])
    return told


REQUIRES = {
    "mosgoat": ["torch>=2.10", "torchvision>=0.25", 'pytest-xdist; extra == "dev"'],
    "torchvision": ["torch==2.13.0"],
}


def nested(root: Exception) -> ImportError:
    error = ModuleNotFoundError("Could not import module 'BloomPreTrainedModel'")
    error.__cause__ = root
    return error


def test_what_is_missing_and_what_does_not_fit_is_named(installed: dict[str, str | None]) -> None:
    installed |= {"torch": "2.13.0+cpu", "torchvision": None}
    told = explain_import_error(ModuleNotFoundError("No module named 'torchvision'"))
    assert told is not None
    assert "the package torchvision is not installed (No module named 'torchvision')" in told
    assert "pip install -e" in told
    installed |= {"torch": "2.9.1", "torchvision": "0.28.0"}
    told = explain_import_error(nested(RuntimeError("operator torchvision::nms does not exist")))
    assert told is not None
    assert "mosgoat needs torch>=2.10, and 2.9.1 is installed" in told
    assert "torchvision needs torch==2.13.0, and 2.9.1 is installed" in told


def test_torch_and_torchvision_of_two_builds_are_named(installed: dict[str, str | None]) -> None:
    installed |= {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    for error in (root := RuntimeError("operator torchvision::nms does not exist"), nested(root)):
        told = explain_import_error(error)
        assert told is not None
        assert "torchvision 0.28.0 was not built for the installed torch 2.13.0+cpu" in told


def test_errors_of_ours_are_not_explained_away(installed: dict[str, str | None]) -> None:
    installed |= {"torch": "2.13.0", "torchvision": "0.28.0"}
    assert explain_import_error(ImportError("cannot import name 'x' from 'common.files'")) is None
    installed["torch"] = "2.9.1"  # which does not fit, and has nothing to do with this
    assert explain_import_error(RuntimeError("shapes do not match")) is None


def test_the_command_tells_a_missing_package_in_one_line(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import common.missing as m; m.version = lambda n: '9'; "
        "m.requires = lambda n: ['torch<1'] if n == 'mosgoat' else []; "
        "from common.cli import main; sys.exit(main(['vit', 'train']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("mosgoat: mosgoat needs torch<1, and 9 is installed (")
    assert "Traceback" not in ended.stderr
