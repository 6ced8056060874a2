from typing import Any

import pytest

from llava.conversation import Turn
from llava.data.rules import RULES, TEXT_ONLY, Defect, normalise, source_of, turns_of


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def row(*turns: Any, image: Any = "coco/train2017/1.jpg", **more: Any) -> dict[str, Any]:
    found = {"id": "7", "image": image, "conversations": list(turns), **more}
    return {key: value for key, value in found.items() if value is not None}


GOOD = (human("<image>\nWhat?"), gpt("A cat."))


def test_sound_row_is_taken_as_it_is() -> None:
    found, applied = normalise(row(*GOOD, human("And?"), gpt(" No. \n")), 1)
    assert applied == []
    assert (found.id, found.image, found.image_turn) == ("7", "coco/train2017/1.jpg", 0)
    assert found.texts == ["What?", "A cat.", "And?", " No. \n"]
    assert turns_of(found.texts, found.image_turn)[:2] == [Turn("human", "What?", True), Turn("gpt", "A cat.")]
    assert found.source == "coco"


@pytest.mark.parametrize(
    ("given", "texts", "image_turn", "rules"),
    [
        (row(gpt("Hello"), gpt("there"), *GOOD), ["What?", "A cat."], 0, ["leading_answers_dropped"]),
        (row(*GOOD, human("And?")), ["What?", "A cat."], 0, ["unanswered_questions_dropped"]),
        (row(*GOOD, human("And?"), human("?")), ["What?", "A cat."], 0, ["unanswered_questions_dropped"]),
        (row(human("What?\n<image>"), gpt("A cat.")), ["What?", "A cat."], 0, ["image_mark_moved"]),
        (row(human(" a <image> b "), gpt("c")), ["a  b", "c"], 0, ["image_mark_moved"]),
        (row(human("<image>\na <image>"), gpt("c")), ["a", "c"], 0, ["image_mark_repeated"]),
        (row(human("<image>"), gpt("c")), ["", "c"], 0, []),
        (row(human("What?"), gpt("c")), ["What?", "c"], 0, ["image_mark_added"]),
        (row(human("a"), gpt("b"), human("<image>\nc"), gpt("d")), ["a", "b", "c", "d"], 2, ["image_mark_later"]),
        (
            row(human("Write <image>"), gpt("<image>"), image=None),
            ["Write <image>", "<image>"],
            -1,
            ["image_mark_is_text"],
        ),
        (row(human("a"), gpt("b"), image=None), ["a", "b"], -1, []),
    ],
)
def test_rule_mends_and_is_counted(given: dict, texts: list[str], image_turn: int, rules: list[str]) -> None:
    found, applied = normalise(given, 1)
    assert (found.texts, found.image_turn, applied) == (texts, image_turn, rules)
    assert set(applied) <= set(RULES)


@pytest.mark.parametrize("given", [None, "", True, ["a"], {"a": 1}])
def test_row_without_an_id_is_named_by_its_line(given: Any) -> None:
    found, applied = normalise({**row(*GOOD), "id": given}, 31)
    assert (found.id, applied) == ("line 31", ["id_missing"])


@pytest.mark.parametrize(("given", "name"), [(5, "5"), (0, "0"), ("000000033471", "000000033471"), (1.5, "1.5")])
def test_ids_are_text_or_numbers(given: Any, name: str) -> None:
    assert normalise({**row(*GOOD), "id": given}, 1)[0].id == name


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "the row is a list"),
        ("text", "the row is a text"),
        (None, "the row is null"),
        (3, "the row is a number"),
        ({"id": 1}, "conversations is missing"),
        (row(conversations={}), "conversations is an object, not a list"),
        (row(), "no answer behind a question"),
        (row("text"), "a turn is no object"),
        (row({"from": "human"}), "a turn is no object"),
        (row({"from": "system", "value": "x"}, *GOOD), 'neither "human" nor "gpt"'),
        (row({"from": ["human"], "value": "x"}), 'neither "human" nor "gpt"'),
        (row(human(3), gpt("x")), "a turn's value is a number, not text"),
        (row(human(None), gpt("x")), "a turn's value is null"),
        (row(human("a")), "no answer behind a question"),
        (row(gpt("a")), "no answer behind a question"),
        (row(gpt("a"), human("b")), "no answer behind a question"),
        (row(*GOOD, gpt("b")), "do not take turns"),
        (row(human("a"), *GOOD), "do not take turns"),
        (row(human("<image>"), gpt("")), "an answer is empty"),
        (row(human("<image>"), gpt(" \n")), "an answer is empty"),
        (row(human(""), gpt("a"), image=None), "a question is empty"),
        (row(*GOOD, human(" "), gpt("a")), "a question is empty"),
        (row(human("a"), gpt("<image>")), "<image> stands in an answer"),
        (row(*GOOD, human("<image> b"), gpt("c")), "<image> stands in several turns"),
        (row(*GOOD, image=["a.jpg", "b.jpg"]), r"image is a list, not a path \(one picture each\)"),
        (row(*GOOD, image=3), "image is a number, not a path$"),
        (row(*GOOD, image=""), "image is no path"),
        (row(*GOOD, image="a\0b.jpg"), "image is no path"),
        (row(human("\ud800"), gpt("x"), image=None), "half a character"),
        (row(*GOOD, image="\udcff.jpg"), "half a character"),
    ],
)
def test_defect_has_a_reason(given: Any, reason: str) -> None:
    with pytest.raises(Defect, match=reason):
        normalise(given, 1)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a.jpg", "coco/../../a.jpg", "~/a.jpg", "C:\\a.jpg", "\\\\host\\a", "//host/a", "..\\a", "a/.."],
)
def test_path_out_of_the_image_root_is_refused(path: str) -> None:
    with pytest.raises(Defect, match="leads out of the image root"):
        normalise(row(*GOOD, image=path), 1)


@pytest.mark.parametrize("path", ["http://host/x.jpg", "file:///etc/passwd", "data:image/png;base64,AA"])
def test_address_is_refused(path: str) -> None:
    with pytest.raises(Defect, match="address on the web"):
        normalise(row(*GOOD, image=path), 1)


def test_defect_names_the_row() -> None:
    with pytest.raises(Defect) as caught:
        normalise(row(human("a"), id="abc"), 4)
    assert caught.value.row_id == "abc"
    with pytest.raises(Defect) as caught:
        normalise(3, 4)
    assert caught.value.row_id == "line 4"


def test_source_is_the_first_folder() -> None:
    names = {"ocr_vqa/images/1.jpg": "ocr_vqa", "1.jpg": ".", None: TEXT_ONLY}
    assert {name: source_of(name) for name in names} == names
    assert normalise(row(*GOOD, image="./coco//x.jpg"), 1)[0].image == "coco/x.jpg"
