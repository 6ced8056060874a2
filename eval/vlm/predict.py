"""Greedy answers of a LLaVA model to the questions of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.vlm.answering import Answered, Asked, answer_all
from eval.vlm.benchmarks import Benchmark
from eval.vlm.prompts import prompt_of
from eval.vlm.question import Question
from eval.vlm.table import Table
from llava.conversation import Turn
from llava.generation_shared import generate_shared
from llava.model_base import LlavaBase

# VLMEvalKit's wrapper of XTuner's LLaVA, with which the paper was measured, gives choices and yes or no five tokens.
# Its other wrappers give everything 2048, which does not change the answer of a model that stops by itself.
MAX_NEW_TOKENS = {"choice": 5, "circular": 5, "yes_no": 5, "vqa": 512, "judged": 512}


def predict(
    base: LlavaBase,
    table: Table,
    benchmark: Benchmark,
    *,
    model: str,
    output: Path,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
) -> Answered:
    """Let a model answer every question of a table, token by token the likeliest; a collective call.

    Args:
        base: the model.
        table: the questions.
        benchmark: what they are put as.
        model: hash of the weights, from `llava.model_open.identity`.
        output: JSON lines of `{"index", "prediction"}`, and `"cut": true` of an answer that was not at its end at the
            limit; what the same model has answered there is not asked again.
        batch_size: questions at once in one process.
        max_new_tokens: an answer is cut there; default: that of the benchmark's family, `MAX_NEW_TOKENS`.

    Raises:
        UserError: the output cannot be written, or a batch does not fit into memory.
    """
    limit = max_new_tokens or MAX_NEW_TOKENS[benchmark.family]
    key = f"generate {model} {base.template} {base.precision} {limit}"
    speaker = Speaker(base, benchmark, limit)
    return answer_all(speaker, table, key=key, output=output, batch_size=batch_size)


class Speaker:
    """Answers in the model's own words.

    Args:
        base: the model.
        benchmark: how a question is put.
        max_new_tokens: an answer is cut there.
    """

    def __init__(self, base: LlavaBase, benchmark: Benchmark, max_new_tokens: int) -> None:
        self._base, self._benchmark, self._max_new_tokens = base, benchmark, max_new_tokens
        self.description = benchmark.name

    def prompt(self, question: Question) -> list[int]:
        """The token ids up to where the answer begins, the picture's among them."""
        return self._base.prompt([Turn("human", prompt_of(question, self._benchmark), image=True)])

    def answer(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        """What the model says to one batch."""
        prompts = [list(map(int, asked.prompt)) for asked in batch]
        pictures, keys = [asked.picture for asked in batch], [asked.key for asked in batch]
        answers = generate_shared(self._base, prompts, pictures, keys, max_new_tokens=self._max_new_tokens)
        return [{"prediction": said.text, **({"cut": True} if said.cut else {})} for said in answers]
