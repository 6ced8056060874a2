"""What a model is asked; the expectations are VLMEvalKit's words for LLaVA."""

import pytest

from eval.vlm.benchmarks import find_benchmark
from eval.vlm.prompts import prompt_of
from eval.vlm.question import Question


def ask(name: str, **parts: object) -> str:
    return prompt_of(Question(index=0, line=2, **parts), find_benchmark(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["MMBench_DEV_EN", "SEEDBench_IMG", "AI2D_TEST", "ScienceQA_TEST"])
def test_multiple_choice_lists_the_options_and_asks_for_a_letter(name: str) -> None:
    assert ask(name, text="Which?", options={"A": "cat", "B": "dog"}) == (
        "Which?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )


def test_a_hint_stands_before_the_question() -> None:
    assert ask("ScienceQA_TEST", text="Which?", hint="Look.", options={"A": "x", "B": "y"}).startswith(
        "Look.\nWhich?\n"
    )


@pytest.mark.parametrize(
    "parts",
    [
        {"text": "哪个？", "options": {"A": "x", "B": "y"}},
        {"text": "Which?", "options": {"A": "猫", "B": "y"}},
        {"text": "Which?", "hint": "看", "options": {"A": "x", "B": "y"}},
    ],
)
def test_chinese_anywhere_in_the_text_asks_in_chinese(parts: dict[str, object]) -> None:
    assert ask("MMBench_DEV_CN", **parts).splitlines()[-1] == "请直接回答选项字母。"


def test_a_chinese_table_with_an_english_question_asks_in_english() -> None:
    # VLMEvalKit looks at the text, not at the table's name
    assert ask("MMBench_DEV_CN", text="Which?", options={"A": "x", "B": "y"}).endswith("choices directly.")


def test_fullwidth_punctuation_alone_is_not_chinese() -> None:
    assert ask("MMBench_DEV_CN", text="Which？（x）", options={"A": "x", "B": "y"}).endswith("choices directly.")


def test_textvqa_asks_for_a_few_words() -> None:
    assert ask("TextVQA_VAL", text="What is written?") == (
        "What is written?\nAnswer the question using a single word or phrase."
    )


@pytest.mark.parametrize("name", ["MME", "MathVista_MINI", "MMVet"])
def test_the_others_ask_the_question_as_it_is(name: str) -> None:
    assert ask(name, text="Is it red? Please answer yes or no.", hint="unused") == "Is it red? Please answer yes or no."
