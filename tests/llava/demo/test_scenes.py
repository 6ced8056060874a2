"""The drawn questions: one right answer each, and nothing of the test's pairs anywhere else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from llava.demo import data_file, model_folder
from llava.demo.draw import SIDE, draw, questions, write_sets
from llava.demo.pretrain import WORDINGS, Drawings
from llava.demo.scenes import COLOURS, COUNTS, HELD_OUT, KINDS, SHAPES, Thing, ask, caption, random_scene


def pairs(scene: tuple[Thing, ...]) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene}


def test_training_never_shows_a_held_out_pair_and_every_test_scene_has_one() -> None:
    assert not any(pairs(scene) & HELD_OUT for scene, _ in questions(300, seed=1, held_out=False))
    for scene, question in questions(300, seed=2, held_out=True):
        found = pairs(scene) & HELD_OUT
        assert len(found) == 1
        colour, shape = next(iter(found))
        told = {"colour": shape, "shape": colour, "position": f"{colour} {shape}"}
        assert question.kind == "count" or told[question.kind] in question.text


def test_the_base_was_never_shown_a_held_out_pair() -> None:
    assert not any(pairs(scene) & HELD_OUT for scene in Drawings(200, seed=1).scenes)


def test_every_colour_and_shape_is_met_in_training() -> None:
    seen = set().union(*(pairs(scene) for scene, _ in questions(400, seed=1, held_out=False)))
    assert {colour for colour, _ in seen} == set(COLOURS)
    assert {shape for _, shape in seen} == set(SHAPES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_has_four_different_options_and_the_scene_tells_its_answer(kind: str) -> None:
    rng = np.random.default_rng(3)
    asked = 0
    for _ in range(200):
        scene = random_scene(rng)
        question = ask(scene, kind, rng)
        if question is None:
            continue
        asked += 1
        assert len(set(question.options)) == 4
        assert question.answer in question.options
        if kind == "count":
            assert question.answer == COUNTS[len(scene) - 1]
            continue
        attribute = {"colour": "colour", "shape": "shape", "position": "place"}[kind]
        fitting = {
            getattr(thing, attribute)
            for thing in scene
            if all(word in question.text for word in {thing.colour, thing.shape} - {question.answer})
        }
        assert fitting == {question.answer}
    assert asked > 50


def test_the_right_option_stands_in_every_place() -> None:
    places = [question.options.index(question.answer) for _, question in questions(400, seed=4, held_out=True)]
    counts = np.bincount(places, minlength=4)
    assert counts.min() > 60  # 100 each on average


def test_a_thing_is_drawn_where_and_how_it_is_told() -> None:
    rng = np.random.default_rng(0)
    empty = np.asarray(draw((), rng), dtype=float)
    assert empty.std() < 20
    picture = np.asarray(draw((Thing("top right", "red", "circle"),), rng), dtype=float)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90)
    rows, columns = np.nonzero(red)
    assert red.sum() > 100
    assert rows.max() < SIDE // 2
    assert columns.min() >= SIDE // 2


def test_captions_name_everything() -> None:
    scene = (Thing("top left", "orange", "star"), Thing("bottom right", "blue", "ring"))
    assert caption(scene) == "there is an orange star at the top left and a blue ring at the bottom right."
    assert all("star" in tell(scene) and "ring" in tell(scene) for tell in WORDINGS.values())


def test_the_written_files_are_llavas_own_form(tmp_path: Path) -> None:
    write_sets(tmp_path, train=6, test=5, seed=1)
    samples = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert len(samples) == 6
    for sample in samples:
        assert Image.open(tmp_path / sample["image"]).size == (SIDE, SIDE)
        human, gpt = sample["conversations"]
        assert human["from"] == "human"
        assert human["value"].startswith("<image>\n")
        assert gpt["from"] == "gpt"
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    test = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))
    assert [each["answer"] for each in asked] == [sample["conversations"][1]["value"] for sample in test]


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_sets(tmp_path / folder, train=3, test=3, seed=9)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 3 + 3 + 4
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_unknown_builtins_are_errors_that_name_known_ones() -> None:
    with pytest.raises(UserError, match="drawn-llava"):
        model_folder("builtin:drawn-lava")
    with pytest.raises(UserError, match="drawn-questions"):
        data_file("builtin:drawn-question")
