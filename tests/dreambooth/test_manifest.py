"""The manifest of generated pictures: written, read, and refused where it is not sound."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from dreambooth.manifest import (
    Manifest,
    PictureEntry,
    find_manifests,
    picture_name,
    read_manifest,
    without_token,
    write_manifest,
)

SOUND = Manifest(
    adapter="moslora",
    subject="dog6",
    class_word="dog",
    token="ikat",
    prompts=("a {token} {class} in the snow", "a red {token} {class}"),
    seeds=(0, 3),
    references=("/data/dog6/00.jpg",),
    settings={"steps": 50},
    weights="abc",
    pictures={"00_0.png": PictureEntry(0, 0, "x"), "01_3.png": PictureEntry(1, 3, "y")},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, SOUND)
    assert read_manifest(tmp_path) == SOUND


def test_prompts_are_filled_in_with_and_without_the_token() -> None:
    assert SOUND.prompt_text(0) == "a ikat dog in the snow"
    assert SOUND.class_text(0) == "a dog in the snow"
    assert SOUND.cells() == [(0, 0), (0, 3), (1, 0), (1, 3)]
    assert SOUND.by_cell() == {(0, 0): "00_0.png", (1, 3): "01_3.png"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {token} {class} in the snow", "a stuffed animal in the snow"),
        ("a photo of ikat {class}, ikat!", "a photo of stuffed animal, !"),
        ("ikats and {class}", "ikats and stuffed animal"),  # another word
        ("no placeholder", "no placeholder"),
    ],
)
def test_the_token_goes_wherever_it_stands_alone(template: str, expected: str) -> None:
    assert without_token(template, "ikat", "stuffed animal") == expected


def test_names_of_pictures_tell_neither_adapter_nor_subject() -> None:
    assert picture_name(3, 12) == "03_12.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": None}, "adapter=None must be a text"),
        ({"prompts": "a dog"}, "prompts='a dog' must be a list"),
        ({"prompts": []}, "at least one of each"),
        ({"prompts": ["x", 3]}, r"prompts must be texts .* not \[3\]"),
        ({"seeds": [0, "1"]}, "seeds whole numbers"),
        ({"references": "x"}, "references='x' must be a list of paths"),
        ({"settings": []}, "settings=.* must be an object"),
        ({"pictures": []}, "pictures=.* must be an object"),
        ({"pictures": {"../00_0.png": {"prompt": 0, "seed": 0}}}, "must be the name of a file beside the manifest"),
        ({"pictures": {"/etc/hostname": {"prompt": 0, "seed": 0}}}, "must be the name of a file"),
        ({"pictures": {"a.png": {"prompt": 2, "seed": 0}}}, "prompt=2 or seed=0 is none"),
        ({"pictures": {"a.png": {"prompt": -1, "seed": 0}}}, "prompt=-1"),
        ({"pictures": {"a.png": {"prompt": 0, "seed": 7}}}, "seed=7 is none"),
        ({"pictures": {"a.png": 3}}, "prompt=None"),
        (
            {"pictures": {"a.png": {"prompt": 0, "seed": 0}, "b.png": {"prompt": 0, "seed": 0}}},
            "the same prompt and seed",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict, message: str) -> None:
    write_manifest(tmp_path, SOUND)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_written_by_hand_needs_no_more_than_is_required(tmp_path: Path) -> None:
    keys = ("adapter", "subject", "class_word", "token", "prompts", "seeds")
    content = {key: getattr(SOUND, key) for key in keys}
    content["pictures"] = {"any name.jpg": {"prompt": 1, "seed": 3}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path).by_cell() == {(1, 3): "any name.jpg"}


def test_manifests_are_found_and_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    for place in ("b/x", "a/y", "a/x", ".hidden/z"):
        (tmp_path / place).mkdir(parents=True)
        write_manifest(tmp_path / place, SOUND)
    assert find_manifests(tmp_path) == [tmp_path / place for place in ("a/x", "a/y", "b/x")]
    assert find_manifests(tmp_path / "a" / "x") == [tmp_path / "a" / "x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no generated pictures"):
        find_manifests(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no folder"):
        find_manifests(tmp_path / "nothing")
