"""`--engine vlmeval`: VLMEvalKit asks our model, and its evaluation gives the scores.

VLMEvalKit is not a dependency: an installed copy or a checkout is used as it is. It runs in a process of its own, sees
a folder of tables of its own (pictures that another table has left in a common one would be shown again), and starts
from nothing every time, for its files of old results would be taken for new ones. Whether it succeeded is read from
the `status.json` that it writes: its exit status is 0 after failures as well.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from common.children import Stopped, run_child
from common.commands import require_one_process, say
from common.errors import UserError
from common.files import write_json
from common.reporting.runs import read_json
from common.reporting.tables import render_text
from common.write_errors import writing_is_explained
from eval.vlm.benchmarks import Benchmark
from eval.vlm.evaluation import Job, names_of, open_tables, summarise
from eval.vlm.judge import Judge, judge_of
from eval.vlm.predict import MAX_NEW_TOKENS
from eval.vlm.question import Index
from eval.vlm.results import category_table, write_results
from eval.vlm.scoring import Scores, main_figure, score
from eval.vlm.table import Table
from eval.vlm.vlmeval_metrics import metrics_of

FOLDER = "vlmeval"
HOW_TO_GET_IT = (
    "git clone https://github.com/open-compass/VLMEvalKit && pip install -r VLMEvalKit/requirements.txt, "
    "then give --vlmeval-root VLMEvalKit"
)
_SAME = 1e-6  # percent
_GRACE = 5.0  # seconds; every answer is on the disk as soon as it is there


@dataclass(frozen=True)
class Outcome:
    """What VLMEvalKit has found on one benchmark.

    Args:
        predictions: index -> answer, of every row.
        figures: its metrics under its own names; empty where it was only asked for answers.
        model: `weights`, `template` and `precision` of the model that it asked.
        folder: its files.
    """

    predictions: Mapping[Index, str]
    figures: Mapping[str, float]
    model: Mapping[str, str]
    folder: Path


def find_vlmeval(root: Path | None) -> Path:
    """The checkout of VLMEvalKit: the folder with `run.py` and `vlmeval`.

    Args:
        root: of the command line; None: where `import vlmeval` leads.

    Raises:
        UserError: there is none; the message says how to get it.
    """
    if root is not None:
        if (root / "run.py").is_file() and (root / "vlmeval" / "__init__.py").is_file():
            return root.resolve()
        raise UserError(f"--vlmeval-root={root} is no checkout of VLMEvalKit (run.py, vlmeval/): {HOW_TO_GET_IT}")
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or spec.origin is None:
        raise UserError(f"--engine vlmeval needs VLMEvalKit, which is not installed: {HOW_TO_GET_IT}")
    found = Path(spec.origin).resolve().parent.parent
    if not (found / "run.py").is_file():
        raise UserError(f"VLMEvalKit is installed in {found} without its run.py; use a checkout: {HOW_TO_GET_IT}")
    return found


def run_vlmeval(job: Job, root: Path | None) -> int:
    """Measure with VLMEvalKit; files go to `vlmeval` in the output folder, and never mix with the own engine's.

    Returns:
        The exit status: 1 where not every benchmark that was asked for has its score.

    Raises:
        UserError: VLMEvalKit is not there or failed, no table can be used, or the judge does not answer.
    """
    require_one_process("--engine vlmeval", "leave torchrun out, or use the own engine")
    if job.answer != "generate":
        raise UserError(f"--answer={job.answer} is not for --engine vlmeval, which lets the model generate")
    kit = find_vlmeval(root)
    job = replace(job, output=job.output / FOLDER)
    tables, problems = open_tables(job)
    judged = any(benchmark.family == "judged" for benchmark, _ in tables)
    judge = judge_of(job.options, job.output) if judged else None
    found: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    for benchmark, table in tables:
        try:
            outcome = ask(kit, job, benchmark, table)
            scores = scores_of(job, benchmark, table, outcome, judge)
        except UserError as error:
            problems[benchmark.name] = str(error)
            say(f"not evaluated: {benchmark.name}: {error}")
            continue
        about = _about(job, outcome.model)
        more = {**about, "questions": len(table.questions), "vlmeval": {"root": str(kit), "metrics": outcome.figures}}
        if judge is not None and benchmark.family == "judged":
            more["judge"] = judge.description
        found[benchmark.name] = write_results(job.folder(benchmark), benchmark, scores, more=more)
        _print(benchmark, found[benchmark.name])
    if not found:
        raise UserError("; ".join(problems.values()))
    summarise(job, found, about)
    return int(bool(problems) or any(content["headline"] is None for content in found.values()))


def ask(kit: Path, job: Job, benchmark: Benchmark, table: Table) -> Outcome:
    """Let VLMEvalKit ask our model the questions of a table, and evaluate unless only a judge can.

    Raises:
        UserError: it failed; the message has its own words, and where its log lies.
    """
    work = job.folder(benchmark) / "files"
    data = work / f"data-{table.fingerprint[:12]}"
    spec, outcome, log = work / "spec.json", work / "outcome.json", work / "vlmeval.log"
    options = {name: getattr(job.options, name) for name in ("run", "model", "template", "precision", "device")}
    with writing_is_explained(work):
        data.mkdir(parents=True, exist_ok=True)
        link = data / benchmark.file_name
        link.unlink(missing_ok=True)
        link.symlink_to(table.path.resolve())
        outcome.unlink(missing_ok=True)
        content = {
            "root": str(kit),
            "benchmark": benchmark.name,
            "table": str(table.path.resolve()),
            "lmu_data": str(data.resolve()),
            "work": str(work.resolve()),
            "outcome": str(outcome.resolve()),
            "options": {**options, "run": None if options["run"] is None else str(options["run"])},
            "max_new_tokens": job.max_new_tokens or MAX_NEW_TOKENS[benchmark.family],
            "mode": "all" if _is_evaluated(benchmark, table) else "infer",
        }
        write_json(spec, content)
        say(f"{benchmark.name}: VLMEvalKit asks one question at a time; what it says is in {log}")
        with log.open("w") as file:
            words = [sys.executable, "-m", "eval.vlm.vlmeval_engine_child", str(spec)]
            _run_to_its_end(words, file)
    if not outcome.is_file():
        raise UserError(f"VLMEvalKit's process ended without a word: {_last_line(log)}; the whole log: {log}")
    return read_outcome(outcome, benchmark, table, log)


def _run_to_its_end(words: Sequence[str], log: IO[str]) -> None:
    try:
        run_child(words, _GRACE, output=log, environment=_environment())
    except Stopped as stopped:  # with VLMEvalKit's process
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        say("stopped; the answers so far are kept, and the same command goes on")
        raise SystemExit(128 + stopped.number) from None


def read_outcome(path: Path, benchmark: Benchmark, table: Table, log: Path) -> Outcome:
    """What the process has left behind, if it succeeded.

    Args:
        path: the file of `eval.vlm.vlmeval_engine_child`.
        benchmark: what was asked.
        table: its questions.
        log: named in messages.

    Raises:
        UserError: VLMEvalKit's status file tells of a failure, or of no evaluation where there should be one, or
            answers are missing.
    """
    told = read_json(path)
    if "error" in told:
        raise UserError(told["error"])
    status = read_json(Path(told["status"])) if told["status"] else {}
    state = status.get("datasets", {}).get(benchmark.name, {})
    wanted = _is_evaluated(benchmark, table)
    reason = state.get("error_message") or (state.get("skip_reason") if wanted else None)
    if state.get("status") != "done" or reason or (wanted and not state.get("metrics")):
        reason = reason or f"its status file says {state.get('status', 'nothing')!r}"
        raise UserError(f"VLMEvalKit failed on {benchmark.name}: {' '.join(str(reason).split())}; its log: {log}")
    predictions = {row["index"]: row["prediction"] for row in read_json(Path(told["predictions"]))}
    missing = [question.index for question in table.questions if question.index not in predictions]
    if missing:
        raise UserError(f"VLMEvalKit left out {len(missing)} questions of {benchmark.name}; its log: {log}")
    model = {key: told[key] for key in ("weights", "template", "precision")}
    return Outcome(predictions, state.get("metrics", {}), model, Path(path).parent)


def scores_of(job: Job, benchmark: Benchmark, table: Table, outcome: Outcome, judge: Judge | None) -> Scores:
    """VLMEvalKit's figures in the suite's form; where our rules make another of the same answers, a note says so."""
    allowed = job.allow_incomplete
    own = score(benchmark, table, outcome.predictions, allow_incomplete=allowed, judge=judge)
    if not _is_evaluated(benchmark, table):
        return own
    found = replace(own, metrics=metrics_of(benchmark, table, outcome.figures))
    theirs, ours = main_figure(benchmark, found.metrics), main_figure(benchmark, own.metrics)
    assert theirs is not None, "it has scored"
    assert ours is not None, "so has the suite"
    if abs(theirs[1] - ours[1]) < _SAME:
        return found
    note = f"the suite's own rules score the same answers {ours[1]:.2f}, VLMEvalKit {theirs[1]:.2f}"
    return replace(found, notes=[*own.notes, f"{note}; docs/evaluation.md lists what it is known to get wrong"])


def _is_evaluated(benchmark: Benchmark, table: Table) -> bool:
    """Whether VLMEvalKit's evaluation is called: judges are ours, and a table may keep its answers to itself."""
    return benchmark.family != "judged" and table.has_answers


def _about(job: Job, model: Mapping[str, str]) -> dict[str, Any]:
    names = names_of(job)
    names["label"] = f"{names['label']}, VLMEvalKit"
    return {**names, **model, "engine": "vlmeval", "answer": job.answer}


def _environment() -> dict[str, str]:
    ours = str(Path(__file__).resolve().parents[2])
    paths = [ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its log is empty"


def _print(benchmark: Benchmark, content: Mapping[str, Any]) -> None:
    print(f"\n{render_text(category_table(benchmark, content))}")
    for note in content["notes"]:
        print(f"note: {note}")
    if content.get("not_scored"):
        print(f"{benchmark.name}: not scored: {content['not_scored']}")
