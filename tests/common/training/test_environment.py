"""What a run or an evaluation says of its making."""

import pytest

from common.training.environment import made_by, without_secrets


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("--judge-url=https://me:pa@ss@host:80/v1", "--judge-url=https://***@host:80/v1"),
        ("https://host/v1?api-key=SECRET&b=c", "https://host/v1?***"),
        ("https://token@host/v1#SECRET", "https://***@host/v1?***"),
        ("https://host/v1\n?SECRET", "https://host/v1\n?SECRET"),
        ("hf://datasets/me/x@main", "hf://datasets/me/x@main"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("runs/a?b@c#d", "runs/a?b@c#d"),
        ("builtin:drawn-mmbench", "builtin:drawn-mmbench"),
    ],
)
def test_the_secret_parts_of_an_address_are_left_out(word: str, kept: str) -> None:
    assert without_secrets(word) == kept


def test_a_command_is_noted_as_it_was_typed_but_for_secrets() -> None:
    made = made_by("mosgoat eval vlm", ["--run", "a run", "--judge-url", "https://u:SECRET@h/?key=SECRET"])
    assert made["command"] == "mosgoat eval vlm --run 'a run' --judge-url 'https://***@h/?***'"
    assert "SECRET" not in str(made)
