"""Numbers, lists and names in messages."""

import pytest

from common.words import counted, did_you_mean, first_line, listed, printable


def test_did_you_mean_prefers_near_names() -> None:
    assert did_you_mean("gaot", ["goat", "lora"]) == "did you mean goat?"
    assert did_you_mean("xyz", ["goat", "lora"]) == "known: goat, lora"


def test_one_is_no_plural() -> None:
    assert [counted(n, "set") for n in (0, 1, 2, 1000)] == ["0 sets", "1 set", "2 sets", "1,000 sets"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_a_long_list_says_how_many_more_there_are() -> None:
    assert listed(range(3), 3) == "0, 1, 2"
    assert listed(range(5), 3) == "0, 1, 2 and 2 more"


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("one\ntwo"), "one"), (ValueError("\n x "), "x"), (KeyError(), "KeyError")]
)
def test_an_error_is_told_by_its_first_line_or_its_kind(error: Exception, told: str) -> None:
    assert first_line(error) == told


@pytest.mark.parametrize("name", ["plain.jpg", "ünï.png", "a\udcff.jpg", "half \ud83d of a character"])
def test_every_name_can_be_written_as_utf_8(name: str) -> None:
    shown = printable(name)
    assert shown.encode()
    assert shown == name or "\\" in shown
