"""`mosgoat dreambooth train`: one run from a recipe to a measured result, or one for each of several subjects."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from common.adapters import trainable_fraction
from common.errors import UserError
from common.recipes import parse
from common.reporting.ending import Ending, end_run
from common.reporting.labels import method_label
from common.training import RunDirectory, fit, is_main, processes
from common.training.data_report import keep_report
from common.training.randomness import seed_everything
from common.words import did_you_mean
from common.write_errors import writing_is_explained
from dreambooth.command_line import expand
from dreambooth.config import DreamboothRecipe, recipe_problems, with_places
from dreambooth.data import Collate, DreamboothData, open_data, subject_names
from dreambooth.lender import Lender
from dreambooth.model import SdxlBase, check_adapters, prepare_training, save_run
from dreambooth.noise import WithNoise
from dreambooth.objective import DenoisingObjective
from dreambooth.validation import Validation, last_drawn

PROG = "mosgoat dreambooth train"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the recipe, train, print the results; exit status 0, or 1 if the runs of some subjects failed."""
    words, subjects = expand(list(argv or []))
    recipe = parse(words, DreamboothRecipe, prog=PROG, problems=recipe_problems)
    if subjects is not None:
        return train_subjects(recipe, subjects)
    recipe = with_places(recipe)
    results = train(recipe)
    if is_main():
        print(describe(results, Path(str(recipe.output))))
    return 0


def train_subjects(recipe: DreamboothRecipe, subjects: Sequence[str]) -> int:
    """Train a run for each of several subjects, one after another; a collective call.

    A run that fails is named, and the others are trained; one that is finished is not trained again. The model is
    loaded once, the class pictures and all that is cached are shared.

    Args:
        recipe: a sound recipe whose `data.path` holds a folder of pictures for each subject; `output/SUBJECT` is the
            run directory of a subject.
        subjects: their names; empty: all that there are.

    Returns:
        0, or 1 if any has failed.

    Raises:
        UserError: a subject that is not there, or something that concerns all of them.
    """
    there = subject_names(str(recipe.data.path))
    for name in subjects:
        if name not in there:
            raise UserError(f"--subjects: {recipe.data.path} has no subject {name}; {did_you_mean(name, there)}")
    output = Path(recipe.output or f"runs/dreambooth-{recipe.adapter.method}-seed{recipe.seed}")
    lender, failed = Lender(keeps=True), []
    for name in subjects or there:
        own = with_places(replace(recipe, output=str(output / name), data=replace(recipe.data, subject=name)))
        results = _train_one(name, own, lender)
        if results is None:
            failed.append(name)
            lender.forget()  # who knows in what state the model is
        elif is_main():
            print(describe(results, Path(str(own.output))))
    if failed:
        processes.say(
            f"{len(failed)} of {len(subjects or there)} subjects failed: {', '.join(failed)}; the same command tries "
            "them again, and only them"
        )
    return 1 if failed else 0


def _train_one(name: str, recipe: DreamboothRecipe, lender: Lender) -> dict[str, Any] | None:
    """Train one subject of several; None, with the reason told, if it failed.

    With several processes only errors of the user's making, which all of them meet, are passed over:
    after any other the processes are no longer in step, and torchrun has to end them.
    """
    try:
        return train(recipe, lender)
    except UserError as error:
        message = str(error)
    except Exception as error:
        if processes.world_size() > 1:
            raise
        if not isinstance(error, torch.OutOfMemoryError):
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    processes.say(f"{name}: {message}")
    return None


