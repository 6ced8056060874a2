"""`fit`: train an objective, exactly resumable, on one process or many."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as library_logging

from common.config import LossMean, TrainConfig
from common.devices import require_compiler
from common.errors import UserError
from common.training import callbacks, processes, randomness
from common.training.arguments import Plan, make_plan, training_arguments
from common.training.checkpoint import read_manifest, step_of
from common.training.clock import peak_memory_bytes
from common.training.loader import TrainBatches, workers_for
from common.training.order import Grouping, SampleDataset, ShareSampler
from common.training.run import RunDirectory
from common.training.sharding import require_known_deepspeed, require_no_fsdp, shard_frozen
from common.training.state import count_parameters, trained_state
from common.training.trainer import Evaluate, MosgoatTrainer
from common.write_errors import explain_write_error, is_full

SIGTERM_STATUS = 143  # 128 + SIGTERM, as a shell reports it


class Terminated(SystemExit):
    """The run got SIGTERM and ended after a checkpoint; the process is to exit with status 143."""

    def __init__(self, message: str) -> None:
        super().__init__(SIGTERM_STATUS)
        self.message = message


@dataclass(frozen=True)
class TrainResult:
    """What a finished training has to say.

    Args:
        steps: optimizer steps, those before a resume included.
        samples: samples in these steps.
        metrics: `train_loss` (mean over all steps), `train_seconds` (evaluation and checkpoints left out, those
            before a resume included), `samples_per_second` (of all processes together, since this start),
            `peak_memory_bytes` (of the process that took most), `total_X` and `X_per_second` for what the objective
            counts, and the last evaluation's `eval_*`.
    """

    steps: int
    samples: int
    metrics: dict[str, float]


def fit(
    objective: nn.Module,
    *,
    train_dataset: SampleDataset,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    config: TrainConfig,
    run: RunDirectory,
    seed: int,
    num_workers: int | None = None,
    evaluate: Evaluate | None = None,
    grouping: Grouping | None = None,
    loss_mean: LossMean = "global_batch",
    learning_rates: Mapping[str, float] | None = None,
    shard: bool = False,
) -> TrainResult:
    """Train `objective` until the recipe's end, from the checkpoint of `run` if it has one; a collective call.

    In float32 and without dropout, N samples at once, in micro-batches, and over processes give the same
    losses and weights up to rounding, but for the balance loss of routed adapters: it is a product of two means
    over a micro-batch. Resuming with as many processes is exact to the bit wherever the kernels are.

    Args:
        objective: `forward(**batch, num_items_in_batch=N)` returns a dict with `loss`, the sum over the
            batch's supervised items (labels != -100) divided by N, a 0-dim tensor; further 0-dim tensors are
            metrics, means over the supervised items; a dict `counts` of 0-dim tensors, such as tokens, is summed
            over everything and logged per second. A batch without a supervised item must give loss 0.
            Trained is what `requires_grad`.
        train_dataset: `train_dataset[(epoch, index)]` gives a sample, always the same for the same key.
        collate: samples -> dict of tensors with `labels`, supervised where != -100.
        config: the recipe's `train` section, with `epochs` or `max_steps` set.
        run: the run directory, `new` or `resumed`.
        seed: seeds the data order and all that is random in training.
        num_workers: processes that load data; none given: `default_workers()`.
        evaluate: measures the objective, told how many steps are done, in every process at the same steps: at multiples
            of `config.evaluate_every` and after the last step. It leaves no trace in the training.
        grouping: which samples share a batch; none given: a plain permutation.
        loss_mean: `global_batch`: the loss of a step is the mean over all its supervised items; `micro_batch`: the
            mean of its micro-batches' means (an empty one counts as 0), which depends on how a step is divided.
        learning_rates: part of a parameter's name -> its own peak learning rate, on the same schedule.
        shard: divide the frozen weights among the processes; from then on they serve `objective.forward` alone.

    Returns:
        The figures of the run, the same in every process.

    Raises:
        UserError: an impossible setting, a checkpoint of another model, a loss that is not finite, no space.
        Terminated: SIGTERM came; a checkpoint was taken unless `config.save_every` is 0.
    """
    assert run.state != "finished", "a finished run is reported, not trained again"
    require_no_fsdp()
    if config.compile:
        require_compiler()
    processes.start()
    plan = make_plan(config, len(train_dataset), seed, processes.world_size(), grouping)
    if run.checkpoint is not None and loss_mean == "micro_batch":
        _require_as_many_micro_batches(run.checkpoint, config)
    batches = _batches(train_dataset, collate, config, plan, run, seed, workers_for(num_workers))
    verbosity = library_logging.get_verbosity()
    sigterm, progress = callbacks.StopOnSigterm(saves=config.save_every > 0), callbacks.Progress()
    trainer = _trainer(
        objective, config, plan, run, seed, batches, evaluate, [sigterm, progress], loss_mean, learning_rates or {}
    )
    trainer.add_callback(_Begin(trainer, run.checkpoint, shard))
    if note := require_known_deepspeed(trainer.accelerator.state.deepspeed_plugin, shard):
        processes.say(note)
    processes.say(_opening(objective, config, plan, run.checkpoint, trainer.args.device))
    try:
        sigterm.install()
        _train(trainer, run, plan, seed)
    finally:
        sigterm.remove()
        progress.close()
        batches.close()
        library_logging.set_verbosity(verbosity)
        _give_back(objective)
    sigterm.close()
    if sigterm.stopped:
        _terminate(trainer.state.global_step, plan, saved=config.save_every > 0)
    return _result(trainer, plan)


def _require_as_many_micro_batches(checkpoint: Path, config: TrainConfig) -> None:
    # The mean of means depends on how a step is divided, and accumulation and processes may change in a resume.
    before = read_manifest(checkpoint).get("micro_batches")
    processes_used, accumulation = processes.world_size(), config.gradient_accumulation_steps
    now = processes_used * accumulation
    if before is None or before == now:
        return
    fits, rest = divmod(before, processes_used)
    way = f"train.gradient_accumulation_steps={fits}" if not rest else f"a number of processes that divides {before}"
    raise UserError(
        f"{checkpoint} was trained with loss_mean=micro_batch and {before} micro-batches in a step; "
        f"train.gradient_accumulation_steps={accumulation} x {processes_used} processes makes {now}, whose loss is "
        f"another. Use {way}, or begin a new run"
    )


def _batches(
    dataset: SampleDataset,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    config: TrainConfig,
    plan: Plan,
    run: RunDirectory,
    seed: int,
    num_workers: int,
) -> TrainBatches:
    sampler = ShareSampler(
        plan.order,
        first_step=step_of(run.checkpoint) if run.checkpoint else 0,
        last_step=plan.steps,
        accumulation=config.gradient_accumulation_steps,
        rank=processes.rank(),
        world_size=processes.world_size(),
    )
    pinned = torch.cuda.is_available()
    return TrainBatches(dataset, collate, sampler, num_workers=num_workers, seed=seed, pin_memory=pinned)


def _trainer(
    objective: nn.Module,
    config: TrainConfig,
    plan: Plan,
    run: RunDirectory,
    seed: int,
    batches: TrainBatches,
    evaluate: Evaluate | None,
    beside: list[TrainerCallback],
    loss_mean: LossMean,
    learning_rates: Mapping[str, float],
) -> MosgoatTrainer:
    resumed_step = step_of(run.checkpoint) if run.checkpoint else 0
    trainer = MosgoatTrainer(
        objective,
        training_arguments(config, plan, run, seed),
        batches=batches,
        order=plan.order,
        run=run,
        keep_checkpoints=config.keep_checkpoints,
        evaluate=evaluate,
        loss_mean=loss_mean,
        learning_rates=learning_rates,
        callbacks=[
            callbacks.Cadence(plan.order.steps_per_epoch, config.evaluate_every, evaluate is not None),
            *beside,
            callbacks.MetricsFile(run.metrics),
            *callbacks.tracker_callbacks(config.trackers, run.tensorboard, resumed_step),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Begin(TrainerCallback):
    def __init__(self, trainer: MosgoatTrainer, checkpoint: Path | None, shard: bool) -> None:
        self._trainer, self._checkpoint, self._shard = trainer, checkpoint, shard

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.restore_progress(self._checkpoint)
        if self._shard:
            frozen = shard_frozen(self._trainer.model)
            processes.say(f"divided {frozen:,} frozen parameters among {processes.world_size()} processes (FSDP2)")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.schedule.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.schedule.after_step(state.global_step + 1)


def _train(trainer: MosgoatTrainer, run: RunDirectory, plan: Plan, seed: int) -> None:
    randomness.seed_everything(seed, processes.rank())
    if run.checkpoint is not None and step_of(run.checkpoint) >= plan.steps:
        trainer.load_finished(run.checkpoint)  # killed between its last checkpoint and its results
        return
    _same_everywhere(trainer.model)
    try:
        with warnings.catch_warnings():
            # torch 2.14's new name for it cannot be passed through the Trainer.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(explain_write_error(error, run.path)) from error
    except torch.OutOfMemoryError as error:
        advice = _out_of_memory(trainer, plan)
        if processes.world_size() > 1:  # the others know nothing of it, and torchrun has to end them
            error.add_note(advice)
            raise
        raise UserError(advice) from error
    trainer.clock.stop()
    trainer.require_finite()


def _out_of_memory(trainer: MosgoatTrainer, plan: Plan) -> str:
    return (
        f"out of memory after step {trainer.state.global_step} of {plan.steps}, with micro-batches of "
        f"{plan.micro_batch_size}; raise train.gradient_accumulation_steps (the same numbers in smaller micro-batches) "
        "or set train.gradient_checkpointing=true. `mosgoat params --memory` counts what a step needs"
    )


def _give_back(objective: nn.Module) -> None:
    # The library leaves autocast around `forward`, and a mark by which another training would not wrap it again.
    for name in ("forward", "_original_forward", "_is_accelerate_prepared", "_is_torch_compile"):
        vars(objective).pop(name, None)


def _same_everywhere(objective: nn.Module) -> None:
    # DDP equalises parameters; the frozen tensors of adapters are buffers, which it is told to leave alone.
    if processes.world_size() > 1:
        for tensor in trained_state(objective).values():
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)


def _result(trainer: MosgoatTrainer, plan: Plan) -> TrainResult:
    samples = plan.order.samples_before(plan.steps)
    metrics = {
        "train_loss": trainer.loss_sum / plan.steps,
        "train_seconds": max(processes.gather(trainer.clock.seconds)),
        "samples_per_second": trainer.clock.rate(),
        "peak_memory_bytes": float(peak_memory_bytes()),
        **{f"total_{name}": value for name, value in trainer.counts.items()},
        **{f"{name}_per_second": value / samples * trainer.clock.rate() for name, value in trainer.counts.items()},
        **trainer.last_evaluation,
    }
    processes.say(
        f"trained {plan.steps} steps in {metrics['train_seconds']:.1f} s: mean loss {metrics['train_loss']:.4g}, "
        f"{metrics['samples_per_second']:.1f} samples/s, {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    return TrainResult(plan.steps, samples, metrics)


def _terminate(step: int, plan: Plan, saved: bool) -> None:
    way = "a checkpoint was saved, resume=auto goes on" if saved else "train.save_every=0: nothing was saved"
    message = f"stopped by SIGTERM after step {step} of {plan.steps}; {way}"
    processes.say(message)
    raise Terminated(message)


def _opening(
    objective: nn.Module, config: TrainConfig, plan: Plan, checkpoint: Path | None, device: torch.device
) -> str:
    trained, total = count_parameters(objective)
    if not trained:
        raise UserError("nothing is trained: no parameter of the objective has requires_grad")
    processes_used, accumulation = processes.world_size(), config.gradient_accumulation_steps
    shares = " x ".join(str(n) for n in (processes_used, accumulation, plan.micro_batch_size))
    line = (
        f"training {trained:,} of {total:,} parameters: {plan.steps} steps of {config.batch_size} samples "
        f"({shares}: processes x accumulation x micro-batch), {config.precision} on {device.type}"
    )
    if checkpoint:
        line += f", from step {step_of(checkpoint)}"
        before = read_manifest(checkpoint)["world_size"]
        if before != processes_used:
            line += f" (saved by {before} processes: the order of the data stays, dropout draws anew)"
    visible = torch.cuda.device_count()
    if processes_used == 1 and visible > 1:
        line += f"; {visible} GPUs are visible and one is used, start with torchrun to use all"
    return line
