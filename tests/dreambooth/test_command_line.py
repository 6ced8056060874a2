from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from dreambooth.command_line import expand


def test_short_options_stand_for_keys(tmp_path: Path) -> None:
    words, subjects = expand(["--subject", str(tmp_path), "--class-word=dog", "--seed", "1"])
    assert words == ["--seed", "1", "--data.path", str(tmp_path), "--data.subject", "null", "--data.class_word", "dog"]
    assert subjects is None


def test_a_subject_that_is_no_folder_is_a_name() -> None:
    assert expand(["--data.path", "dataset", "--subject", "dog6"])[0][2:] == ["--data.subject", "dog6"]
    assert expand(["--subject", "missing/dog"])[0][:2] == ["--data.path", "missing/dog"]
    assert expand(["--subject", "builtin:drawn-subject:x"])[0][:2] == ["--data.path", "builtin:drawn-subject:x"]


def test_several_subjects() -> None:
    assert expand(["--subjects", "all"]) == ([], [])
    assert expand(["--subjects=dog, cat,dog"]) == ([], ["dog", "cat"])
    assert expand(["--seed", "1"]) == (["--seed", "1"], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subject"], "--subject needs a value"),
        (["--subject", "--seed", "1"], "--subject needs a value"),
        (["--subjects", ","], "names no subject"),
        (["--subject", "a", "--subject", "b"], "--subject is given twice"),
        (["--subject", "a", "--subjects", "b"], "cannot be given together"),
    ],
)
def test_what_contradicts_itself_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(words)


def test_help_tells_of_the_short_options(capsys: pytest.CaptureFixture[str]) -> None:
    expand(["--help"])
    assert "--class-word WORD" in capsys.readouterr().out
