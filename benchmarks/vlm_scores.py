"""Scores of the same awkward answers by this suite and by VLMEvalKit itself, row by row.

    python benchmarks/vlm_scores.py --vlmeval-root VLMEvalKit --json scores.json

VLMEvalKit must be able to import (`pip install -r VLMEvalKit/requirements.txt`). For every family a drawn table gets a
few hundred answers on which rules could disagree; both sides score them, VLMEvalKit by its `evaluate` with exact
matching, through the files that it writes. Counted are rows (in circular evaluation whole questions) whose hit
differs, and metrics that differ by more than 1e-6 percent. MathVista and MM-Vet run with a judge that says what stands
between « and » in the answer, the same for both. Two further tables hold nothing but what pandas reads as missing
cells: their differences are VLMEvalKit's defect and are listed. Last come the words of the prompts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_awkward import (
    ANSWERS,
    MISSING_WORDS,
    OPTIONS,
    YES_NO,
    Row,
    choice_rows,
    circular_rows,
    mathvista_rows,
    mmvet_rows,
    vqa_rows,
    yes_no_rows,
)

from eval.vlm.benchmarks import find_benchmark
from eval.vlm.judge import Verdict
from eval.vlm.prompts import prompt_of
from eval.vlm.scoring import main_figure, score
from eval.vlm.scoring.yes_no import COGNITION, PERCEPTION
from eval.vlm.table import Table, read_table
from eval.vlm.vlmeval_metrics import metrics_of

MODEL = "answers"
Built = tuple[list[Row], dict[int, str]]
MISSING_OPTIONS = [("red", "None", "blue", "NA"), ("yes", "N/A"), ("n", "banana", "an", "x"), ("nan", "none", "3", "4")]


@dataclass
class Compared:
    """Both scores of one table.

    Args:
        what: name of the benchmark, and of the answers.
        answers: how many.
        ours: the main figure in percent; `theirs` too.
        rows: how many rows or questions were compared, each with its hit.
        differing: for every row that differs, a description.
        metrics: names of metrics that differ, with both values.
    """

    what: str
    answers: int
    ours: float
    theirs: float
    rows: int
    differing: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)


class Marked:
    """A judge for both sides: it says what stands between the last « and »."""

    url, model = "nowhere", "marked"

    def generate(self, prompt: str, temperature: float = 0.0) -> str:
        """As VLMEvalKit calls a judge."""
        found = re.findall("«(.*?)»", prompt, flags=re.DOTALL)
        return found[-1] if found else "nothing is marked"

    def ask(self, prompts: Sequence[str], read: Callable[[str], Any], *, label: str) -> list[Verdict[Any]]:
        """As the suite calls one."""
        said = [self.generate(prompt).strip() for prompt in prompts]
        return [Verdict(read(text), text) for text in said]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; exit status 1 where anything but the listed defects differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlmeval-root", type=Path, required=True, help="checkout of VLMEvalKit")
    parser.add_argument("--json", type=Path, help="write all differences here too")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(options.vlmeval_root))
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LMUData": folder, "PRED_FORMAT": "tsv"}
        os.environ.pop("VERBOSE", None)
        found = [_compared(name, what, built, Path(folder)) for name, what, built in tables()]
        words = _prompts(Path(folder))
    print(_as_markdown(found))
    print(f"\nprompts: {words[0]} compared, {len(words[1])} differ {words[1][:3]}")
    if options.json:
        content = {"compared": [asdict(each) for each in found], "prompts": words}
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return int(any(each.differing or each.metrics for each in found if "missing" not in each.what) or bool(words[1]))


def tables() -> list[tuple[str, str, Built]]:
    """(benchmark, what its answers are, its rows and answers) of every comparison."""
    categories = [*PERCEPTION, *COGNITION]
    plain = ("SEEDBench_IMG", "AI2D_TEST", "ScienceQA_TEST")
    found = [(name, "awkward", choice_rows(OPTIONS, ANSWERS)) for name in plain]
    found += [(name, "awkward", circular_rows(OPTIONS, ANSWERS)) for name in ("MMBench_DEV_EN", "MMBench_TEST_CN_V11")]
    found += [("MME", "awkward", yes_no_rows(categories, YES_NO)), ("TextVQA_VAL", "awkward", vqa_rows())]
    found += [("MathVista_MINI", "marked", mathvista_rows()), ("MMVet", "marked", mmvet_rows())]
    words = [*MISSING_WORDS, "{T}", "{L}", "It is {t}"]
    found.append(("SEEDBench_IMG", "read as missing", choice_rows(MISSING_OPTIONS, words)))
    found.append(("MMBench_DEV_EN", "read as missing", circular_rows(MISSING_OPTIONS, words)))
    return found


def _compared(name: str, what: str, built: Built, folder: Path) -> Compared:
    benchmark, (rows, answers) = find_benchmark(name), built
    path = folder / benchmark.file_name
    write_table(path, rows)
    table = read_table(path, benchmark, progress=False)
    judged = benchmark.family == "judged"
    own = score(benchmark, table, answers, allow_incomplete=judged, judge=Marked() if judged else None)
    ours = {row["index"]: float(row["hit"]) for row in own.rows}
    if benchmark.family == "circular":
        ours = {row["index"]: float(row["all_rotations_hit"]) for row in own.rows if row["index"] == row["group"]}
    theirs, figures = (_judged if judged else _evaluated)(name, table, answers, folder)
    metrics = figures if judged else metrics_of(benchmark, table, figures)
    mine, other = main_figure(benchmark, own.metrics), main_figure(benchmark, metrics)
    assert mine is not None, name
    assert other is not None, name
    found = Compared(f"{name}, {what}", len(answers), mine[1], other[1], len(ours))
    assert ours.keys() == theirs.keys(), f"{name}: not the same rows"
    for index in ours:
        if abs(ours[index] - theirs[index]) > 1e-9:
            question = next(question for question in table.questions if question.index == index)
            options = dict(question.options) or question.answer
            both = f"ours {ours[index]}, theirs {theirs[index]}"
            found.differing.append(f"{index}: {answers[index]!r} to {options}: {both}")
    flat, other_flat = dict(_leaves(own.metrics)), dict(_leaves(metrics))
    for key in {**flat, **other_flat}:
        if key not in flat or key not in other_flat or abs(flat[key] - other_flat[key]) > 1e-6:
            found.metrics.append(f"{key}: ours {flat.get(key)}, theirs {other_flat.get(key)}")
    return found


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A table as pandas writes it."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def dataset_of(name: str, *, any_md5: bool = True) -> Any:
    """VLMEvalKit's object for a table in `$LMUData`.

    Args:
        name: of the benchmark.
        any_md5: take the file as it is; with another md5 than the official one it would else be downloaded anew.
    """
    from vlmeval.dataset import DATASET_CLASSES, build_dataset

    kept = []
    for kind in DATASET_CLASSES if any_md5 else ():
        sums = getattr(kind, "DATASET_MD5", {})
        kept.append((sums, sums.pop(name, None)))
    found = build_dataset(name)
    for sums, value in kept:
        if value is not None:
            sums[name] = value
    return found


def result_file(name: str, dataset: Any, answers: Mapping[int, str], folder: Path, place: Path | None = None) -> Path:
    """What its `infer_data_job` writes: at `place`, else in a new folder, which has no older results."""
    from vlmeval.smp import dump

    place = place or Path(tempfile.mkdtemp(dir=folder)) / f"{MODEL}_{name}.tsv"
    data = dataset.data
    data["prediction"] = [str(answers[int(index)]) for index in data["index"]]
    data.pop("image")
    dump(data, str(place))
    return place


def _evaluated(name: str, table: Table, answers: Mapping[int, str], folder: Path) -> tuple[dict[Any, float], Any]:
    """Its hits by row, and its metrics as its status file has them."""
    from vlmeval.smp import load
    from vlmeval.smp.status_report import flatten_summary_metrics

    dataset = dataset_of(name)
    place = result_file(name, dataset, answers, folder)
    figures = flatten_summary_metrics(dataset.evaluate(str(place), model="exact_matching"))
    family = table.benchmark.family
    suffix = {"yes_no": "_auxmatch", "vqa": "_results"}.get(family, "_exact_matching_result")
    data = load(str(place.with_name(f"{place.stem}{suffix}.tsv")))
    column = {"yes_no": "score", "vqa": "eval_score"}.get(family, "hit")
    return {int(index): float(hit) for index, hit in zip(data["index"], data[column], strict=True)}, figures


def _judged(name: str, table: Table, answers: Mapping[int, str], folder: Path) -> tuple[dict[Any, float], Any]:
    """The same of MathVista and MM-Vet, whose `evaluate` would open a judge of its own."""
    from vlmeval.dataset.utils import mathvista, mmvet
    from vlmeval.smp import dump, load

    dataset = dataset_of(name)
    place = result_file(name, dataset, answers, folder)
    data, stored = load(str(place)), str(place.with_name("judged.tsv"))
    auxeval = mathvista.MathVista_auxeval if name == "MathVista_MINI" else mmvet.MMVet_auxeval
    found = [auxeval(Marked(), data.iloc[at]) for at in range(len(data))]
    for key in found[0]:
        data[key] = [each[key] for each in found]
    dump(data, stored)
    data = load(stored)
    if name == "MMVet":
        coarse, fine = mmvet.MMVet_acc(stored)
        parts = [dict(zip(frame["Category"], frame["acc"], strict=True)) for frame in (coarse, fine)]
        combination = {key: value for key, value in parts[1].items() if key != "Overall"}
        overall = parts[0].pop("Overall")
        hits = dict(zip(data["index"], map(float, data["score"]), strict=True))
        return hits, {"overall": overall, "category": parts[0], "combination": combination}
    frame = mathvista.MathVista_acc(stored)
    acc = dict(zip(frame["Task&Skill"], frame["acc"], strict=True))
    metrics: dict[str, Any] = {"overall": acc.pop("Overall"), "task": {}, "skill": {}}
    for key, value in acc.items():
        metrics["task" if key.startswith("task") else "skill"][key] = value
    hits = {int(data.iloc[at]["index"]): float(mathvista.post_check(data.iloc[at])) for at in range(len(data))}
    return hits, metrics


def _prompts(folder: Path) -> tuple[int, list[str]]:
    """Our prompts beside those of VLMEvalKit's wrapper of LLaVA, with which the paper was measured."""
    from vlmeval.vlm.llava.llava_xtuner import LLaVA_XTuner

    class Asking:
        dump_image = staticmethod(lambda line, dataset: [])
        use_custom_prompt = staticmethod(lambda dataset: True)

    count, differing = 0, []
    small = [(name, (rows[:200], {})) for name, what, (rows, _) in tables() if "missing" not in what]
    for name, (rows, _) in small:
        benchmark = find_benchmark(name)
        base = [row for row in rows if len(str(row["image"])) > 64]
        write_table(folder / benchmark.file_name, base)
        table, dataset = read_table(folder / benchmark.file_name, benchmark, progress=False), dataset_of(name)
        choice = benchmark.family in ("choice", "circular")
        for question, at in zip(table.questions, itertools.count(), strict=False):
            line = dataset.data.iloc[at]
            message = LLaVA_XTuner.build_prompt(Asking(), line, name) if choice else dataset.build_prompt(line)
            text = "\n".join(part["value"] for part in message if part["type"] == "text")
            count += 1
            if text != prompt_of(question, benchmark):
                differing.append(f"{name} {question.index}: ours {prompt_of(question, benchmark)!r}, theirs {text!r}")
    return count, differing


def _leaves(metrics: Mapping[str, Any], group: str = "") -> list[tuple[str, float]]:
    found = []
    for key, value in metrics.items():
        name = f"{group}, {key}".lstrip(", ")
        if isinstance(value, Mapping):
            found += _leaves(value, name)
        elif isinstance(value, (int, float)):
            found.append((name, float(value)))
    return found


def _as_markdown(found: Sequence[Compared]) -> str:
    lines = ["| answers to | answers | scored items | ours | VLMEvalKit | items that differ | metrics that differ |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for each in found:
        numbers = f"{each.ours:.2f} | {each.theirs:.2f} | {len(each.differing)} | {len(each.metrics)}"
        lines.append(f"| {each.what} | {each.answers} | {each.rows} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
