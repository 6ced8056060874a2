"""From a recipe's `train` section to the library's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from common.config import TrainConfig
from common.errors import UserError
from common.training.order import EpochOrder, Grouping
from common.training.run import RunDirectory

# "constant" of the library ignores the warm-up.
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Plan:
    """How much is trained and how it is divided.

    Args:
        order: the global batches.
        steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warm-up.
        micro_batch_size: most samples of one process in one forward.
    """

    order: EpochOrder
    steps: int
    warmup_steps: int
    micro_batch_size: int


def make_plan(config: TrainConfig, samples: int, seed: int, world_size: int, grouping: Grouping | None = None) -> Plan:
    """Work out the steps of a run, and refuse what cannot be divided.

    Args:
        config: the recipe's section; `epochs` or `max_steps` must be set.
        samples: size of the training set.
        seed: the run's seed.
        world_size: number of processes.
        grouping: which samples share a batch.

    Raises:
        UserError: with numbers that would work.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must lie between 0 and {2**32 - 1}")
    if samples < 1:
        raise UserError("the training set is empty; look at data.source and the report of skipped items")
    accumulation, shares = config.gradient_accumulation_steps, world_size * config.gradient_accumulation_steps
    if config.batch_size % shares:
        below, above = config.batch_size // shares * shares, -(-config.batch_size // shares) * shares
        fitting = [a for a in range(1, config.batch_size + 1) if config.batch_size % (a * world_size) == 0]
        near = sorted(fitting, key=lambda a: abs(a - accumulation))[:3]
        raise UserError(
            f"train.batch_size={config.batch_size} cannot be divided evenly over {world_size} processes x "
            f"train.gradient_accumulation_steps={accumulation}; use a batch size of "
            + " or ".join(str(size) for size in (below, above) if size)
            + (f", or {' or '.join(map(str, sorted(near)))} accumulation steps" if near else "")
        )
    order = EpochOrder(samples, config.batch_size, seed, grouping)
    steps = config.max_steps or _steps_of_epochs(config, order)
    # a share of the steps is rounded up, as the library does
    warmup = math.ceil(config.warmup_steps * steps) if config.warmup_steps < 1 else int(config.warmup_steps)
    if warmup >= steps:
        raise UserError(
            f"train.warmup_steps={config.warmup_steps} must be less than the {steps} steps of this run "
            f"({samples} samples, {order.steps_per_epoch} steps in an epoch), "
            "or the learning rate never reaches its peak; use fewer warm-up steps or train longer"
        )
    return Plan(order, steps, warmup, config.batch_size // shares)


def _steps_of_epochs(config: TrainConfig, order: EpochOrder) -> int:
    if config.epochs is None:
        raise UserError("how long to train is not set; give train.epochs or train.max_steps")
    # A hair less, so that 0.1 · 30 is 3 steps and not 4.
    return max(1, -int(-(config.epochs * order.steps_per_epoch - 1e-9) // 1))


def training_arguments(config: TrainConfig, plan: Plan, run: RunDirectory, seed: int) -> TrainingArguments:
    """The library's settings for a recipe.

    AdamW is torch's fused one with betas (0.9, 0.999) and epsilon 1e-8. Weight decay is torch's decoupled one
    and, as the Trainer has it, spares biases and normalisation layers. Evaluation, rotation of checkpoints,
    trackers and data loading are the engine's own and switched off here.
    """
    on_cpu = not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        run_name=run.path.name,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        average_tokens_across_devices=True,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=plan.warmup_steps,
        optim="adamw_torch_fused",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        torch_compile=config.compile,
        tf32=False if config.compile else None,  # torch_compile alone would turn TF32 on
        logging_strategy="steps",
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # reads the loss in every step, which waits for the GPU
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        seed=seed,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # would overwrite each process's own router counts in every forward
        ignore_data_skip=True,  # our sampler starts at the resumed step
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )
    # One process uses one GPU; several need torchrun. The library would wrap the model in DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # The recipe decides, not the mixed_precision of a user's `accelerate config`.
    arguments.mixed_precision = "bf16" if config.precision == "bf16" else "no"
    return arguments
