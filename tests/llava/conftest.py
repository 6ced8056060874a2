from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.llava.tiny import TinyLlava, make_tokenizer
from tests.llava.tiny import tiny_llava as write_tiny_llava


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """About 400 byte-level tokens, the special tokens of every template, `<image>` and `<pad>`."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> TinyLlava:
    """The folders of a tiny LLaVA: its parts and the whole; not to be written to."""
    return write_tiny_llava(Path(tmp_path_factory.mktemp("tiny_llava")))
