"""MM-Vet: a judge grades every answer from 0 to 1 in tenths against the ground truth (Yu et al. 2024, section 3.2)."""

from __future__ import annotations

import re

from eval.vlm.question import Question

# The six capabilities; a question asks for one or several of them.
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_PROMPT = """You grade a model's answer to a question about a picture against the ground truth.
The grade is one of 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0: 0.0 is entirely wrong, 1.0 entirely right,
and an answer that has a part of what is asked for gets that part.
Where the ground truth has <AND>, every element must be in the answer; where it has <OR>, any one of them is enough.
Judge the content, not the style and not the length. Only the ground truth decides what is right.

For example, with the ground truth "red <AND> blue" the answer "it is red" is graded 0.5, "red and blue" 1.0, and
"green" 0.0; with "red <OR> crimson" the answer "it is red" is graded 1.0.

[question]
{question}
[end of question]
[ground truth]
{truth}
[end of ground truth]
[answer]
{answer}
[end of answer]

Reply with the grade alone, a number. The grade:"""


def prompt_of(question: Question, answer: str) -> str:
    """What the judge is asked about one answer."""
    truth = re.sub(r"\s*<(AND|OR)>\s*", r" <\1> ", question.answer)
    return _PROMPT.format(question=question.text, truth=truth, answer=answer)


def read_grade(text: str) -> float | None:
    """A number from 0 to 1 and nothing else; None for all other replies."""
    try:
        grade = float(text)
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None  # NaN is not


def capabilities_of(question: Question) -> list[str]:
    """What a question asks for, in the order of `CAPABILITIES`."""
    named = {name.strip() for name in question.category.split(",")}
    return [name for name in CAPABILITIES if name in named]
