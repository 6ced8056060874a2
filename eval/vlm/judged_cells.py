"""What the cells of MathVista's and MM-Vet's tables say beside question and answer; Python literals, never run."""

from __future__ import annotations

import ast
import string
from typing import Any

from eval.vlm.benchmarks import Benchmark
from eval.vlm.question import Question

MULTIPLE_CHOICE = "multi_choice"


def literal(cell: str) -> Any:
    """The Python literal in a cell; None where there is none."""
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def options_of(question: Question) -> dict[str, str]:
    """MathVista's choices by letter; empty where the question has none."""
    found = literal(question.fields["choices"])
    return dict(zip(string.ascii_uppercase, map(str, found), strict=False)) if isinstance(found, list) else {}


def skills_of(question: Question) -> list[str]:
    """MathVista's skills: a list, or one word as it stands."""
    cell = question.fields["skills"]
    found = literal(cell)
    return [str(skill) for skill in found] if isinstance(found, list) else [cell]


def is_choice(question: Question) -> bool:
    """Whether a MathVista question is multiple choice."""
    return question.fields["question_type"] == MULTIPLE_CHOICE


def problem_of(question: Question, benchmark: Benchmark) -> str | None:
    """Why a row could not be judged; None where it can."""
    if benchmark.name == "MathVista_MINI":
        if is_choice(question) and question.fields["answer_option"] not in options_of(question):
            return "answer_option names none of the choices, which must be a Python list"
        kinds: dict[str, Any] = {"integer": int, "float": float}
        kind = kinds.get(question.fields["answer_type"])
        if not is_choice(question) and kind is not None:
            try:
                kind(question.answer)
            except ValueError:
                return f"the answer is not what its answer_type says ({question.fields['answer_type']})"
    elif not question.category.strip():
        return "there is no category"
    return None if question.answer.strip() else "there is no answer"
