"""Small benchmark tables with drawn pictures, in VLMEvalKit's form, written by a writer that is not the product's."""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Row = dict[str, Any]
ROTATION = 1_000_000
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
SHAPES = ("circle", "square")
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()


def drawn(colour: str, shape: str, *, kind: str = "PNG", size: tuple[int, int] = (40, 32), seed: int = 0) -> bytes:
    """A picture file: one shape of one colour on grey, a little elsewhere for every seed."""
    image = Image.new("RGB", size, "grey")
    left, top = random.Random(seed).randrange(4, 12), random.Random(seed + 1).randrange(2, 8)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)((left, top, left + 20, top + 20), fill=colour)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """What stands in the cell of a picture."""
    return base64.b64encode(data).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as `pandas.to_csv(sep="\\t", index=False)` does; a key that a row lacks is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def choice_rows(count: int = 6, *, options: int = 4, seed: int = 0) -> list[Row]:
    """Questions about a drawn colour, each with its picture and the right option in a place of its own."""
    dice, rows = random.Random(seed), []
    for index in range(count):
        colours = dice.sample(COLOURS, options)
        right = dice.randrange(options)
        rows.append(
            {
                "index": index,
                "question": f"Which colour is the {SHAPES[index % 2]}?",
                **dict(zip("ABCDEF", colours, strict=False)),
                "answer": "ABCDEF"[right],
                "category": SHAPES[index % 2],
                "image": base64_of(drawn(colours[right], SHAPES[index % 2], seed=seed + index)),
            }
        )
    return rows


def rotated(row: Row, rotation: int) -> Row:
    """A question with its options moved on by some places, the picture a reference to the unrotated row."""
    letters = [letter for letter in "ABCDEF" if row.get(letter, "") != ""]
    count = len(letters)
    texts = [row[letters[(at - rotation) % count]] for at in range(count)]
    answer = letters[(letters.index(row["answer"]) + rotation) % count]
    image = row["image"] if rotation == 0 else str(row["index"])
    return {
        **row,
        **dict(zip(letters, texts, strict=True)),
        "answer": answer,
        "index": row["index"] + rotation * ROTATION,
        "image": image,
    }


def mmbench_rows(
    questions: int = 6, *, seed: int = 0, language: str = "en", splits: Sequence[str] = ("dev",)
) -> list[Row]:
    """All rotations of questions with four, three or two options, some with a hint, in MMBench's columns."""
    bases = []
    for index in range(questions):
        base = choice_rows(1, options=4 - index % 3, seed=seed + index)[0]
        base |= {
            "index": index,
            "hint": "The picture is drawn." if index % 2 else "",
            "category": f"colour of {SHAPES[index % 2]}",
            "l2-category": ("coarse_perception", "attribute_reasoning")[index // 2 % 2],
            "split": splits[index % len(splits)],
        }
        if language == "cn":
            base |= {"question": "图中的形状是什么颜色？", "hint": "图片是画出来的。" if index % 2 else ""}
        # options beyond a question's own are empty cells
        bases.append({key: base.get(key, "") for key in ("index", "question", "hint", *"ABCD", *list(base))})
    most = max(sum(base[letter] != "" for letter in "ABCD") for base in bases)
    return [
        rotated(base, rotation)
        for rotation in range(most)
        for base in bases
        if rotation < sum(base[letter] != "" for letter in "ABCD")
    ]


def mme_rows(pictures: int = 2, *, categories: Sequence[str] = (*PERCEPTION, *COGNITION), seed: int = 0) -> list[Row]:
    """Two questions about each picture of each category, the first answered by Yes and the second by No."""
    rows: list[Row] = []
    for at, category in enumerate(categories):
        for number in range(pictures):
            colour, other = random.Random(seed + 100 * at + number).sample(COLOURS, 2)
            image = base64_of(drawn(colour, "circle", kind="JPEG", seed=seed + 100 * at + number))
            for asked, answer in ((colour, "Yes"), (other, "No")):
                rows.append(
                    {
                        "index": len(rows),
                        "image": image,
                        "question": f"Is the circle {asked}? Please answer yes or no.",
                        "answer": answer,
                        "category": category,
                        "image_path": f"{category}/{number}.jpg",
                    }
                )
    return rows


def textvqa_rows(count: int = 5, *, seed: int = 0) -> list[Row]:
    """Questions with the answers of ten people, of whom most agree."""
    rows = []
    for index in range(count):
        dice = random.Random(seed + index)
        colour, other = dice.sample(COLOURS, 2)
        agree = dice.randrange(2, 11)
        rows.append(
            {
                "index": index,
                "question": "What colour is the square?",
                "answer": str([colour] * agree + [other] * (10 - agree)),
                "image": base64_of(drawn(colour, "square", seed=seed + index)),
            }
        )
    return rows


def mathvista_rows() -> list[Row]:
    """One multiple-choice question and one with a number for its answer."""
    common = {"task": "figure question answering", "skills": "['algebraic reasoning']", "precision": "", "unit": ""}
    image = base64_of(drawn("red", "circle"))
    return [
        {
            "index": 1,
            "question": "Question: How many circles?\nChoices:\n(A) 1\n(B) 2",
            "question_type": "multi_choice",
            "answer_type": "text",
            "choices": "['1', '2']",
            "answer": "1",
            "answer_option": "A",
            **common,
            "image": image,
        },
        {
            "index": 2,
            "question": "How many corners has a square?",
            "question_type": "free_form",
            "answer_type": "integer",
            "choices": "[]",
            "answer": "4",
            "answer_option": "",
            **common,
            "image": image,
        },
    ]


def mmvet_rows() -> list[Row]:
    """Two open questions, one with alternatives and one with several things to say."""
    image = base64_of(drawn("blue", "square"))
    return [
        {"index": 0, "image": image, "question": "Which colour?", "answer": "blue<OR>navy", "category": "rec"},
        {"index": 1, "image": image, "question": "What is it?", "answer": "a square<AND>blue", "category": "rec,ocr"},
    ]


def write_mmbench(path: Path, questions: int = 6, **options: Any) -> Path:
    """A table of `mmbench_rows`."""
    return write_tsv(path, mmbench_rows(questions, **options))


def write_choice(path: Path, count: int = 6, **options: Any) -> Path:
    """A table of `choice_rows`, as SEED-Bench, AI2D and ScienceQA have it."""
    return write_tsv(path, choice_rows(count, **options))


def write_mme(path: Path, pictures: int = 2, **options: Any) -> Path:
    """A table of `mme_rows`."""
    return write_tsv(path, mme_rows(pictures, **options))


def write_textvqa(path: Path, count: int = 5, **options: Any) -> Path:
    """A table of `textvqa_rows`."""
    return write_tsv(path, textvqa_rows(count, **options))


def right_answers(rows: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """What an oracle says to every row of a choice or yes/no table."""
    return {row["index"]: row["answer"] for row in rows}
