"""Folders as people have them: DreamBooth's form, one's own pictures, captions, and what is no picture."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from dreambooth.config import DataConfig
from dreambooth.data import open_subject, subject_names
from tests.dreambooth.data.conftest import drawn


def config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(**({"path": str(folder), "class_word": "robot", "resolution": 16} | changes))  # type: ignore[arg-type]


def refusal(*arguments: object, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        open_subject(config(*arguments, **changes))  # type: ignore[arg-type]
    return str(error.value)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A root in DreamBooth's form, with two subjects."""
    root = tmp_path / "dreambooth"
    for name in ("cat2", "bear_plushie"):
        (root / "dataset" / name).mkdir(parents=True)
        for i in (0, 1, 10, 2):
            drawn(20, 20, seed=i).save(root / "dataset" / name / f"{i}.jpg")
    (root / "dataset" / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\nbear_plushie,stuffed animal\ncat2,cat\ndog,dog\n"
    )
    return root


def test_a_published_subject_brings_its_class_of_two_words(published: Path) -> None:
    for root in (published, published / "dataset"):
        subject = open_subject(DataConfig(path=str(root), subject="bear_plushie"))
        assert (subject.name, subject.class_word) == ("bear_plushie", "stuffed animal")
    alone = open_subject(DataConfig(path=str(published / "dataset" / "cat2")))
    assert (alone.name, alone.class_word) == ("cat2", "cat")


def test_a_class_word_of_the_recipe_counts_more(published: Path) -> None:
    assert open_subject(config(published, subject="cat2", class_word="tiger")).class_word == "tiger"


def test_pictures_come_in_natural_order(published: Path) -> None:
    subject = open_subject(DataConfig(path=str(published), subject="cat2"))
    assert [picture.path.name for picture in subject.pictures] == ["0.jpg", "1.jpg", "2.jpg", "10.jpg"]


def test_all_subjects_are_the_folders_that_hold_pictures(published: Path) -> None:
    (published / "dataset" / "empty").mkdir()
    (published / "dataset" / ".hidden").mkdir()
    assert subject_names(str(published)) == ["bear_plushie", "cat2"]
    found = [open_subject(DataConfig(path=str(published), subject=name)) for name in subject_names(str(published))]
    assert [each.class_word for each in found] == ["stuffed animal", "cat"]


def test_one_subject_has_no_subjects(folder: Path) -> None:
    with pytest.raises(UserError, match="is itself a folder of pictures"):
        subject_names(str(folder))


def test_an_unknown_subject_is_told_what_it_might_have_been(published: Path) -> None:
    message = refusal(published, subject="cat")
    assert "data.subject=cat is no folder in" in message
    assert "did you mean cat2?" in message


def test_a_subject_cannot_lead_out_of_the_root(published: Path, folder: Path) -> None:
    assert "is no folder in" in refusal(published, subject="../../robot")
    assert folder.is_dir()


def test_several_subjects_have_to_be_chosen_from(published: Path) -> None:
    assert "holds several subjects: bear_plushie, cat2; choose with data.subject" in refusal(published)


def test_a_missing_class_word_is_asked_for(folder: Path, published: Path) -> None:
    assert "data.class_word is missing" in refusal(folder, class_word=None)
    shutil.copytree(folder, published / "dataset" / "robot")
    message = refusal(published, subject="robot", class_word=None)
    assert "data.class_word is missing" in message
    assert "`robot,WORD`" in message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "is no folder; give one of pictures" in refusal(tmp_path / "nowhere")


def test_one_unreadable_picture_among_five_is_named_and_left_out(folder: Path) -> None:
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:90])
    subject = open_subject(config(folder))
    assert [picture.path.name for picture in subject.pictures] == ["0.png", "1.png", "2.png", "4.png"]
    ((name, reason),) = subject.findings.skipped
    assert name == "3.png"
    assert "truncated" in reason


def test_an_unreadable_picture_stops_where_asked_to(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    message = refusal(folder, on_error="raise")
    assert "3.png cannot be used: the file is empty" in message
    assert "data.on_error=skip" in message


def test_a_folder_of_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "robot").mkdir()
    assert "holds no picture (endings read: .bmp" in refusal(tmp_path / "robot")
    (tmp_path / "robot" / "notes.txt").write_text("mine")
    assert "1 other files and folders there" in refusal(tmp_path / "robot")
    for name in ("a.jpg", "b.png"):
        (tmp_path / "robot" / name).write_bytes(b"no picture")
    message = refusal(tmp_path / "robot")
    assert "holds no picture that can be used: 2 cannot be read (the first, a.jpg: not a picture in one" in message


def test_other_files_and_folders_are_counted(folder: Path) -> None:
    (folder / "notes.md").write_text("mine")
    (folder / "old.png").mkdir()
    (folder / "more").mkdir()
    (folder / ".DS_Store").write_bytes(b"")
    subject = open_subject(config(folder))
    assert len(subject.pictures) == 5
    assert subject.findings.ignored == ["more", "notes.md", "old.png"]


