"""Which sets of pictures there are, and what is missing of them."""

from pathlib import Path

import pytest

from common.errors import UserError
from eval.subjects.sets import missing_pictures, read_sets, require_whole
from tests.eval.subjects.tiny import PROMPTS, change_manifest, draw, make_set


def test_sets_are_found_from_the_output_an_adapter_or_a_subject(tmp_path: Path) -> None:
    root = tmp_path / "out"
    folders = [make_set(root, adapter, subject) for adapter in ("lora", "moslora") for subject in ("duck", "rex")]
    keys = [(each.manifest.adapter, each.manifest.subject) for each in read_sets([root])]
    assert keys == [("lora", "duck"), ("lora", "rex"), ("moslora", "duck"), ("moslora", "rex")]
    assert [each.manifest.adapter for each in read_sets([root / "lora"])] == ["lora", "lora"]
    assert [each.folder for each in read_sets(folders[:1])] == folders[:1]
    assert len(read_sets([root, folders[0]])) == 4  # the same folder twice is once


def test_two_sets_of_the_same_name_are_refused(tmp_path: Path) -> None:
    one, other = make_set(tmp_path / "a"), make_set(tmp_path / "b")
    with pytest.raises(UserError, match="both hold duck by lora"):
        read_sets([one, other])


def test_references_come_from_the_manifest_or_from_a_folder(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "out")
    assert [path.name for path in read_sets([folder])[0].references] == ["00.png", "01.png", "02.png"]
    one = draw(tmp_path / "photos" / "duck" / "a.png", 5)
    (tmp_path / "photos" / "duck" / "notes.txt").write_text("no picture")
    assert read_sets([folder], tmp_path / "photos")[0].references == (one,)
    assert read_sets([folder], tmp_path / "photos" / "duck")[0].references == (one,)
    with pytest.raises(UserError, match="holds no pictures of duck"):
        read_sets([folder], tmp_path / "nothing")


def test_references_that_are_gone_are_an_error_and_not_fewer(tmp_path: Path) -> None:
    folder = make_set(tmp_path)
    (tmp_path / "real" / "duck" / "01.png").unlink()
    with pytest.raises(UserError, match=r"no real pictures of duck: .*01\.png is not there; give .* --references"):
        read_sets([folder])
    change_manifest(folder, references=[])
    with pytest.raises(UserError, match="names none"):
        read_sets([folder])


def test_nothing_is_missing_of_whole_sets(tmp_path: Path) -> None:
    for adapter in ("lora", "moslora"):
        make_set(tmp_path, adapter)
    assert missing_pictures(read_sets([tmp_path])) == []


def test_a_missing_picture_subject_or_prompt_is_an_error_unless_allowed(tmp_path: Path) -> None:
    for adapter in ("lora", "moslora"):
        make_set(tmp_path, adapter)
    make_set(tmp_path, "lora", "rex")
    make_set(tmp_path, "moslora", "vase", prompts=PROMPTS[:1])
    make_set(tmp_path, "lora", "vase")
    (tmp_path / "lora" / "duck" / "01_1.png").unlink()
    sets = read_sets([tmp_path])
    lines = require_whole(sets, allow_incomplete=True)
    assert len(lines) == 3
    assert lines[0].endswith("lacks 1 of 4 pictures: prompt 1 seed 1")
    assert lines[1] == "moslora has no pictures of rex, which others have"
    assert lines[2].startswith("vase: lora, moslora have other prompts or seeds")
    with pytest.raises(UserError, match=r"not all pictures are there: .*lacks 1 of 4.*--allow-incomplete"):
        require_whole(sets, allow_incomplete=False)


def test_a_picture_that_the_manifest_does_not_name_is_not_measured(tmp_path: Path) -> None:
    folder = make_set(tmp_path)
    draw(folder / "02_0.png", 1)
    assert len(read_sets([folder])[0].files()) == 4