def train(recipe: DreamboothRecipe, lender: Lender | None = None) -> dict[str, Any]:
    """Train one run; a collective call.

    Args:
        recipe: a sound recipe.
        lender: has the model, if it was loaded before; none given: it is loaded.

    Returns:
        The content of the run's `results.json`; that of a finished run, if `output` holds one of this recipe.

    Raises:
        UserError: something in the recipe, the data, the model or the directory that the user must mend.
    """
    recipe, lender = with_places(recipe), lender or Lender()
    run = RunDirectory.create(str(recipe.output), recipe, resume=recipe.resume, overwrite=recipe.overwrite)
    if run.state == "finished":
        processes.say(f"{run.path} is finished; --overwrite true trains it anew")
        return run.read_results()

    base = lender.lend(recipe.model, recipe.train.precision, PartialState().device)
    require_fitting_size(base, recipe)
    check_adapters(base, recipe)  # a misspelt layer is told before minutes of drawing class pictures
    data = open_data(base, recipe)
    processes.on_main(writing_is_explained(run.path)(lambda: keep_report(data.report, run, "pictures")))
    draws = recipe.validation.prompts is not None
    validation = Validation(base, recipe, data.subject.class_word, run.path) if draws else None
    lender.put_aside(vae=True, vae_returns=draws, text_encoders=not recipe.text_encoder.train)

    # Rank 0 in every process: all of them make the same adapter.
    seed_everything(recipe.seed, rank=0)
    prepare_training(base, recipe)
    objective = DenoisingObjective(base, recipe.loss, recipe.prior.weight)
    counts, rate = trainable_fraction(objective), recipe.text_encoder.learning_rate
    fitted = fit(
        objective,
        train_dataset=data.samples,
        collate=WithNoise(Collate(), timesteps=len(objective.alphas_cumprod)),
        # diffusers compiles the repeated blocks alone, see `prepare_training`
        config=replace(recipe.train, compile=False),
        run=run,
        seed=recipe.seed,
        num_workers=recipe.data.num_workers,
        evaluate=validation,
        learning_rates={} if rate is None else {"text_encoder": rate},
    )
    metrics = {
        **{key.replace("eval_", "validation_"): value for key, value in fitted.metrics.items()},
        "trainable_parameters": counts.trainable,
        "steps": fitted.steps,
        "samples": fitted.samples,
    }
    results = end_run(run, lambda: _save(recipe, run, base, data, metrics))
    lender.take_back()
    return results


def require_fitting_size(base: SdxlBase, recipe: DreamboothRecipe) -> None:
    """Raise `UserError` for pictures of a size that the model cannot make."""
    size, multiple = recipe.data.resolution, base.size_multiple
    if size % multiple:
        near = max(multiple, round(size / multiple) * multiple)
        raise UserError(
            f"data.resolution={size} is not a multiple of {multiple} pixels, which the model needs; use {near}"
        )


def describe(results: dict[str, Any], output: Path) -> str:
    """A finished run in a few lines."""
    metrics = results["metrics"]
    lines = [
        f"{results['method']} on {results['n']} pictures of {results['dataset']}, a {results['class_word']}, "
        f"seed {results['seed']}",
        f"  mean training loss   {metrics['train_loss']:.4f}",
        f"  trained parameters   {metrics['trainable_parameters']:,}",
        f"  training             {metrics['train_seconds']:.1f} s, {metrics['steps']} steps, "
        f"{metrics['samples_per_second']:.2f} samples/s",
        f"  peak memory          {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    if results["skipped"]:
        lines.append(f"  left out             pictures: {results['skipped']}, see {output}/data_report.json")
    return "\n".join([*lines, f"  everything is in     {output}"])


def _save(
    recipe: DreamboothRecipe, run: RunDirectory, base: SdxlBase, data: DreamboothData, metrics: dict[str, Any]
) -> Ending:
    """Put the trained weights into the run."""
    about = {"subject": data.subject.name, "class_word": data.subject.class_word, "token": recipe.data.token}
    save_run(base, run.path, **about)
    results = {
        "task": "dreambooth",
        "dataset": data.subject.name,
        "method": recipe.adapter.method,
        "metrics": metrics,
        "n": len(data.subject.pictures),
        "skipped": len(data.report.skipped),
        "seed": recipe.seed,
        "class_word": data.subject.class_word,
        "token": recipe.data.token,
    }
    adapters = nn.ModuleDict(dict(base.adapters.items()))
    samples = last_drawn(run.path, recipe, data.subject.class_word)
    return Ending(method_label(recipe.adapter.method), adapters, results, samples)
