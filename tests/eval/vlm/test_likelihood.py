"""Options ranked by the model's log-likelihood, against a plain forward pass for each option alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.likelihood import predictions_by_sum, rank, require_options
from eval.vlm.scoring import score
from eval.vlm.table import Table, read_table
from llava.config import ModelConfig
from llava.model import LlavaBase, load_model
from tests.eval.vlm.tables import mmbench_rows, mme_rows, write_tsv

MMBENCH, MME = find_benchmark("MMBench_DEV_EN"), find_benchmark("MME")
ANSWER_HEAD = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def base() -> LlavaBase:
    return load_model(ModelConfig(name="builtin:drawn-llava"), template="llama3")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = mmbench_rows(5)
    rows[0] |= {"B": "there is a red circle at the top left."}  # what it was taught to say: unlikely as a sum
    return read_table(write_tsv(tmp_path_factory.mktemp("likelihood") / "table.tsv", rows), MMBENCH)


def log_probabilities(base: LlavaBase, table: Table, index: int, asked: str, option: str) -> torch.Tensor:
    """Of each token of an answer and of the token that ends it: one row, one forward pass, the template by hand."""
    [question] = [question for question in table.questions if question.index == index]
    pixels = base.image_processor(images=[table.picture(question)], return_tensors="pt")["pixel_values"]
    opening = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    head = f"{opening}{'<image>' * base.image_tokens}\n{asked}<|eot_id|>{ANSWER_HEAD}"
    before = base.tokenizer.encode(head, add_special_tokens=False)
    answer = base.tokenizer.encode(f"{option}<|eot_id|>", add_special_tokens=False)
    with torch.no_grad():
        ids = torch.tensor([before + answer])
        logits = base.llava()(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    found = logits[0, len(before) - 1 : -1].float().log_softmax(-1)
    return found[range(len(answer)), answer]


def test_scores_are_those_of_a_plain_forward_pass(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    answered = rank(base, table, MMBENCH, model="m", output=tmp_path / "p.jsonl", batch_size=3)
    for question in table.questions[:4]:
        row = answered.rows[question.index]
        asked = "\n".join(filter(None, [question.hint, question.text]))
        expected = {
            letter: log_probabilities(base, table, int(question.index), asked, text)
            for letter, text in question.options.items()
        }
        # 1e-3 nats: float32 sums of some 100 products in another order, and a batch that is padded
        for letter, values in expected.items():
            assert row["scores"]["sum"][letter] == pytest.approx(float(values.sum()), abs=1e-3)
            assert row["scores"]["mean"][letter] == pytest.approx(float(values.mean()), abs=1e-3)
        assert row["prediction"] == max(expected, key=lambda letter: float(expected[letter].mean()))
        assert row["prediction_by_sum"] == max(expected, key=lambda letter: float(expected[letter].sum()))


def test_sum_and_mean_are_two_rankings(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    answered = rank(base, table, MMBENCH, model="m", output=tmp_path / "p.jsonl", batch_size=8)
    by_sum = predictions_by_sum(answered)
    assert set(by_sum) == set(answered.predictions)
    assert any(by_sum[index] != answered.predictions[index] for index in by_sum)


def test_the_choice_does_not_depend_on_batch_or_rotation(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    one, eight = (
        rank(base, table, MMBENCH, model="m", output=tmp_path / f"{size}.jsonl", batch_size=size) for size in (1, 8)
    )
    assert one.predictions == eight.predictions
    chosen: dict[int, set[str]] = {}
    for question in table.questions:
        if question.group == 0:  # the row that was changed has other options than its rotations
            continue
        text = question.options[one.predictions[question.index]]
        chosen.setdefault(int(question.group), set()).add(text)
    assert all(len(texts) == 1 for texts in chosen.values()), chosen


def test_letters_are_scored_like_any_answer(base: LlavaBase, table: Table, tmp_path: Path) -> None:
    answered = rank(base, table, MMBENCH, model="m", output=tmp_path / "p.jsonl", batch_size=8)
    scores = score(MMBENCH, table, answered.predictions)
    right = [
        all(answered.predictions[q.index] == q.answer for q in table.questions if q.group == group)
        for group in {q.group for q in table.questions}
    ]
    assert scores.metrics["dev"]["overall"] == pytest.approx(100 * sum(right) / len(right))


def test_yes_and_no_are_ranked_for_mme(base: LlavaBase, tmp_path: Path) -> None:
    table = read_table(write_tsv(tmp_path / "mme.tsv", mme_rows(1, categories=["color", "count"])), MME)
    answered = rank(base, table, MME, model="m", output=tmp_path / "p.jsonl", batch_size=4)
    assert {*answered.predictions.values()} <= {"Yes", "No"}
    row = json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(row["scores"]["mean"]) == {"Yes", "No"}


@pytest.mark.parametrize("name", ["TextVQA_VAL", "MMVet", "MathVista_MINI"])
def test_free_answers_cannot_be_ranked(name: str) -> None:
    with pytest.raises(UserError, match=rf"--answer=likelihood ranks given options, and {name}"):
        require_options(find_benchmark(name))
