"""What VLMEvalKit gets wrong, shown live: each defect that `docs/evaluation.md` lists, and what this suite does.

    python benchmarks/vlm_defects.py --vlmeval-root VLMEvalKit

Every line is an experiment on a drawn table: it calls VLMEvalKit's own functions and says what came out. Nothing is
downloaded: the one download that it would begin is caught. Exit status 1 where a defect is not there any more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlm_awkward import ROTATION, Row, choice_rows, circular_rows, mmvet_rows, picture, yes_no_rows
from vlm_scores import dataset_of, result_file, write_table

from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import main_figure, score
from eval.vlm.table import read_table

COLOURS = [("red", "green", "blue", "yellow")]
CATEGORIES = ("OCR", "count")
Shown = tuple[str, str, bool]  # what VLMEvalKit does, what this suite does, whether the defect is there


def main(argv: Sequence[str] | None = None) -> int:
    """Show them all; exit status 1 where one is gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlmeval-root", type=Path, required=True, help="checkout of VLMEvalKit")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(options.vlmeval_root))
    shown = {}
    for what, defect in DEFECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"LMUData": folder, "PRED_FORMAT": "tsv"}
            shown[what] = defect(Path(folder))
    print("| defect | VLMEvalKit | this suite |\n|---|---|---|")
    for what, (theirs, ours, there) in shown.items():
        print(f"| {what} | {theirs if there else 'mended: ' + theirs} | {ours} |")
    return int(not all(there for _, _, there in shown.values()))


def evaluated(
    name: str, rows: Sequence[Row], answers: Mapping[int, str], folder: Path, place: Path | None = None
) -> str:
    """Its overall figure, or the error with which it ends.

    Args:
        name: of the benchmark.
        rows: of the table.
        answers: index -> answer.
        folder: `$LMUData`.
        place: file of an earlier evaluation that is written anew, in the folder with what it has left.
    """
    write_table(folder / f"{name}.tsv", rows)
    data = dataset_of(name)
    file = result_file(name, data, answers, folder, place)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = data.evaluate(str(file), model="exact_matching")
    except Exception as error:  # whatever it raises is the finding
        return f"{type(error).__name__}: {error}"
    column = "perception" if "perception" in found else "Overall"
    return f"{float(found[column].iloc[0]):.3f}"


def own(name: str, rows: Sequence[Row], answers: Mapping[int, str], folder: Path) -> str:
    """The same by this suite."""
    benchmark = find_benchmark(name)
    write_table(folder / f"{name}.tsv", rows)
    try:
        found = score(benchmark, read_table(folder / f"{name}.tsv", benchmark, progress=False), answers)
    except UserError as error:
        return "error: " + str(error).split(";")[0].replace(str(folder), "")[:140]
    figure = main_figure(benchmark, found.metrics)
    assert figure is not None
    return f"{figure[1] / 100:.3f}"


def stale_scores(folder: Path) -> Shown:
    rows, _ = choice_rows(COLOURS, ["x"] * 4)
    right, wrong = {row["index"]: row["answer"] for row in rows}, {row["index"]: "E" for row in rows}
    place = folder / "answers_SEEDBench_IMG.tsv"
    first = evaluated("SEEDBench_IMG", rows, right, folder, place)
    second = evaluated("SEEDBench_IMG", rows, wrong, folder, place)
    theirs = f"all right {first}, then all wrong in the same folder {second}"
    return theirs, f"all wrong {own('SEEDBench_IMG', rows, wrong, folder)}", second == first


def stale_pairs(folder: Path) -> Shown:
    categories = [*("OCR artwork celebrity color count existence landmark position posters scene".split())]
    categories += "code_reasoning commonsense_reasoning numerical_calculation text_translation".split()
    rows, _ = yes_no_rows(categories, ["x"])
    right, wrong = {row["index"]: row["answer"] for row in rows}, {row["index"]: "?" for row in rows}
    place = folder / "answers_MME.tsv"
    first, second = (evaluated("MME", rows, answers, folder, place) for answers in (right, wrong))
    theirs = f"all right {first}, then all wrong in the same folder {second}"
    return theirs, f"all wrong {own('MME', rows, wrong, folder)}", second == first


