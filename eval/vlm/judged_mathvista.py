"""MathVista: a judge copies the final answer out of the response, rules compare it (Lu et al. 2024, section 3).

What the rules can settle by themselves is not put to the judge, as VLMEvalKit does: a response that names a choice,
and one that is the right number and nothing else.
"""

from __future__ import annotations

from eval.vlm.judged_cells import is_choice, literal, options_of
from eval.vlm.question import Question
from eval.vlm.scoring.letters import REFUSALS, extract_choice

_KINDS = {
    "integer": "a whole number",
    "float": "a decimal number",
    "list": "a list in Python's form",
    "text": "a word or a short phrase",
}
_PROMPT = """You read the final answer out of a model's response to a question about a picture.
Do not solve the question and do not correct the response: copy what it says.
Expected is {kind}. Reply with that alone: no words around it, no unit, no explanation.
If the response does not commit itself to an answer, reply with the word none.

Two examples of such replies: where a whole number is expected, "there are seven of them, so 7 cm" gives 7; where the
letter of a choice is expected, "it must be the second one, (B) 40 degrees" gives B.

[question]
{question}
[end of question]
[response]
{response}
[end of response]

The final answer in the response:"""


def prompt_of(question: Question, response: str) -> str:
    """What the judge is asked about one response."""
    kind = "the letter of a choice" if is_choice(question) else _KINDS.get(question.fields["answer_type"], "a phrase")
    return _PROMPT.format(kind=kind, question=question.text, response=response)


def read_extraction(text: str) -> str | None:
    """The judge's answer, which may be anything but nothing."""
    return text or None


def is_settled(question: Question, response: str) -> bool:
    """Whether the rules alone say if a response is right."""
    if is_choice(question):
        refused = any(refusal in response for refusal in REFUSALS)
        return refused or extract_choice(response, options_of(question)) is not None
    return is_right(question, response)


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer, as the judge has extracted it or as the model gave it, is the right one.

    A choice by its letter or its text, a whole number and a decimal by their value, all else letter by letter; lists by
    their items.
    """
    if is_choice(question):
        return extract_choice(answer, options_of(question)) == question.fields["answer_option"]
    kind = question.fields["answer_type"]
    if kind in ("integer", "float"):
        convert = int if kind == "integer" else float
        try:
            return convert(answer) == convert(question.answer)
        except ValueError:
            return False
    items = literal(answer)
    return answer.strip() == question.answer.strip() or (items is not None and items == literal(question.answer))
