"""Questions that a run shows with its answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from llava import samples as module
from llava.config import DataConfig, ModelConfig
from llava.data import LlavaData, open_data
from llava.demo.draw import write_sets
from llava.model import LlavaBase, load_model
from llava.samples import SHOWN, answered_questions, is_right
from tests.llava.tiny import TinyLlava


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Red.", "red", True),
        ("a red circle", "A red circle.", True),
        ("blue", "red", False),
        ("it is red", "red", False),
        ("a small red circle on the left", "a red circle stands there", None),
        ("", "", True),
        ("x", "", None),
    ],
)
def test_only_short_answers_are_judged(answer: str, expected: str, right: bool | None) -> None:
    assert is_right(answer, expected) is right


@pytest.fixture(scope="module")
def base(tiny_llava: TinyLlava) -> LlavaBase:
    return load_model(ModelConfig(name=str(tiny_llava.whole)), template="llama3")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn questions, of which the first two have lost their picture, and ten of another wording."""
    folder = tmp_path_factory.mktemp("drawn")
    write_sets(folder, train=12, test=5, seed=5)
    train = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    for sample in train[:2]:
        del sample["image"]
        sample["conversations"][0]["value"] = "How are you?"
    (folder / "train.json").write_text(json.dumps(train), encoding="utf-8")
    return folder


def opened(base: LlavaBase, drawn: Path, held: bool) -> LlavaData:
    validation = str(drawn / "test.json") if held else None
    config = DataConfig(
        path=str(drawn / "train.json"), validation_path=validation, template="llama3", cache_dir=str(drawn / "cache")
    )
    return open_data(config, base.tokenizer, image_tokens=base.image_tokens, image_token_id=base.image_token_id)


@pytest.mark.parametrize("held", [True, False])
def test_questions_come_from_the_validation_where_there_is_one_and_the_page_says_which(
    held: bool, base: LlavaBase, drawn: Path
) -> None:
    data = opened(base, drawn, held)
    found = answered_questions(base, nn.Identity(), data, seed=1)
    source = json.loads((drawn / ("test.json" if held else "train.json")).read_text(encoding="utf-8"))
    known = {
        (turns[0]["value"].replace("<image>", "").strip(), turns[1]["value"])
        for turns in (sample["conversations"] for sample in source)
    }
    assert len(found.items) == min(SHOWN, len(source))
    assert {(item.question, item.expected) for item in found.items} <= known
    assert ("the validation conversations" in found.about) == held
    assert ("the training conversations: they were seen" in found.about) != held
    for item in found.items:
        assert isinstance(item.picture, Image.Image) == (item.question != "How are you?")


def test_a_picture_that_has_gone_since_costs_its_question_alone(
    base: LlavaBase, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(base, drawn, held=True)
    true, gone = module.load_picture, str(data.validation.picture(0)) if data.validation else ""

    def load_picture(root: str, name: str) -> Image.Image:
        if name == gone:
            raise module.DecodeError("it cannot be read")
        return true(root, name)

    monkeypatch.setattr(module, "load_picture", load_picture)
    found = answered_questions(base, nn.Identity(), data, seed=1)
    assert len(found.items) == 4
    assert "it cannot be read" in capsys.readouterr().err


def test_a_question_that_is_longer_than_any_that_was_trained_on_is_passed_over(base: LlavaBase, drawn: Path) -> None:
    data = opened(base, drawn, held=True)
    assert data.validation is not None
    data.validation.coding = replace(data.validation.coding, max_text_tokens=1 - base.image_tokens)
    assert answered_questions(base, nn.Identity(), data, seed=1).items == []
