"""`mosgoat llava train`: one run from a recipe to a measured result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from common.adapters import trainable_fraction
from common.recipes import parse
from common.reporting.ending import Ending, end_run
from common.reporting.labels import method_label
from common.reporting.samples import Samples
from common.training import RunDirectory, fit, is_main, processes
from common.training.data_report import keep_report
from common.training.order import Grouping
from common.training.randomness import seed_everything
from common.training.sharding import require_shardable
from common.write_errors import writing_is_explained
from llava.config import DataConfig, LlavaRecipe, recipe_problems, with_places
from llava.data import Collate, Conversations, LlavaData, PackedSamples, TrainSamples, open_data
from llava.evaluate import validation_loss
from llava.model import LlavaBase, load_model, peft_config, prepare_training, save_run
from llava.objective import LlavaObjective
from llava.samples import answered_questions

PROG = "mosgoat llava train"
PROJECTOR = "multi_modal_projector"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the recipe, train, print the result; exit status 0."""
    recipe = with_places(parse(list(argv or []), LlavaRecipe, prog=PROG, problems=recipe_problems))
    results = train(recipe)
    if is_main():
        print(describe(results, Path(str(recipe.output))))
    return 0


def train(recipe: LlavaRecipe) -> dict[str, Any]:
    """Train one run; a collective call.

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
    if recipe.model.shard:
        require_shardable("model.shard")
    # Rank 0 in every process: all of them make the same projector and the same adapter.
    seed_everything(recipe.seed, rank=0)
    base = load_model(recipe.model, template=recipe.data.template, precision=recipe.train.precision, device=device)
    if recipe.stage == "finetune":
        peft_config(base.llava(), recipe)  # a misspelt layer is told before hours of looking at pictures
    data = open_data(recipe.data, base.tokenizer, image_tokens=base.image_tokens, image_token_id=base.image_token_id)
    processes.on_main(writing_is_explained(run.path)(lambda: keep_report(data.report, run, "conversations")))
    seed_everything(recipe.seed, rank=0)  # again: opening the data draws numbers, or not where an index lies ready
    base = prepare_training(base, recipe)
    if _trains_sight(recipe) and not data.train.has_image.any():
        processes.say(
            "no conversation has a picture: what is trained of the vision tower and the projector learns nothing"
        )
    objective = LlavaObjective(base)
    counts = trainable_fraction(base.model)

    samples = TrainSamples(data.train, base)
    collate = Collate(base.tokenizer.pad_token_id)
    rate = recipe.model.projector_learning_rate
    fitted = fit(
        objective,
        train_dataset=packed(samples, data.train, recipe, base) if recipe.data.batching == "packed" else samples,
        collate=collate,
        config=recipe.train,
        run=run,
        seed=recipe.seed,
        num_workers=recipe.data.num_workers,
        evaluate=_validation(objective, data.validation, base, collate, recipe),
        grouping=grouping(recipe.data, data.train),
        loss_mean=recipe.loss_mean,
        learning_rates={} if rate is None else {PROJECTOR: rate},
        shard=recipe.model.shard,
    )
    metrics: dict[str, Any] = {
        **{key.replace("eval_", "validation_"): value for key, value in fitted.metrics.items()},
        "padding_share": 1 - fitted.metrics["total_tokens"] / fitted.metrics["total_positions"],
        "trainable_parameters": counts.trainable,
        "steps": fitted.steps,
    }
    # before anything else can fail
    processes.on_main(writing_is_explained(run.path)(lambda: save_run(base, run.path)))
    answered = answered_questions(base, objective, data, seed=recipe.seed)
    return end_run(run, lambda: _ending(recipe, base, data, metrics, answered))


def grouping(config: DataConfig, conversations: Conversations) -> Grouping | None:
    """Which conversations share a batch."""
    if config.batching == "length":
        return Grouping(conversations.lengths)
    if config.batching == "modality_length":
        return Grouping(conversations.lengths, conversations.has_image.astype("int64"))
    return None


def packed(samples: TrainSamples, conversations: Conversations, recipe: LlavaRecipe, base: LlavaBase) -> PackedSamples:
    """The conversations several to a row."""
    length = recipe.data.packed_length or 2 * (recipe.data.max_text_tokens + base.image_tokens)
    rows = PackedSamples(samples, conversations.lengths, length, recipe.seed)
    processes.say(f"packed {len(samples):,} conversations into {len(rows):,} rows of at most {length:,} tokens")
    return rows


def describe(results: dict[str, Any], output: Path) -> str:
    """A finished run in a few lines."""
    metrics = results["metrics"]
    lines = [
        f"{results['method']} on {results['n']:,} conversations, seed {results['seed']}",
        f"  mean training loss   {metrics['train_loss']:.4f}",
    ]
    if "validation_loss" in metrics:
        lines.append(
            f"  validation           loss {metrics['validation_loss']:.4f}, "
            f"{metrics['validation_token_accuracy']:.2%} of the tokens right"
        )
    lines += [
        f"  trained parameters   {metrics['trainable_parameters']:,}",
        f"  training             {metrics['train_seconds']:.1f} s, {metrics['tokens_per_second']:,.0f} tokens/s "
        f"({metrics['supervised_tokens_per_second']:,.0f} supervised)",
        f"  padding              {metrics['padding_share']:.1%} of all positions",
        f"  peak memory          {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    if results["skipped"]:
        lines.append(f"  left out             conversations: {results['skipped']:,}, see {output}/data_report.json")
    return "\n".join([*lines, f"  everything is in     {output}"])


def _trains_sight(recipe: LlavaRecipe) -> bool:
    return recipe.model.train_projector or recipe.tower.adapt


def _validation(
    objective: LlavaObjective,
    conversations: Conversations | None,
    base: LlavaBase,
    collate: Collate,
    recipe: LlavaRecipe,
) -> Callable[[int], dict[str, float]] | None:
    if conversations is None:
        return None
    samples = TrainSamples(conversations, base)
    share = processes.world_size() * recipe.train.gradient_accumulation_steps
    return lambda step: validation_loss(
        objective,
        base,
        samples,
        collate,
        lengths=conversations.lengths.tolist(),
        batch_size=max(1, recipe.train.batch_size // share),
        num_workers=recipe.data.num_workers,
    )


def _ending(recipe: LlavaRecipe, base: LlavaBase, data: LlavaData, metrics: dict[str, Any], samples: Samples) -> Ending:
    """What a trained model leaves beside its weights."""
    pretrained = recipe.stage == "pretrain"
    results = {
        "task": "llava",
        "dataset": Path(str(recipe.data.path)).stem,
        "method": "projector" if pretrained else recipe.adapter.method,
        "metrics": metrics,
        "n": len(data.train),
        "skipped": len(data.report.skipped),
        "seed": recipe.seed,
    }
    return Ending("projector" if pretrained else method_label(recipe.adapter.method), base.model, results, samples)
