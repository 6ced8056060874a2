"""The drawings: what ships is what the code draws, and the two sets of classes are disjoint."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from vit_classify.demo import builtin_data_dir, builtin_model_dir
from vit_classify.demo.classes import GLYPHS, NEW, PRETRAINING
from vit_classify.demo.draw import SIDE, SPLITS, draw, draw_split, polygon_distance, write

SHIPPED = builtin_data_dir("signs")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("sign", [NEW[0], NEW[8], NEW[17]], ids=lambda sign: sign.name)
def test_shipped_pictures_are_what_the_code_draws(sign, split):
    drawn = draw_split(sign, split)
    for index, picture in enumerate(drawn):
        with Image.open(SHIPPED / split / sign.name / f"{index:02d}.png") as image:
            shipped = np.asarray(image)
        # Another processor's float32 sine may differ in the last bit, which can turn a rounding by one level.
        assert np.abs(shipped.astype(int) - picture).max() <= 1


def test_shipped_set_is_complete_and_small():
    files = sorted(SHIPPED.rglob("*.png"))
    assert len(files) == len(NEW) * sum(SPLITS.values())
    assert {path.parent.name for path in files} == {sign.name for sign in NEW}
    assert sum(path.stat().st_size for path in files) <= 2 * 2**20


def test_no_picture_occurs_twice():
    pictures = [path.read_bytes() for path in SHIPPED.rglob("*.png")]
    assert len(set(pictures)) == len(pictures)


def test_pretraining_and_new_classes_share_no_pictogram():
    assert not {sign.glyph for sign in PRETRAINING} & {sign.glyph for sign in NEW}
    assert not {GLYPHS[sign.glyph] for sign in PRETRAINING} & {GLYPHS[sign.glyph] for sign in NEW}
    names = [sign.name for sign in (*PRETRAINING, *NEW)]
    assert len(set(names)) == len(names)


def test_new_classes_of_a_family_differ_only_by_their_pictogram():
    families: dict[tuple, list[str]] = {}
    for sign in NEW:
        families.setdefault((sign.shape, sign.rim, sign.plate, sign.ink), []).append(sign.glyph)
    assert sorted(map(len, families.values())) == [6, 6, 6]
    assert all(len(set(glyphs)) == 6 for glyphs in families.values())


def test_same_seed_draws_the_same_and_another_seed_does_not():
    first, again, other = (draw(NEW[3], 2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_write_makes_a_class_per_folder_set(tmp_path: Path):
    assert write(tmp_path, NEW[:2], seed=5) == 2 * sum(SPLITS.values())
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == sorted(sign.name for sign in NEW[:2])
    with Image.open(tmp_path / "train" / NEW[0].name / "00.png") as image:
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")


def test_polygon_distance_is_signed_and_euclidean():
    square = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
    x, y = np.float32([0, 0.5, 1, 3, 2]), np.float32([0, 0, 0, 0, 2])
    # Inside, inside, on the edge, beside an edge, off a corner; float32 arithmetic.
    assert polygon_distance(x, y, square) == pytest.approx([-1, -0.5, 0, 2, 2**0.5], abs=1e-6)


def test_polygon_distance_knows_the_outside_of_a_notch():
    arrow = ((0.0, 0.0), (2.0, -2.0), (1.0, 0.0), (2.0, 2.0))  # a dart: (1.5, 0) lies in the notch, outside
    distance = polygon_distance(np.float32([0.5, 1.5]), np.float32([0, 0]), arrow)
    assert distance[0] < 0 < distance[1]


@pytest.mark.parametrize("name", ["signs", "builtin:signs"])
def test_builtin_names_work_with_and_without_prefix(name):
    assert builtin_data_dir(name) == SHIPPED


def test_unknown_builtin_names_the_known_ones():
    with pytest.raises(UserError, match=r"data\.source=builtin:sings.*did you mean signs"):
        builtin_data_dir("builtin:sings")
    with pytest.raises(UserError, match=r"model\.name=builtin:resnet.*signs-vit"):
        builtin_model_dir("builtin:resnet")
