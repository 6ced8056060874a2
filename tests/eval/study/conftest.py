"""One small study, made once and copied for each test: its making waits for the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.study.database import Study, open_study
from tests.eval.study.world import make_study


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two methods and 6 pairs, which nobody has touched."""
    return make_study(tmp_path_factory.mktemp("made"))[0].path


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Study:
    """A study of two methods and 6 pairs."""
    return open_study(Path(shutil.copytree(made, tmp_path / "study")))
