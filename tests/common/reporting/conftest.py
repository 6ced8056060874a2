from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from common.reporting import canvas


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved during the test."""
    figures: list[Figure] = []
    save = canvas.save

    def keep(figure: Figure, *args: Any) -> Path:
        figures.append(figure)
        return save(figure, *args)

    monkeypatch.setattr(canvas, "save", keep)
    return figures
