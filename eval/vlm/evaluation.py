"""An evaluation from the tables to the row beside the paper's, with the suite's own inference."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from common.commands import say
from common.errors import UserError
from common.reporting.labels import method_label
from common.reporting.runs import read_config, read_json
from common.reporting.tables import render_text
from common.training import processes
from common.training.environment import made_by
from eval.vlm.answering import Answered
from eval.vlm.benchmarks import Benchmark, find_benchmark
from eval.vlm.judge import Judge, judge_of
from eval.vlm.likelihood import predictions_by_sum, rank
from eval.vlm.predict import MAX_NEW_TOKENS, predict
from eval.vlm.results import TASK, beside_paper, category_table, write_radar, write_results, write_summary
from eval.vlm.scoring import Scores, check_scorable, main_figure, score
from eval.vlm.submission import write_submission
from eval.vlm.table import Table, find_table, read_table
from llava.model_base import LlavaBase
from llava.model_open import identity, open_model

FOLDER = "eval_vlm"  # of a run
_SAME = ("weights", "template", "precision", "engine", "answer")  # where they agree, results belong together


@dataclass(frozen=True)
class Job:
    """An evaluation as it was asked for.

    Args:
        options: of the command; they name the model (`llava.model_open`) and the judge (`eval.vlm.judge`).
        benchmarks: what it is measured on.
        data: file of the table, or folder of all; None: `$LMUData`.
        output: where the files go.
        answer: `generate`: the model's own words; `likelihood`: the likeliest of the given options.
        batch_size: questions at once in one process.
        max_new_tokens: an answer is cut there; None: the default of each family.
        allow_incomplete: score what is there.
        beside: folders of further evaluations, whose results are shown beside this one's.
        command: its name and the words behind it, as every results.json is to say.
    """

    options: argparse.Namespace
    benchmarks: Sequence[Benchmark]
    data: Path | None
    output: Path
    answer: Literal["generate", "likelihood"]
    batch_size: int
    max_new_tokens: int | None
    allow_incomplete: bool
    beside: Sequence[Path]
    command: Sequence[str] = ("mosgoat eval vlm",)

    @property
    def suffix(self) -> str:
        """Behind the names of files and folders, so that answers of two kinds never meet."""
        return "" if self.answer == "generate" else f"_{self.answer}"

    def folder(self, benchmark: Benchmark) -> Path:
        """Where the files of one benchmark go."""
        return self.output / f"{benchmark.name}{self.suffix}"


def evaluate(job: Job) -> int:
    """Measure, write and print; a collective call.

    Returns:
        The exit status: 1 in the main process where not every benchmark that was asked for has its score.

    Raises:
        UserError: no table can be used, the model cannot be opened, or the judge does not answer.
    """
    processes.start()
    tables, problems = open_tables(job)
    judges: list[Judge | None] = [None]  # an open connection, which only the main process has

    def open_judge() -> None:
        if any(benchmark.family == "judged" for benchmark, _ in tables):
            judges[0] = judge_of(job.options, job.output)
            if judges[0] is None:
                say("MathVista and MM-Vet are answered and not scored: no judge is named by --judge-model")

    processes.on_main(open_judge)
    _own_device(job.options)
    base = open_model(job.options)
    about = _about(job, base)
    found: dict[str, dict[str, Any]] = {}
    judged = []
    for benchmark, table in tables:
        processes.on_main(partial(_forget, job.folder(benchmark) / "results.json", about))
        answered = _answer(job, base, benchmark, table, about["weights"])
        conclude = partial(_conclude, job, benchmark, table, answered, about, judges[0])
        if benchmark.family == "judged":
            judged.append((benchmark.name, conclude))
        else:
            found[benchmark.name] = processes.on_main(conclude)
    if not processes.is_main():
        return 0  # a judge may take longer than processes wait for each other
    for name, conclude in judged:
        try:
            found[name] = conclude()
        except UserError as error:  # the judge's; what needs none has its score, and the answers are kept
            problems[name] = str(error)
    if not found:
        raise UserError("; ".join(problems.values()))
    summarise(job, found, about)
    for name, _ in judged:
        if name in problems:
            say(f"not scored: {name}: {problems[name]}")
    return int(bool(problems) or any(content["headline"] is None for content in found.values()))


def open_tables(job: Job) -> tuple[list[tuple[Benchmark, Table]], dict[str, str]]:
    """Read and check the tables of all benchmarks, and name those that cannot be used; a collective call.

    Returns:
        The tables that can be used, and name of a benchmark -> why its table cannot.

    Raises:
        UserError: none can be used.
    """
    checked: dict[str, Table] = {}

    def check() -> dict[str, str]:
        problems = {}
        for benchmark in job.benchmarks:
            try:
                table = read_table(find_table(benchmark.name, job.data), benchmark)
                check_scorable(benchmark, table, allow_incomplete=job.allow_incomplete)
            except UserError as error:
                problems[benchmark.name] = str(error)
                continue
            checked[benchmark.name] = table
            for line in table.report:
                say(f"{benchmark.name}: {line}")
        if len(problems) == len(job.benchmarks):
            raise UserError("; ".join(problems.values()))
        for name, problem in problems.items():
            say(f"not evaluated: {name}: {problem}")
        return problems

    problems = processes.on_main(check)
    usable = [benchmark for benchmark in job.benchmarks if benchmark.name not in problems]
    for benchmark in usable:
        if benchmark.name not in checked:  # another process has checked it
            path = find_table(benchmark.name, job.data)
            checked[benchmark.name] = read_table(path, benchmark, check_pictures=False, progress=False)
    return [(benchmark, checked[benchmark.name]) for benchmark in usable], problems


def _own_device(options: argparse.Namespace) -> None:
    """Give each of several processes the device that is its own."""
    if processes.world_size() == 1:
        return
    if options.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device={options.device} cannot be that of {processes.world_size()} processes; leave it out")
    if options.device != "cpu":
        options.device = str(PartialState().device)


def names_of(job: Job) -> dict[str, Any]:
    """What is measured: `run`, `model` as it was given, the `label` of its row, and what it was made with."""
    run, model = job.options.run, job.options.model
    return {
        "run": None if run is None else str(run.resolve()),
        "model": model,
        "label": label_of(run) if run is not None else Path(model).name,
        **made_by(job.command[0], job.command[1:]),
    }


def _about(job: Job, base: LlavaBase) -> dict[str, Any]:
    """What every results.json says about the model."""
    run, about = job.options.run, names_of(job)
    if run is not None and (run / "results.json").is_file():
        trained = read_json(run / "results.json")
        about |= {key: trained[key] for key in ("method", "config_hash", "seed") if key in trained}
    about |= {"weights": identity(job.options, base), "template": base.template, "precision": base.precision}
    return {**about, "engine": "own", "answer": job.answer}


def _forget(file: Path, about: Mapping[str, Any]) -> None:
    """Take away the results of other weights: their answers are about to go, and this evaluation may be killed."""
    if file.is_file() and any(read_json(file).get(key) != about[key] for key in _SAME):
        file.unlink()


def label_of(run: Path) -> str:
    """How tables name a run: its method and its folder."""
    method = read_config(run).get("adapter", {}).get("method")
    return f"{method_label(method)} ({run.resolve().name})" if method else run.resolve().name


def _answer(job: Job, base: LlavaBase, benchmark: Benchmark, table: Table, weights: str) -> Answered:
    output = job.folder(benchmark) / "predictions.jsonl"
    if job.answer == "likelihood":
        return rank(base, table, benchmark, model=weights, output=output, batch_size=job.batch_size)
    return predict(
        base,
        table,
        benchmark,
        model=weights,
        output=output,
        batch_size=job.batch_size,
        max_new_tokens=job.max_new_tokens,
    )


def _conclude(
    job: Job, benchmark: Benchmark, table: Table, answered: Answered, about: Mapping[str, Any], judge: Judge | None
) -> dict[str, Any]:
    """Score the answers of one benchmark, write its files and print its table; the main process only."""
    folder = job.folder(benchmark)
    scores = _score(job, benchmark, table, answered.predictions, judge)
    more = {
        **about,
        "table": {"path": str(table.path), "fingerprint": table.fingerprint, "report": list(table.report)},
        "incomplete_allowed": job.allow_incomplete,
        "questions": len(table.questions),
        "questions_per_second": answered.per_second,
    }
    if job.answer == "generate":
        more["max_new_tokens"] = job.max_new_tokens or MAX_NEW_TOKENS[benchmark.family]
        more["cut"] = sum(row.get("cut", False) for row in answered.rows.values())
    else:
        more["ranked_by"] = "mean log-probability per token"
        more["metrics_by_sum"] = _score(job, benchmark, table, predictions_by_sum(answered), None).metrics
    if judge is not None and benchmark.family == "judged":
        more["judge"] = judge.description
    content = write_results(folder, benchmark, scores, more=more)
    if scores.not_scored:
        print(f"\n{benchmark.name}: not scored: {scores.not_scored}")
    else:
        print(f"\n{render_text(category_table(benchmark, content))}")
    if by_sum := main_figure(benchmark, content.get("metrics_by_sum", {})):
        print(f"ranked by the sum instead of the mean per token: {by_sum[0]} {by_sum[1]:.1f}")
    for note in content["notes"]:
        print(f"note: {note}")
    if content.get("cut"):
        limit = f"cut at {content['max_new_tokens']} tokens; --max-new-tokens allows longer ones"
        print(f"note: {content['cut']:,} of {content['questions']:,} answers were {limit}")
    if answered.per_second is not None:
        print(f"{answered.per_second:.1f} questions a second")
    if benchmark.family == "circular" and (not table.has_answers or any(q.split == "test" for q in table.questions)):
        name = re.sub(r"[^\w.+-]+", "-", about["label"]).strip("-")
        _submit(folder / f"{name}_{benchmark.name}.xlsx", table, answered)
    print(f"written to {folder}")
    return content


def _score(job: Job, benchmark: Benchmark, table: Table, predictions: Mapping[Any, str], judge: Judge | None) -> Scores:
    return score(benchmark, table, predictions, allow_incomplete=job.allow_incomplete, judge=judge)


def _submit(path: Path, table: Table, answered: Answered) -> None:
    columns = list(table.questions[0].fields)
    texts = {str(index): text for index, text in answered.predictions.items()}
    changed = write_submission(path, columns, [question.fields for question in table.questions], texts)
    print(f"for the submission service: {path}")
    if changed:
        print(f"warning: {changed} cells hold what a spreadsheet cannot (control characters, endless text): changed")


def summarise(job: Job, found: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write and print the row over all that was ever measured of these weights in this way."""
    whole = {**_measured_before(job.output, about), **found}
    summary = write_summary(job.output, whole, about["label"], suffix=job.suffix, more=about)
    rows = {about["label"]: summary["metrics"]}
    radars: dict[str, dict[str, Any]] = {name: {about["label"]: content} for name, content in found.items()}
    for folder in job.beside:
        other = read_json(folder / f"results{job.suffix}.json")
        label = other["label"] if other["label"] not in rows else f"{other['label']}, {folder}"
        rows[label] = other["metrics"]
        for name, lines in radars.items():
            file = folder / f"{name}{job.suffix}" / "results.json"
            if file.is_file():
                lines[label] = read_json(file)
    if job.beside:
        for name, lines in radars.items():
            write_radar(job.output / f"radar_{name}{job.suffix}.png", lines)
    print(f"\n{render_text(beside_paper(rows, job.answer))}")
    if summary["no_average"] and not all(find_benchmark(name).about for name in found):
        print(f"no average of the nine: {summary['no_average']}")


def _measured_before(output: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of other benchmarks in the output folder, of the same weights and the same way of answering."""
    contents = [read_json(file) for file in sorted(output.glob("*/results.json"))]
    return {
        content["benchmark"]: content
        for content in contents
        if isinstance(content, dict)
        and content.get("task") == TASK
        and all(content.get(key) == about[key] for key in _SAME)
    }
