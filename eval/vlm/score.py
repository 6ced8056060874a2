"""`mosgoat eval score`: score anyone's predictions on a benchmark, by the rules of VLMEvalKit's exact matching."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.commands import require_one_process, say
from common.errors import UserError
from common.files import absolute
from common.reporting.runs import refuse_other_results
from common.reporting.tables import render_text
from common.training.environment import made_by
from common.words import counted, listed
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.judge import add_judge_options, judge_of, require_judged
from eval.vlm.question import Index
from eval.vlm.results import TASK, category_table, write_results
from eval.vlm.scoring import score
from eval.vlm.table import Table, find_table, read_table

PROG = "mosgoat eval score"


@dataclass(frozen=True)
class Predictions:
    """What a file of predictions holds for a table.

    Args:
        texts: index as in the table -> prediction.
        notes: in a line each what was left out.
    """

    texts: Mapping[Index, str]
    notes: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Score; exit status 1 when there is no score."""
    options = _parser().parse_args(list(argv or []))
    require_one_process(PROG, "leave torchrun out: no model is run")
    benchmark = find_benchmark(options.benchmark)
    refuse_other_results(options.output, TASK)
    require_judged(options, [benchmark])
    if not options.predictions.is_file():
        raise UserError(f"--predictions={options.predictions}: there is no such file")
    table = read_table(find_table(benchmark.name, options.data), benchmark, need_pictures=False)
    predictions = read_predictions(options.predictions, table, allow_incomplete=options.allow_incomplete)
    for note in (*table.report, *predictions.notes):
        say(note)
    judge = judge_of(options, options.output) if benchmark.family == "judged" else None
    scores = score(benchmark, table, predictions.texts, allow_incomplete=options.allow_incomplete, judge=judge)
    for note in scores.notes:
        say(note)
    more = {
        "data": absolute(str(table.path)),
        "data_fingerprint": table.fingerprint,
        "predictions": absolute(str(options.predictions)),
        "incomplete_allowed": options.allow_incomplete,
        "report": [*table.report, *predictions.notes],
        **made_by(PROG, list(argv or [])),
    }
    content = write_results(options.output, benchmark, scores, more=more)
    if scores.not_scored:
        say(f"{benchmark.name} is not scored: {scores.not_scored}")
        return 1
    print(render_text(category_table(benchmark, content)))
    say(f"written to {options.output / 'results.json'}")
    return 0


def read_predictions(path: Path, table: Table, *, allow_incomplete: bool = False) -> Predictions:
    """Read a file of JSON lines `{"index", "prediction"}`.

    The text `None` is a prediction like any other; a number stands for itself. Lines for rows that the table lacks, and
    repeated lines, are left out and counted.

    Args:
        path: the file.
        table: whose rows are meant.
        allow_incomplete: leave out lines that cannot be read, and say so, instead of an error.

    Raises:
        UserError: a line cannot be read, or two lines say different things of one row.
    """
    found = _Lines(table)
    try:
        size = path.stat().st_size
        with (
            path.open("rb") as file,
            tqdm(desc="predictions", total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for number, line in enumerate(file, start=1):
                found.take(number, line)
                bar.update(len(line))
    except OSError as error:
        raise UserError(f"--predictions={path} cannot be read: {error.strerror or error}") from error
    if found.broken and not allow_incomplete:
        raise UserError(
            f"{path} holds {counted(sum(map(len, found.broken.values())), 'line')} of no prediction:\n"
            + "\n".join(f"  {reason}: line {listed(lines)}" for reason, lines in found.broken.items())
            + '\neach must be {"index": ..., "prediction": "..."}; mend them, or give --allow-incomplete to leave them '
            "out"
        )
    if found.contradicted:
        raise UserError(
            f"{path} has different predictions for {counted(len(found.contradicted), 'row')}: index "
            f"{listed(found.contradicted)}; which of them count?"
        )
    return Predictions(found.texts, found.notes())


@dataclass
class _Lines:
    table: Table
    texts: dict[Index, str] = field(default_factory=dict)
    broken: dict[str, list[Index]] = field(default_factory=lambda: defaultdict(list))
    unknown: list[Index] = field(default_factory=list)
    repeated: list[Index] = field(default_factory=list)
    contradicted: list[Index] = field(default_factory=list)

    def take(self, number: int, line: bytes) -> None:
        """One line of the file."""
        if not line.strip():
            return
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            self.broken["not JSON"].append(number)
            return
        text = _text(value)
        if not isinstance(value, dict) or "index" not in value or "prediction" not in value:
            self.broken["without index or prediction"].append(number)
        elif text is None:
            self.broken["the prediction is not text"].append(number)
        elif (index := self.table.key(value["index"])) is None:
            self.unknown.append(str(value["index"]))
        elif index not in self.texts:
            self.texts[index] = text
        else:
            (self.repeated if self.texts[index] == text else self.contradicted).append(index)

    def notes(self) -> list[str]:
        """What was left out, in a line each."""
        left_out = {
            "predictions for rows that the table lacks": self.unknown,
            "predictions given twice": self.repeated,
            **{f"lines that are no predictions ({reason})": lines for reason, lines in self.broken.items()},
        }
        return [f"left out, {what}: {len(items)}: {listed(items)}" for what, items in left_out.items() if items]


def _text(value: Any) -> str | None:
    prediction = value.get("prediction") if isinstance(value, dict) else None
    if isinstance(prediction, str):
        # An answer that was cut within an emoji ends with half a surrogate pair, which no file can hold.
        return prediction.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(prediction, (int, float)) and not isinstance(prediction, bool):
        return str(prediction)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("--benchmark", required=True, help="such as MMBench_DEV_EN or MME; decides the rules")
    parser.add_argument("--data", type=Path, help="its TSV file, or a folder with NAME.tsv; default: $LMUData")
    parser.add_argument(
        "--predictions", required=True, type=Path, help='JSON lines of {"index": ..., "prediction": "..."}'
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for results.json and the rows")
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="score what is there where predictions, rotations or answers are missing, and say what was left out",
    )
    add_judge_options(parser)
    return parser
