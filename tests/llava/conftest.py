from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llava.model import load_model, prepare_training
from tests.llava.tiny import TinyLlava, disturb, make_tokenizer, parts_of, recipe_of, write_run
from tests.llava.tiny import tiny_llava as write_tiny_llava


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """About 400 byte-level tokens, the special tokens of every template, `<image>` and `<pad>`."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> TinyLlava:
    """The folders of a tiny LLaVA: its parts and the whole; not to be written to."""
    return write_tiny_llava(Path(tmp_path_factory.mktemp("tiny_llava")))


@pytest.fixture(scope="module")
def run(tiny_llava: TinyLlava, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model; not to be changed by a test."""
    recipe = recipe_of(parts_of(tiny_llava))
    base = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    disturb(base.model)
    return write_run(base, recipe, tmp_path_factory.mktemp("finished") / "run")
