from __future__ import annotations

from pathlib import Path

import pytest

from tests.dreambooth.tiny import tiny_sdxl


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny SDXL, which predicts the noise; not to be written to."""
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "epsilon")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, said to predict v."""
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "v", prediction_type="v_prediction")
