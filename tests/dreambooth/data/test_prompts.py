"""`prompts_and_classes.txt` is read as text."""

from pathlib import Path

import pytest

from common.errors import UserError
from dreambooth.data import read_prompts

WHOLE = """Classes

subject_name,class
bear_plushie,stuffed animal
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} on someone's rug".format(unique_token, class_token),
'a {1} of a friend\\'s'
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(text)
    return file


def test_classes_and_both_lists_are_read(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path, WHOLE))
    assert found.classes == {"bear_plushie": "stuffed animal", "cat2": "cat"}
    assert found.object_prompts == [
        "a {token} {class} in the jungle",
        "a {token} {class} on someone's rug",
        "a {class} of a friend's",
    ]
    assert found.live_prompts == ["a {token} {class} wearing a red hat"]
    assert found.prompts_of("cat") == found.live_prompts
    assert found.prompts_of("stuffed animal") == found.object_prompts


@pytest.mark.parametrize(
    "line",
    [
        "'a {0}'.format(__import__('os').system('touch ran'))",
        "__import__('os').system('touch ran')",
        "'a' + 'b'",
        "f'a {0}'",
    ],
)
def test_nothing_in_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    text = WHOLE.replace("'a {0} {1} in the jungle'.format(unique_token, class_token)", line)
    with pytest.raises(UserError, match="line 12"):
        read_prompts(written(tmp_path, text))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cat2,cat", "cat2", "line 5: 'cat2' is not `subject,class`"),
        ("{0} {1} in", "{2} {1} in", r"line 12: \{2\} is not filled in"),
        ("bear_plushie,stuffed animal\ncat2,cat", "", "names no subject"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(written(tmp_path, WHOLE.replace(old, new)))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "prompts_and_classes.txt")


@pytest.mark.shared_data
def test_the_published_file(shared_data: Path) -> None:
    found = read_prompts(shared_data / "dreambooth" / "dataset" / "prompts_and_classes.txt")
    assert len(found.classes) == 30
    assert len(set(found.classes.values())) == 15
    assert found.classes["bear_plushie"] == "stuffed animal"
    assert len(found.object_prompts) == len(found.live_prompts) == 25
    assert found.object_prompts[:10] == found.live_prompts[:10]
    assert found.object_prompts[-1] == found.live_prompts[-1] == "a cube shaped {token} {class}"
    assert found.live_prompts[10] == "a {token} {class} wearing a red hat"