def missing_rotations(folder: Path) -> Shown:
    rows, answers = circular_rows(COLOURS, ["{L}"] * 4)
    cut = [row for row in rows if row["index"] < ROTATION]
    theirs = evaluated("MMBench_DEV_EN", cut, answers, folder)
    return f"one of four rotations: {theirs}", own("MMBench_DEV_EN", cut, answers, folder), theirs == "1.000"


def missing_base(folder: Path) -> Shown:
    rows, answers = circular_rows(COLOURS, ["{L}"] * 4)
    image = picture()
    cut = [{**row, "image": image} for row in rows if row["index"] not in (0, 1)]
    theirs = evaluated("MMBench_DEV_EN", cut, {**answers, **{row["index"]: "E" for row in cut[:2]}}, folder)
    return f"two of four questions vanish: {theirs}", own("MMBench_DEV_EN", cut, answers, folder), theirs == "0.000"


def missing_category(folder: Path) -> Shown:
    rows, answers = yes_no_rows(CATEGORIES, ["yes"])
    theirs = evaluated("MME", rows, answers, folder)
    return theirs, f"{own('MME', rows, answers, folder)} of 1, the others named", "KeyError" in theirs


def lone_question(folder: Path) -> Shown:
    rows, answers = yes_no_rows(CATEGORIES, ["yes"])
    theirs = evaluated("MME", rows[1:], answers, folder)
    return theirs, own("MME", rows[1:], answers, folder), "IndexError" in theirs


def option_called_none(folder: Path) -> Shown:
    rows, _ = choice_rows([("None", "red", "green", "blue")], ["{L}"])
    answers = {0: "A"}
    theirs = evaluated("SEEDBench_IMG", rows, answers, folder)
    return (
        f"the option is gone, its letter is wrong: {theirs}",
        own("SEEDBench_IMG", rows, answers, folder),
        theirs != "1.000",
    )


def answer_called_none(folder: Path) -> Shown:
    rows, _ = choice_rows([("None of them", "an", "a red one")], ["x"])
    answers = {0: "None"}
    rows[0]["answer"] = "B"
    theirs = evaluated("SEEDBench_IMG", rows, answers, folder)
    return (
        f"`None` becomes `nan`, in which the option `an` stands: {theirs}",
        own("SEEDBench_IMG", rows, answers, folder),
        theirs == "1.000",
    )


def numbers(folder: Path) -> Shown:
    rows, _ = choice_rows([("1", "2"), ("5", "6")], ["x"])
    rows[1]["A"] = ""  # a gap makes the column one of floating-point numbers
    rows[0]["answer"], answers = "A", {0: "1", 1: "B"}
    rows[1]["answer"] = "B"
    theirs = evaluated("SEEDBench_IMG", rows, answers, folder)
    return f"the option `1` becomes `1.0`: {theirs}", own("SEEDBench_IMG", rows, answers, folder), theirs != "1.000"


def download(folder: Path) -> Shown:
    from vlmeval.dataset import image_base

    rows, _ = choice_rows(COLOURS, ["x"])
    write_table(folder / "SEEDBench_IMG.tsv", rows)
    asked: list[str] = []
    kept, image_base.download_file = image_base.download_file, lambda url, path: asked.append(path)
    try:
        dataset_of("SEEDBench_IMG", any_md5=False)
    finally:
        image_base.download_file = kept
    theirs = f"would download over {Path(asked[0]).name}" if asked else "takes the file"
    return theirs, "takes the file that it is given", bool(asked)


def stale_pictures(folder: Path) -> Shown:
    from PIL import Image

    rows, _ = choice_rows(COLOURS, ["x"])
    place = folder / "images" / "SEEDBench_IMG"
    place.mkdir(parents=True)
    Image.new("RGB", (3, 3), "black").save(place / "0.png")  # of another table, or of an older one
    write_table(folder / "SEEDBench_IMG.tsv", rows)
    data = dataset_of("SEEDBench_IMG")
    shown = Image.open(data.dump_image(data.data.iloc[0])[0]).size
    return (
        f"shows the {shown[0]}×{shown[1]} picture that lay there, not the 24×24 one",
        "reads the table",
        shown == (3, 3),
    )


