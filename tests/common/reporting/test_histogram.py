from pathlib import Path

import pytest
from PIL import Image

from common.reporting.histogram import plot_histogram


def test_same_counts_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    def draw(name: str, counts: list[int]) -> bytes:
        limits = [(7, "half of them"), (12, "95 %")]
        path = plot_histogram(tmp_path / name, [0, 5, 10, 15], counts, xlabel="tokens", ylabel="n", limits=limits)
        with Image.open(path) as picture:
            assert min(picture.size) > 300
        return path.read_bytes()

    assert draw("a.png", [1, 5, 2]) == draw("b.png", [1, 5, 2])
    assert draw("a.png", [1, 5, 2]) != draw("c.png", [1, 6, 2])


def test_edges_enclose_the_bins(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        plot_histogram(tmp_path / "a.png", [0, 5], [1, 5], xlabel="x", ylabel="y")
