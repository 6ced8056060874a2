"""Pictures of adapters: what is drawn, asked of matplotlib's own objects."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.reporting import adapter_plots


def test_router_load_is_white_at_the_balanced_share(tmp_path: Path, drawn: list[Figure]) -> None:
    load = {"visual.blocks.0.q": [0.25, 0.25, 0.25, 0.25], "visual.blocks.1.q": [0.9, 0.1, 0.0, 0.0]}
    adapter_plots.plot_router_load(tmp_path / "r.png", load)
    image = drawn[0].axes[0].images[0]
    assert float(image.norm(0.25)) == pytest.approx(0.5)
    assert image.norm.vmin == 0
    assert image.norm.vmax == pytest.approx(0.9)


def test_layer_names_lose_only_what_all_share() -> None:
    short = adapter_plots.short_layer_names
    assert short(["m.visual.0.q", "m.visual.0.k", "m.visual.1.q"]) == ["0.q", "0.k", "1.q"]
    assert short(["m.q"]) == ["m.q"]
    assert short(["a", "a.b"]) == ["a", "a.b"]


def test_singular_values_are_shaded_on_a_logarithmic_scale_and_gaps_stay_empty(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    values = {"layers.0.q": [10.0, 1.0, 0.0], "layers.1.q": [5.0]}
    adapter_plots.plot_singular_values(tmp_path / "s.png", values)
    image = drawn[0].axes[0].images[0]
    assert float(image.norm(10.0)) == 1
    assert float(image.norm(0.1)) == pytest.approx(0.5)  # halfway over four powers of ten
    shown = image.get_array()
    assert shown[0, 2] == pytest.approx(1e-3)  # nothing beside the largest, at the dark end
    assert shown.mask.tolist() == [[False, False, False], [False, True, True]]
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["0.q", "1.q"]


@pytest.mark.parametrize("values", [{"a": [0.0, 0.0]}, {"a": [1.0]}, {f"l.{i}": [1.0] * 64 for i in range(300)}])
def test_singular_values_of_any_model_can_be_drawn(tmp_path: Path, values: dict[str, list[float]]) -> None:
    path = adapter_plots.plot_singular_values(tmp_path / "s.png", values)
    with Image.open(path) as image:
        assert max(image.size) < 2500


def test_mixers_share_one_scale_that_is_white_at_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    mixers = {"layers.0.q": np.eye(3), "layers.1.q": -2 * np.eye(3), "layers.2.q": np.zeros((3, 3))}
    adapter_plots.plot_mixers(tmp_path / "m.png", mixers)
    images = [image for axes in drawn[0].axes for image in axes.images]
    assert [axes.get_title() for axes in drawn[0].axes[:3]] == ["0.q", "1.q", "2.q"]
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(-2.0, 2.0)}
    assert np.array_equal(images[1].get_array(), mixers["layers.1.q"])