def reencoded(folder: Path) -> Shown:
    import numpy as np
    from PIL import Image

    rows, _ = yes_no_rows(CATEGORIES, ["x"])
    for row in rows:
        row["image_path"] = row["image_path"].replace(".png", ".jpg")
    write_table(folder / "MME.tsv", rows)
    data = dataset_of("MME")
    shown = np.asarray(Image.open(data.dump_image(data.data.iloc[0])[0]).convert("RGB"), dtype=int)
    benchmark = find_benchmark("MME")
    table = read_table(folder / "MME.tsv", benchmark, progress=False)
    error = int(np.abs(shown - np.asarray(table.picture(table.questions[0]), dtype=int)).max())
    return f"pixels off by up to {error} of 255", "the table's own pixels", error > 0


def judge_without_grade(folder: Path) -> Shown:
    from vlmeval.dataset.utils import mmvet

    class Silent:
        generate = staticmethod(lambda prompt, temperature: "a good answer")

    class NotANumber:
        generate = staticmethod(lambda prompt, temperature: "nan")

    rows, _ = mmvet_rows()
    line = {**rows[0], "prediction": "x"}
    grades = [mmvet.MMVet_auxeval(kind(), line)["score"] for kind in (Silent, NotANumber)]
    theirs = f"no grade counts as {grades[0]}, `nan` is taken as a grade"
    return theirs, "error that names the answers", grades[0] == 0.0 and grades[1] != grades[1]


def lists(folder: Path) -> Shown:
    from vlmeval.dataset.utils import mathvista

    line = {"question_type": "free_form", "answer_type": "list", "answer": "[1, 2]", "prediction": "x", "res": "[1, 2]"}
    found = mathvista.post_check(line)
    return f"`[1, 2]` for `[1, 2]`: {found}", "right", found is False


def run_from_cells(folder: Path) -> Shown:
    from vlmeval.dataset.utils import mathvista

    mark = folder / "was-run"
    cell = f"__import__('pathlib').Path({str(mark)!r}).touch() or []"
    line = {"question_type": "multi_choice", "choices": cell, "answer": "x", "answer_option": "A", "prediction": "A"}
    mathvista.post_check(line, prefetch=True)
    return "Python code in a cell is run" if mark.exists() else "is not run", "literals only", mark.exists()


def verbose(folder: Path) -> Shown:
    from vlmeval.utils import can_infer

    options = {"A": "red", "B": "green"}
    found = []
    for value in ("", "1"):
        os.environ["VERBOSE"] = value
        found.append(can_infer("I think it is A", dict(options)))
    os.environ.pop("VERBOSE")
    return f"`I think it is A` without VERBOSE: {found[0]}, with VERBOSE=1: {found[1]}", "A", found == ["A", False]


DEFECTS: dict[str, Callable[[Path], Shown]] = {
    "old scores for new answers (`_result.pkl`)": stale_scores,
    "old answers of MME for new ones (`_auxmatch`)": stale_pairs,
    "rotations that are missing count as right": missing_rotations,
    "questions without their unrotated row vanish": missing_base,
    "MME without one of the 14 categories": missing_category,
    "MME with one question about a picture": lone_question,
    "an option called `None`, `NA`, `nan`, ...": option_called_none,
    "an answer `None`, `NA`, `nan`, ...": answer_called_none,
    "columns of options that hold numbers and gaps": numbers,
    "a table of an official name with another md5": download,
    "pictures kept by index alone": stale_pictures,
    "pictures with a path that ends in `.jpg` are encoded again": reencoded,
    "MM-Vet: a judge that gives no grade": judge_without_grade,
    "MathVista: answers that are lists": lists,
    "MathVista: `eval` of cells": run_from_cells,
    "an environment variable changes scores": verbose,
}


if __name__ == "__main__":
    sys.exit(main())
