"""Extractors that lie on the disk, made once."""

from pathlib import Path

import pytest

from tests.eval.subjects.tiny import tiny_clip, tiny_dino


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dino(tmp_path_factory.mktemp("dino") / "vit")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")
