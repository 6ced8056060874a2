"""Circular evaluation (MMBench): a question counts only if it is answered right under every rotation of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.words import counted, listed
from eval.vlm.question import Index, Question, groups_of
from eval.vlm.scoring.abilities import per_split
from eval.vlm.scoring.choice import row_of
from eval.vlm.scoring.scores import Scores


def score_circular(questions: Sequence[Question], predictions: Mapping[Index, str]) -> Scores:
    """Accuracy over questions, each of which stands for all its rotations.

    Where rotations are missing a question is judged by those that are there, and one without its unrotated row is left
    out: VLMEvalKit's way, to which `eval.vlm.scoring.score` only comes when it is told to.

    Args:
        questions: rows of the table, each with a prediction.
        predictions: index -> the model's answer.

    Returns:
        metrics `{split: {"overall", "category", "l2-category"}}`; split and abilities are those of the unrotated row.
    """
    rows = {question.index: row_of(question, predictions[question.index]) for question in questions}
    hits, baseless = [], []
    for group, members in groups_of(questions).items():
        right = all(rows[member.index]["hit"] for member in members)
        base = next((member for member in members if member.index == group), None)
        for member in members:
            rows[member.index] |= {"group": group, "all_rotations_hit": right}
        if base is None:
            baseless.append(group)
        else:
            hits.append((base, right))
    notes = []
    if baseless:
        notes = [f"left out without their unrotated rows: {counted(len(baseless), 'question')}: {listed(baseless)}"]
    return Scores(per_split(hits), list(rows.values()), len(hits), notes)
