"""`mosgoat vit train`: one run from a recipe to a measured result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from common.adapters import GOAT_TABLE_1_PARAMETERS, reset_router_load, router_load, trainable_fraction
from common.config import TrainConfig
from common.errors import UserError
from common.files import write_json
from common.recipes import parse
from common.reporting.adapter_plots import plot_router_load
from common.reporting.ending import Ending, end_run
from common.reporting.labels import method_label
from common.training import RunDirectory, fit, is_main, processes
from common.training.data_report import keep_report
from common.training.randomness import seed_everything
from common.write_errors import writing_is_explained
from vit_classify.config import VitRecipe, recipe_problems, with_places
from vit_classify.data import DeviceTransform, EvalImages, Split, TrainImages, VitData, collate, open_data
from vit_classify.evaluate import Predictions, evaluate
from vit_classify.model import VitClassifier, load_model, prepare_training, save_run
from vit_classify.objective import ClassificationObjective
from vit_classify.results import write_image_results
from vit_classify.samples import labelled_pictures

PROG = "mosgoat vit train"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the recipe, train, print the result; exit status 0."""
    recipe = with_places(parse(list(argv or []), VitRecipe, prog=PROG, problems=recipe_problems))
    results = train(recipe)
    if is_main():
        print(describe(results, Path(str(recipe.output))))
    return 0


def train(recipe: VitRecipe) -> dict[str, Any]:
    """Train one run and measure it on the test split; a collective call.

    Args:
        recipe: a sound recipe.

    Returns:
        The content of the run's `results.json`; that of a finished run, if `output` holds one of this recipe.

    Raises:
        UserError: something in the recipe, the data, the model or the directory that the user must mend.
    """
    recipe = with_places(recipe)
    run = RunDirectory.create(str(recipe.output), recipe, resume=recipe.resume, overwrite=recipe.overwrite)
    if run.state == "finished":
        processes.say(f"{run.path} is finished; --overwrite true trains it anew")
        return run.read_results()

    device = PartialState().device
    data = open_data(recipe.data)
    processes.on_main(writing_is_explained(run.path)(lambda: keep_report(data.report, run, "pictures")))
    classifier = load_model(recipe.model, data.class_names, data.templates, seed=recipe.seed, device=device)
    transform = DeviceTransform(classifier.image_size, classifier.mean, classifier.std)

    def measure(split: Split, name: str) -> Predictions:
        pictures = EvalImages(split, split.store, classifier.image_size)
        return evaluate(
            classifier,
            transform,
            pictures,
            num_workers=recipe.data.num_workers,
            precision=recipe.train.precision,
            description=name,
        )

    # A new linear head knows nothing before training; the frozen text features do.
    before = measure(data.test, "zero-shot").top1 if recipe.model.head == "zero_shot" else None
    if before is not None:
        processes.say(f"zero-shot accuracy on the test split: {before:.2%}")

    def validate(_: int) -> dict[str, float]:
        return {"accuracy": measure(data.validation, "validation").top1}

    # Rank 0 in every process: all of them make the same adapter.
    seed_everything(recipe.seed, rank=0)
    prepare_training(classifier, recipe.adapter, recipe.train.precision, recipe.train.gradient_checkpointing)
    counts = trainable_fraction(classifier.tower, total=GOAT_TABLE_1_PARAMETERS)
    fitted = fit(
        ClassificationObjective(classifier, transform),
        train_dataset=TrainImages(data.train, data.train.store, classifier.image_size, recipe.seed),
        collate=collate,
        config=_with_length(recipe.train, data),
        run=run,
        seed=recipe.seed,
        num_workers=recipe.data.num_workers,
        evaluate=validate if len(data.validation) else None,
    )

    reset_router_load(classifier)
    predictions = measure(data.test, "test")
    load = _mean_router_load(classifier)
    metrics: dict[str, Any] = {
        **({} if before is None else {"zero_shot_accuracy": before}),
        **{key.replace("eval_", "validation_"): value for key, value in fitted.metrics.items()},
        "trainable_parameters": counts.trainable,
        "steps": fitted.steps,
    }
    return end_run(run, lambda: _save(recipe, run, data, classifier, predictions, load, metrics))


def describe(results: dict[str, Any], output: Path) -> str:
    """A finished run in a few lines."""
    metrics = results["metrics"]
    lines = [f"{results['method']} on {results['dataset']}, {results['head']} head, seed {results['seed']}"]
    if "zero_shot_accuracy" in metrics:
        lines.append(f"  zero-shot accuracy   {metrics['zero_shot_accuracy']:.2%}")
    lines += [
        f"  test accuracy        {metrics['accuracy']:.2%} of {results['n']} pictures",
        f"  trained parameters   {metrics['trainable_parameters']:,} beside the head",
        f"  training             {metrics['train_seconds']:.1f} s, {metrics['samples_per_second']:.0f} pictures/s",
        f"  peak memory          {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    if results["skipped"]:
        lines.append(f"  left out             {results['skipped']} unreadable pictures, see {output}/data_report.json")
    return "\n".join([*lines, f"  everything is in     {output}"])


def _with_length(config: TrainConfig, data: VitData) -> TrainConfig:
    if config.epochs is not None or config.max_steps is not None:
        return config
    if data.epochs is None:
        raise UserError(
            f"data.name={data.name} is not one of the paper's sets, which bring their number of epochs; "
            "give train.epochs or train.max_steps"
        )
    return dataclasses.replace(config, epochs=data.epochs)


def _mean_router_load(classifier: VitClassifier) -> dict[str, list[float]]:
    """Each expert's share of the routed slots by layer ([G] Figure 7), the mean over processes."""
    shares = processes.gather({name: share.tolist() for name, share in router_load(classifier).items()})
    return {name: np.mean([share[name] for share in shares if name in share], axis=0).tolist() for name in shares[0]}


def _save(
    recipe: VitRecipe,
    run: RunDirectory,
    data: VitData,
    classifier: VitClassifier,
    predictions: Predictions,
    load: dict[str, list[float]],
    metrics: dict[str, Any],
) -> Ending:
    """Put the trained weights, predictions and router load into the run."""
    save_run(classifier, run.path)
    pictures = [data.test.describe(i) for i in range(len(data.test))]
    measured = write_image_results(run.path, predictions, class_names=data.class_names, pictures=pictures)
    if load:
        write_json(run.path / "router_load.json", load)
        plot_router_load(run.plots / "router_load.png", load)
    results = {
        "task": "vit_classify",
        "dataset": data.name,
        "method": recipe.adapter.method,
        "head": recipe.model.head,
        "metrics": {**measured, **metrics},
        "n": len(data.test),
        "skipped": len(data.report.skipped),
        "seed": recipe.seed,
    }
    samples = labelled_pictures(data.test, predictions, data.class_names, seed=recipe.seed)
    return Ending(method_label(recipe.adapter.method), classifier, results, samples)
