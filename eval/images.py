"""`mosgoat eval images`: measure a finished run of `vit_classify` on a split of its own or of other pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from common.commands import require_between
from common.errors import UserError
from common.files import write_json
from common.recipes import parse
from common.reporting.runs import Run, read_json, read_run
from common.reporting.tables import render_text
from common.training import processes
from common.training.environment import made_by
from common.words import counted, listed
from common.write_errors import writing_is_explained
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.data import DeviceTransform, EvalImages, VitData, open_data
from vit_classify.evaluate import Predictions, evaluate
from vit_classify.model import load_run
from vit_classify.results import worst_classes, write_image_results

PROG = "mosgoat eval images"
PREFIX = "eval_images"


@dataclass(frozen=True)
class Measurement:
    """What is to be measured.

    Args:
        run: directory of the finished run.
        recipe: its recipe, with the data section as it is to be measured on.
        split: which pictures.
        batch_size: pictures at once in one process.
        output: where the files go; the run directory unless told otherwise.
        overwrite: replace the measurement of another split or source that is there.
        command: the words that asked for it.
    """

    run: Path
    recipe: VitRecipe
    split: str
    batch_size: int
    output: Path
    overwrite: bool
    command: Sequence[str] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, measure, print; returns the exit status."""
    measure(read_arguments(list(argv or [])))
    return 0


def read_arguments(argv: Sequence[str]) -> Measurement:
    """The command line as a `Measurement`.

    Raises:
        UserError: an option that does not exist or has no effect here, or a run that cannot be measured.
    """
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.usage = f"{PROG} --run RUN [--split test|validation] [--batch-size N] [--output DIR] [--data.KEY VALUE ...]"
    parser.epilog = (
        "--data.KEY: any key of the recipe's data section; replaces the run's own for this measurement. Several GPUs: "
        "torchrun --nproc-per-node 4 -m -- common.cli eval images --run RUN (without the -- torchrun takes --run "
        "for an option of its own)."
    )
    parser.add_argument("--run", required=True, type=Path, help="directory of a finished run")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: test")
    parser.add_argument("--batch-size", type=int, default=256, help="pictures at once; default: 256")
    parser.add_argument("--output", type=Path, help="folder for the files; default: the run directory")
    parser.add_argument("--overwrite", action="store_true", help="replace another measurement in the output folder")
    options, rest = parser.parse_known_args(argv)
    require_between("--batch-size", options.batch_size)
    foreign = [word for word in rest if word.startswith("--") and not word.startswith("--data.")]
    if foreign:
        raise UserError(
            f"unknown option {foreign[0]}; {PROG} takes --run, --split, --batch-size, --output, --overwrite and "
            "--data.KEY. The model and its adapter are those of the run"
        )
    require_vit_run(read_run(options.run))
    recipe = parse(
        ["--config", str(options.run / "config.yaml"), *rest], VitRecipe, prog=PROG, problems=recipe_problems
    )
    return Measurement(
        options.run,
        recipe,
        options.split,
        options.batch_size,
        options.output or options.run,
        options.overwrite,
        argv,
    )


def require_vit_run(run: Run) -> None:
    """Refuse the run of another pipeline, naming it."""
    task = run.results.get("task")
    if task != "vit_classify":
        raise UserError(f"{run.path} is a run of {task}, not of vit_classify; `mosgoat --help` lists what measures it")


def measure(job: Measurement) -> dict[str, Any]:
    """Measure, write `eval_images.json`, the predictions and the confusion matrix, and print the outcome.

    Under torchrun every process measures its share and the main one writes; a collective call.

    Returns:
        The content of `eval_images.json`.

    Raises:
        UserError: the run or the pictures cannot be used; other classes than the head's are named.
    """
    processes.start()
    source = source_of(job)
    processes.on_main(lambda: refuse_overwriting(job, source))
    classifier = load_run(job.run, device=PartialState().device)
    data = open_data(job.recipe.data)
    require_same_classes(data.class_names, classifier.head.class_names, job)
    split = data.test if job.split == "test" else data.validation
    if not len(split):
        raise UserError(f"{data.name} has no {job.split} pictures; use --split test")
    dataset = EvalImages(split, split.store, classifier.image_size)
    transform = DeviceTransform(classifier.image_size, classifier.mean, classifier.std)
    predictions = evaluate(
        classifier,
        transform,
        dataset,
        job.batch_size,
        job.recipe.data.num_workers,
        job.recipe.train.precision,
        description=f"{data.name} {job.split}",
    )
    explained = writing_is_explained(job.output)(write)
    return processes.on_main(lambda: explained(job, source, data, predictions, classifier.head.class_names))


