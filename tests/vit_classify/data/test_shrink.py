"""The size in which pictures are kept."""

import numpy as np
import pytest
from PIL import Image

from vit_classify.data.shrink import shrink, shrunk_size

RNG = np.random.default_rng(0)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 300, (100, 300)), (512, 512, (256, 256)), (300, 400, (256, 341)), (400, 300, (341, 256)), (1, 9, (1, 9))],
)
def test_shorter_side_is_at_most_the_store_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert shrunk_size(height, width, 256) == expected


def test_shrinking_equals_torchvisions_resize_of_the_picture() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    expected = np.asarray(resize(Image.fromarray(PIXELS), 20, InterpolationMode.BICUBIC))
    np.testing.assert_array_equal(shrink(PIXELS, 20), expected)
    assert shrink(PIXELS, 30) is PIXELS