def test_a_pipe_or_a_broken_link_does_not_stop_the_others(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    subject = open_subject(config(folder))
    assert len(subject.pictures) == 5
    assert [name for name, _ in subject.findings.skipped] == ["gone.png", "pipe.png"]


def test_the_same_file_twice_is_said(folder: Path) -> None:
    shutil.copy(folder / "1.png", folder / "copy.png")
    subject = open_subject(config(folder))
    assert len(subject.pictures) == 6
    assert subject.findings.remarks == {"the same file as 1.png: it counts twice": ["copy.png"]}


def test_captions_beside_the_pictures(folder: Path) -> None:
    (folder / "0.txt").write_text("  a {token} {class}\nat home ")
    (folder / "1.txt").write_text(" \n")
    subject = open_subject(config(folder, captions=True))
    assert [picture.caption for picture in subject.pictures] == ["a {token} {class} at home", *[None] * 4]
    assert subject.findings.ignored == []
    assert subject.findings.remarks == {
        "has no caption of its own: data.prompt stands in": ["1.png", "2.png", "3.png", "4.png"]
    }


def test_captions_of_a_metadata_file(folder: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": f"ikat view {i}"} for i in range(5)] + [
        {"file_name": "9.png", "text": "x"}
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (folder / "2.txt").write_text("from the text file")
    subject = open_subject(config(folder, captions=True))
    captions = [picture.caption for picture in subject.pictures]
    assert captions == ["ikat view 0", "ikat view 1", "from the text file", "ikat view 3", "ikat view 4"]
    assert subject.findings.remarks == {
        "its caption does not name the token ikat": ["2.png"],
        "has a caption and is no picture that can be used": ["9.png"],
    }


def test_captions_that_are_not_asked_for_are_not_used_in_silence(folder: Path) -> None:
    (folder / "0.txt").write_text("a caption")
    subject = open_subject(config(folder))
    assert subject.pictures[0].caption is None
    assert subject.findings.remarks == {
        "has a caption beside it that is not used (data.captions=true uses it)": ["0.png"]
    }


def test_asking_for_captions_where_there_are_none_is_an_error(folder: Path) -> None:
    assert "data.captions=True, but no picture in" in refusal(folder, captions=True)


@pytest.mark.parametrize(
    "line", ["no json", '{"file_name": "0.png"}', '["0.png", "a"]', '{"file_name": 0, "text": "a"}']
)
def test_a_line_that_is_no_caption_is_named(folder: Path, line: str) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n' + line)
    assert "metadata.jsonl, line 2:" in refusal(folder, captions=True)


def test_a_caption_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "0.txt").write_bytes(b"caf\xe9")
    assert "0.txt is not UTF-8 text" in refusal(folder, captions=True)


def test_opening_changes_nothing_in_the_folder(folder: Path) -> None:
    before = sorted(folder.iterdir())
    open_subject(replace(config(folder), captions=False))
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_a_picture_of_8000_by_8000_is_taken(folder: Path) -> None:
    Image.new("RGB", (8000, 8000), "red").save(folder / "large.jpg")
    subject = open_subject(config(folder))
    assert (subject.pictures[-1].look.height, subject.pictures[-1].look.width) == (8000, 8000)


def test_a_picture_of_more_pixels_than_the_limit_is_left_out_unopened(folder: Path) -> None:
    header = b"P6 12000 12000 255\n"
    (folder / "bomb.ppm").write_bytes(header)
    ((name, reason),) = open_subject(config(folder)).findings.skipped
    assert name == "bomb.ppm"
    assert "12000x12000 pixels are more than the limit" in reason


def test_drawn_characters_come_by_name() -> None:
    names = subject_names("builtin:drawn-subject")
    one = open_subject(DataConfig(path=f"builtin:drawn-subject:{names[0]}"))
    other = open_subject(DataConfig(path="builtin:drawn-subject", subject=names[0]))
    assert one.class_word == other.class_word
    assert [picture.path for picture in one.pictures] == [picture.path for picture in other.pictures]
    assert "there is no such character" in refusal(Path("builtin:drawn-subject:nobody"))


@pytest.mark.shared_data
def test_the_published_subjects(shared_data: Path) -> None:
    path = str(shared_data / "dreambooth")
    subjects = [open_subject(DataConfig(path=path, subject=name)) for name in subject_names(path)]
    assert [(each.name, each.class_word, len(each.pictures)) for each in subjects] == [
        ("backpack_dog", "backpack", 5),
        ("cat2", "cat", 5),
        ("duck_toy", "toy", 4),
    ]
    assert {(picture.look.height, picture.look.width) for each in subjects for picture in each.pictures} == {(512, 512)}