def source_of(job: Measurement) -> dict[str, Any]:
    """What a measurement is about: two with the same give the same numbers."""
    data = job.recipe.data
    return {"run": str(job.run.resolve()), "dataset": data.name, "source": data.source, "split": job.split}


def refuse_overwriting(job: Measurement, source: dict[str, Any]) -> None:
    """Refuse to replace the measurement of something else without being told to."""
    file = job.output / f"{PREFIX}.json"
    if job.overwrite or not file.is_file():
        return
    old = read_json(file)
    different = [key for key, value in source.items() if old.get(key) != value]
    if different:
        told = "; ".join(f"{key}: {old.get(key)} there, {source[key]} now" for key in different)
        raise UserError(f"{file} holds another measurement ({told}); give another --output, or --overwrite")


def require_same_classes(found: Sequence[str], known: Sequence[str], job: Measurement) -> None:
    """Refuse pictures whose classes are not those of the run's head, naming the difference."""
    if list(found) == list(known):
        return
    where = job.recipe.data.source or job.recipe.data.name
    missing, foreign = ([name for name in a if name not in b] for a, b in ((known, found), (found, known)))
    if not missing and not foreign:
        first = next(i for i, pair in enumerate(zip(found, known, strict=False)) if pair[0] != pair[1])
        raise UserError(
            f"{where} has the classes of the run {job.run} in another order: class {first} is {found[first]} there "
            f"and {known[first]} in the run; a folder per class keeps the order"
        )
    parts = [
        f"{len(names)} {text}: {listed(names, 6)}"
        for names, text in ((missing, "of the run are not there"), (foreign, "are unknown to the run"))
        if names
    ]
    raise UserError(
        f"{where} has other classes than the run {job.run} was trained for ({len(found)} and {len(known)}); "
        f"{'; '.join(parts)}. Measure on the same classes, or train a run for these"
    )


def write(
    job: Measurement, source: dict[str, Any], data: VitData, predictions: Predictions, class_names: Sequence[str]
) -> dict[str, Any]:
    """Write the files, print the summary; the main process only."""
    split = data.test if job.split == "test" else data.validation
    percent = f"{predictions.top1:.2%}"
    metrics = write_image_results(
        job.output,
        predictions,
        class_names=class_names,
        pictures=[split.describe(i) for i in range(len(split))],
        prefix=f"{PREFIX}_",
        title=f"{data.name}, {job.split}: top-1 {percent}",
    )
    trained = read_json(job.run / "results.json")
    results = {
        "task": "vit_classify",
        **source,
        **{key: trained[key] for key in ("method", "head", "config_hash", "seed") if key in trained},
        "metrics": metrics,
        "n": len(predictions.labels),
        "skipped": len(data.report.skipped),
        "skipped_pictures": [list(pair) for pair in data.report.skipped],
        "warnings": data.report.warnings,
        **made_by(PROG, job.command),
    }
    write_json(job.output / f"{PREFIX}.json", results)
    pictures = counted(len(predictions.labels), "picture")
    print(f"{data.name}, {job.split}: top-1 accuracy {percent} of {pictures}")
    if data.report.skipped:
        unreadable = counted(len(data.report.skipped), "unreadable picture")
        print(f"left out: {unreadable} of the set; {PREFIX}.json names them")
    for warning in data.report.warnings:
        print(f"warning: {warning}")
    worst = worst_classes(predictions, class_names)
    if worst.rows:
        print(f"\n{render_text(worst)}\n")
    print(f"written to {job.output}: {PREFIX}.json, {PREFIX}_predictions.csv, plots/{PREFIX}_confusion.png")
    return results
