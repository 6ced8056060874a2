"""The spelling of methods."""

from typing import get_args

from common.config import Method
from common.reporting.labels import method_label


def test_every_method_of_the_recipes_has_its_own_label() -> None:
    methods = get_args(Method)
    assert len({method_label(method) for method in methods}) == len(methods)
