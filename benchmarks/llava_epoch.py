"""The part of `benchmarks/llava.py` for a whole epoch: this suite beside transformers' plain Trainer and TRL's."""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llava_world import PAD, DrawnSamples, adapted, draw_lengths, make_base, tiny_shape
from measure import Row, medians
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from common.config import TrainConfig
from common.training import RunDirectory, fit
from common.training.order import Grouping
from llava.config import LlavaRecipe
from llava.data import Collate
from llava.objective import LlavaObjective

# a row of an output head that takes the share of a tiny model's work that 128 256 take of LLaMA-3-8B's
SMALL_VOCABULARY = 512
# The samples are tokens already. Checkpointing, on by default there, is as off as it is in the others.
TRL_ARGUMENTS = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "gradient_checkpointing": False,
}
Task = Callable[[], object]


class Keyed:
    """Samples as `fit` asks for them."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self._samples[key[1]]


def epoch_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Samples a second over one epoch, with all that the trainers do beside the model's work."""
    shape = tiny_shape(args.hidden, 4, SMALL_VOCABULARY, args.grid)
    lengths = draw_lengths(args.epoch_samples, shape, seed=1)
    drawn = DrawnSamples(lengths, shape)
    samples = [drawn[index] for index in range(len(drawn))]

    def ours() -> Task:
        objective = LlavaObjective(adapted(make_base(shape, args.precision, device), "lora", 8))
        config = TrainConfig(epochs=1, batch_size=args.batch, warmup_steps=0, precision=args.precision, save_every=0)
        recipe = LlavaRecipe(train=replace(config, trackers=[]))

        def epoch() -> None:
            with tempfile.TemporaryDirectory() as folder:
                fit(
                    objective,
                    train_dataset=Keyed(samples),
                    collate=Collate(PAD),
                    config=recipe.train,
                    run=RunDirectory.create(Path(folder) / "run", recipe, resume="never"),
                    seed=0,
                    num_workers=0,
                    grouping=Grouping(lengths.total),
                )

        return epoch

    def plain(trainer: type[Trainer], settings: type[TrainingArguments], dataset: Any, **more: Any) -> Task:
        base = adapted(make_base(shape, args.precision, device), "lora", 8)

        def epoch() -> None:
            with tempfile.TemporaryDirectory() as folder:
                arguments = settings(
                    output_dir=folder,
                    num_train_epochs=1,
                    per_device_train_batch_size=args.batch,
                    bf16=args.precision == "bf16",
                    logging_steps=10,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    remove_unused_columns=False,
                    use_cpu=device.type == "cpu",
                    **more,
                )
                beside = {"processing_class": base.tokenizer} if more else {}
                made = trainer(base.model, arguments, data_collator=collate, train_dataset=dataset, **beside)
                made.remove_callback(PrinterCallback)
                made.train()

        return epoch

    def collate(rows: list[dict[str, int]]) -> dict[str, Tensor]:
        return Collate(PAD)([samples[row["index"]] for row in rows])

    indices = [{"index": index} for index in range(len(samples))]
    names = {"ours": "ours: length-grouped, supervised logits", "trainer": "transformers' Trainer: random, all logits"}
    tasks = {"ours": ours(), "trainer": plain(Trainer, TrainingArguments, indices)}
    if find_spec("trl") is not None:
        names["trl"] = "TRL's SFTTrainer: random, all logits"
        trl = importlib.import_module("trl")
        tasks["trl"] = plain(trl.SFTTrainer, trl.SFTConfig, Dataset.from_list(indices), **TRL_ARGUMENTS)
    took = medians(tasks, args.epochs, device, warm_up=args.warm_up)
    rates = {name: len(samples) / seconds for name, seconds in took.items()}
    rows = [Row(names[name], rate, "samples/s") for name, rate in rates.items()]
    for name in tasks:
        if name != "ours":
            ratio = rates["ours"] / rates[name]
            rows.append(Row(names["ours"], rates["ours"], "samples/s", ratio, names[name].split(":")[0]))
    return rows
