"""What the engine adds to `transformers.Trainer`, and nothing else.

The library runs the loop, the optimizer, the schedule, autocast, accumulation, DDP and DeepSpeed. Added:
the checkpoint of the trained tensors alone, whole or absent; the balance loss of routed adapters; the
objective's metrics; the loss normalised by the global number of supervised items; the data order of
`common.training.order`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from common.adapters import AdapterSchedule, auxiliary_loss, balance_and_load
from common.config import LossMean
from common.errors import UserError
from common.files import fsync_path
from common.training import checkpoint as checkpoints
from common.training import processes, randomness, router_load
from common.training.clock import Clock, reset_peak_memory
from common.training.loader import TrainBatches
from common.training.order import FILLER, IGNORED_LABEL, EpochOrder
from common.training.rates import give_own_rates
from common.training.run import RunDirectory
from common.training.state import load_trained_state, save_trained_state, trained_state
from common.training.window import Window, merge_windows
from common.write_errors import explain_write_error, is_write_error

TRAINED_FILE = "trained.safetensors"
PROGRESS_FILE = "progress.json"
Evaluate = Callable[[int], Mapping[str, float]]
T = TypeVar("T")


class MosgoatTrainer(Trainer):
    """A Trainer of an objective; `fit` makes and runs it.

    Args:
        objective: module whose `forward(**batch, num_items_in_batch)` returns a dict with `loss`.
        arguments: the library's settings.
        batches: the micro-batches of this process.
        order: the global batches they are taken from.
        run: where checkpoints go.
        keep_checkpoints: how many of them stay.
        evaluate: measures the objective, told the steps done; its figures are logged with the prefix `eval_`.
        callbacks: what happens beside the optimisation.
        loss_mean: what the loss of a step is the mean of, see `fit`.
        learning_rates: part of a parameter's name -> its own peak learning rate.
    """

    control: Any  # the library's; mypy does not look into it

    def __init__(
        self,
        objective: nn.Module,
        arguments: TrainingArguments,
        *,
        batches: TrainBatches,
        order: EpochOrder,
        run: RunDirectory,
        keep_checkpoints: int,
        evaluate: Evaluate | None,
        callbacks: list[TrainerCallback],
        loss_mean: LossMean,
        learning_rates: Mapping[str, float],
    ) -> None:
        self.schedule = AdapterSchedule(objective, arguments.max_steps)
        super().__init__(model=objective, args=arguments, callbacks=callbacks)
        if self.args.tf32 is False:  # accelerate turns TF32 on for whatever is compiled
            torch.backends.cuda.matmul.allow_tf32 = False
        self.model_accepts_loss_kwargs = True  # hand num_items_in_batch to forward
        self._batches, self._order, self._run, self._keep = batches, order, run, keep_checkpoints
        self._evaluate_function = evaluate
        self._loss_mean, self._learning_rates = loss_mean, learning_rates
        self.window = Window(self.args.device)
        self.clock = Clock()
        self._last_logged_step = 0
        self.loss_sum = 0.0  # over all steps that were logged
        self.counts: dict[str, float] = {}  # likewise
        self.last_evaluation: dict[str, float] = {}

    # ---- data ----

    def get_train_dataloader(self) -> Any:
        """Our own batches; accelerate must not divide them among the processes again."""
        return self._batches

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Tensor):  # pinned memory: the copy overlaps with the device's work
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        # A step without any supervised item has loss 0, not 0/0.
        items = super()._get_num_items_in_batch(batch_samples, device)
        assert isinstance(items, Tensor), "a batch must hold the tensor 'labels'"
        return items.clamp(min=1)

    # ---- optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The library's optimizer, with groups of their own for parameters that have their own learning rate."""
        optimizer = super().create_optimizer(model)
        give_own_rates(optimizer, self.model if model is None else model, self._learning_rates)
        return optimizer

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the step's loss, times the number of processes that DDP divides by.

        step loss = sum over micro-batches m of (sum of item losses in m + n_m · (balance loss of m + loss of
        the weights alone)) / N, with n_m the supervised items of m and N those of the global batch.
        """
        filler = inputs.pop(FILLER, None) is not None
        items = (inputs["labels"] != IGNORED_LABEL).sum()
        if self._loss_mean == "micro_batch":
            shares = self.args.gradient_accumulation_steps * processes.world_size()
            num_items_in_batch = items.clamp(min=1) * shares
        outputs = dict(model(**inputs, num_items_in_batch=num_items_in_batch))
        loss = outputs.pop("loss")
        counts = outputs.pop("counts", {})
        balance, load = balance_and_load(self.model)
        if balance.requires_grad:
            outputs["balance_loss"] = balance
            loss = loss + balance * items / num_items_in_batch
        if self.schedule.has_loss:
            outputs["auxiliary_loss"] = auxiliary = auxiliary_loss(self.model)
            loss = loss + auxiliary * items / num_items_in_batch
        metrics = {name: value for name, value in outputs.items() if _is_scalar(value)}
        if filler:
            counts, load = {}, {}
        self.window.add(loss, metrics, counts, items, self.state.global_step + 1, load)
        return loss * (self.accelerator.num_processes // self.get_tp_size())

    # ---- logging and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line with the means since the last one; a collective call.

        Raises:
            UserError: a loss since the last line was not finite.
        """
        if "learning_rate" not in logs:
            return  # the library's closing line; `fit` reports these figures
        steps = self.state.global_step - self._last_logged_step
        means, counts, load = self.window.means(steps), self.window.counts(), self.window.router_load()
        self._require_finite_losses()
        self.loss_sum += means["loss"] * steps
        self.counts = {name: self.counts.get(name, 0.0) + value for name, value in counts.items()}
        samples = self._samples() - self._order.samples_before(self._last_logged_step)
        self.window.clear()
        self._last_logged_step = self.state.global_step
        rate = self.clock.lap(self._samples())
        kept: dict[str, float] = {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        rates = {f"{name}_per_second": value / samples * rate for name, value in counts.items()}
        self._emit({**means, **kept, "samples_per_second": rate, **rates, **router_load.summary(load)})
        if load and processes.is_main():
            router_load.append(self._run.router_load, self.state.global_step, load)

    def _samples(self) -> int:
        return self._order.samples_before(self.state.global_step)

    def _emit(self, line: Mapping[str, float]) -> None:
        values = {"epoch": self.state.epoch, **line}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, values)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Run the pipeline's evaluation; training goes on as if it had not been there."""
        assert self._evaluate_function is not None
        modes = [(module, module.training) for module in self.model.modules()]
        with self.clock.paused(), randomness.preserved():
            measured = self._evaluate_function(self.state.global_step)
        for module, training in modes:
            module.training = training
        self.last_evaluation = {f"eval_{name}": float(value) for name, value in measured.items()}
        self._emit(self.last_evaluation)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, self.last_evaluation)
        return self.last_evaluation

    def require_finite(self) -> None:
        """Raise if a loss was not finite, or a trained weight is not; a collective call.

        Raises:
            UserError: names the first such step and the checkpoint that is left.
        """
        self._require_finite_losses()
        if not all(processes.gather(_all_finite(self.model))):
            raise UserError(self._not_finite("a trained weight", self.state.global_step))

    def _require_finite_losses(self) -> None:
        step = self.window.first_bad_step()
        if step is not None:
            raise UserError(self._not_finite("the loss", step))

    def _not_finite(self, what: str, step: int) -> str:
        kept = checkpoints.newest_checkpoint(self._run.checkpoints)
        return (
            f"{what} is not finite (nan or infinity) at step {step} of {self.state.max_steps}; "
            + (f"the last whole checkpoint is {kept}" if kept else "no checkpoint was saved before it")
            + f". Lower train.learning_rate={self.args.learning_rate}, lengthen "
            f"train.warmup_steps={int(self.args.warmup_steps)}, clip with train.max_grad_norm=1, or try "
            "train.precision=float32; also look for broken items in the data."
        )

    # ---- checkpoints ----

    def restore_progress(self, checkpoint: Path | None) -> None:
        """Begin the accounts of this `train` call, where `checkpoint` left them; call when training begins."""
        self._last_logged_step = self.state.global_step
        seconds, rate = 0.0, 0.0
        if checkpoint is not None:
            progress = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
            self.loss_sum, seconds = progress["loss_sum"], progress["train_seconds"]
            self.counts = progress["counts"]
            self.last_evaluation = progress["last_evaluation"]
            self._last_logged_step = progress["last_logged_step"]
            self.window.load(_own_window(progress["windows"]))
            rate = progress["samples_per_second"]
            self.schedule.resume(self.state.global_step)
        self.clock = Clock(self._samples(), seconds, rate)
        reset_peak_memory()

    def load_finished(self, checkpoint: Path) -> None:
        """Take weights and accounts from a checkpoint after which there is nothing left to train."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = checkpoints.step_of(checkpoint)
        self.restore_progress(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        progress = {
            "train_seconds": self.clock.seconds,
            "samples_per_second": self.clock.rate(),
            "loss_sum": self.loss_sum,
            "counts": self.counts,
            "last_logged_step": self._last_logged_step,
            "last_evaluation": self.last_evaluation,
            "windows": processes.gather(self.window.state()),
        }
        with self.clock.paused():
            self.require_finite()
            final = checkpoints.checkpoint_path(self._run.checkpoints, self.state.global_step)
            if not processes.on_main(lambda: checkpoints.is_whole(final)):
                self._write_checkpoint(progress)

    def _write_checkpoint(self, progress: dict[str, Any]) -> None:
        step, folder = self.state.global_step, self._run.checkpoints
        partial = self._on_main(lambda: checkpoints.begin(folder, step))
        error: Exception | None = None
        try:
            self.save_model(str(partial), _internal_call=True)
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        except Exception as caught:
            if not is_write_error(caught):
                raise
            error = caught
        problems = [text for text in processes.gather(error and self._explain(error)) if text]
        if problems:
            processes.on_main(lambda: checkpoints.discard_partial(folder))
            raise UserError(problems[0]) from error
        self._on_main(lambda: self._finish_checkpoint(partial, progress))

    def _finish_checkpoint(self, partial: Path, progress: dict[str, Any]) -> None:
        self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        (partial / PROGRESS_FILE).write_text(json.dumps(progress), encoding="utf-8")
        for file in (self._run.metrics, self._run.router_load):
            if file.exists():
                fsync_path(file)  # no line up to this step may be missing after a resume
        manifest = {
            "step": self.state.global_step,
            "world_size": processes.world_size(),
            "micro_batches": processes.world_size() * self.args.gradient_accumulation_steps,
            "config_hash": self._run.config_hash,
        }
        checkpoints.finish(partial, manifest)
        checkpoints.rotate(partial.parent, self._keep)

    def _on_main(self, action: Callable[[], T]) -> T:
        def explained() -> T:
            try:
                return action()
            except OSError as error:
                message = self._explain(error)
                checkpoints.discard_partial(self._run.checkpoints)
                raise UserError(message) from error

        return processes.on_main(explained)

    def _explain(self, error: Exception) -> str:
        folder = self._run.checkpoints
        kept = checkpoints.newest_checkpoint(folder)
        return (
            f"the checkpoint of step {self.state.global_step} could not be written: "
            f"{explain_write_error(error, self._run.path)}; "
            + (f"the last whole checkpoint is {kept}" if kept else "there is no earlier checkpoint")
            + ". Free some space and start the same command again; resume=auto goes on from there."
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir is not None
        if self.args.should_save:
            save_trained_state(self.model, Path(output_dir, TRAINED_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained_state(self.model, Path(resume_from_checkpoint, TRAINED_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # By way of the CPU: transformers 5.17 cannot load to "cpu:0", and a GPU would hold the state twice.
        for target, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
            state = torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            target.load_state_dict(state)


def _own_window(windows: list[dict[str, Any]]) -> dict[str, Any]:
    # Saved by another number of processes: the first one takes over all the sums.
    if len(windows) == processes.world_size():
        return windows[processes.rank()]
    return merge_windows(windows if processes.is_main() else [])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def _all_finite(objective: nn.Module) -> bool:
    tensors = [tensor for tensor in trained_state(objective).values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all().item())
