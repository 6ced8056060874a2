"""What a model is asked: VLMEvalKit's words for LLaVA models (DESIGN 6.2)."""

from __future__ import annotations

import re

from eval.vlm.benchmarks import Benchmark
from eval.vlm.question import Question

LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
SHORT = "Answer the question using a single word or phrase."
_CHINESE = re.compile("[\u4e00-\u9fff]")


def prompt_of(question: Question, benchmark: Benchmark) -> str:
    """The words that stand beside the picture.

    Multiple choice: hint, question, one line per option, and the wish for a letter, in Chinese where any of the text
    is. TextVQA: the question and the wish for a few words. MME, MathVista and MM-Vet: the question as it is.
    """
    if benchmark.family in ("choice", "circular"):
        options = (f"{letter}. {text}" for letter, text in question.options.items())
        asked = "\n".join([*([question.hint] if question.hint else []), question.text, *options])
        return f"{asked}\n{LETTER_CN if _CHINESE.search(asked) else LETTER}"
    if benchmark.family == "vqa":
        return f"{question.text}\n{SHORT}"
    return question.text
