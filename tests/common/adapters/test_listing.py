"""`mosgoat methods`: the table, its counts, and the explanation of one method."""

import json

import pytest

from common.adapters import METHODS
from common.adapters.listing import main, options_of, trainable
from common.config import OPTIONS
from common.errors import UserError

# [G] Table 1's percent of 88 715 520 where it has the method, else written out: 12 blocks of four layers 768 x 768
# and two of 768 x 3072.
SIDES = 12 * (4 * (768 + 768) + 2 * (768 + 3072))
COUNTS = {
    "full": 87_849_216,
    "lora": 8 * SIDES,
    "dora": 8 * SIDES + 12 * (4 * 768 + 3072 + 768),
    "adalora": 12 * SIDES + 12 * 72,
    "loha": 2 * 8 * SIDES,
    "moslora": 8 * SIDES + 64 * 72,
    "kasa": 8 * SIDES + 8 * 72,
    "lora_dash": 8 * SIDES + 8 * 72,
    "goat": 8 * SIDES + 12 * 8 * (5 * 768 + 3072),
}


def test_the_table_shows_every_method_in_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    shown = {line.split()[0]: line for line in lines if line and not line.startswith((" ", "-"))}
    for name, method in METHODS.items():
        by = "mosgoat" if method.ours else "PEFT" if method.build else "-"
        facts = ["yes" if fact else "-" for fact in (method.mergeable, method.routed, method.exportable)]
        assert shown[name].split()[-4 if method.build else -3 :] == facts + ([by] if method.build else []), name


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_shapes(name: str) -> None:
    assert trainable(METHODS[name], 8) == COUNTS[name]


def test_a_rank_that_does_not_fit_is_left_open() -> None:
    assert trainable(METHODS["goat"], 12) is None
    assert trainable(METHODS["lora"], 12) == 12 * SIDES
    assert trainable(METHODS["linear_probe"], 8) is None


def test_json_holds_what_the_table_shows_and_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--r", "16", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["r"] == 16
    rows = {row["name"]: row for row in content["methods"]}
    assert list(rows) == list(METHODS)
    assert rows["lora"]["trainable"] == 16 * SIDES
    assert set(rows["goat"]["options"]) == OPTIONS["goat"] | {"r"}


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(options_of(name)) - {"r"} == set(OPTIONS[name])
    main([name])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert METHODS[name].equation.split()[0] in out
    assert all(f"\n  {key} " in out for key in options_of(name))
    assert all("none given: " in " ".join(text.split()) for text in options_of(name).values())


def test_wrong_words_are_explained() -> None:
    with pytest.raises(UserError, match=r"no method 'moslara'; did you mean moslora"):
        main(["moslara"])
    with pytest.raises(UserError, match="--r=0 must be at least 1"):
        main(["--r", "0"])
