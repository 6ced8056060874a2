"""Measure a classifier on a split: every picture exactly once, over any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from common.config import Precision
from common.training.loader import batches_of, outlive_signals, workers_for
from vit_classify.data import collate


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about N pictures of C classes.

    Args:
        predicted: (N,) int64, the class with the largest logit, in the order of the data set.
        labels: (N,) int64.
        num_classes: C.
        confidence: (N,) float32, the probability of the predicted class.
    """

    predicted: np.ndarray
    labels: np.ndarray
    num_classes: int
    confidence: np.ndarray

    @property
    def top1(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float((self.predicted == self.labels).mean())

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64: how often true class (row) was called class (column)."""
        assert self.labels.max(initial=0) < self.num_classes, "a label is out of range"
        flat = np.bincount(self.labels * self.num_classes + self.predicted, minlength=self.num_classes**2)
        return flat.reshape(self.num_classes, self.num_classes)

    @property
    def per_class_accuracy(self) -> np.ndarray:
        """(C,) float64 in [0, 1]; NaN for a class without pictures."""
        counts = self.confusion.sum(axis=1)
        return np.where(counts > 0, self.confusion.diagonal() / np.maximum(counts, 1), np.nan)

    def by_class(self, class_names: Sequence[str]) -> dict[str, float | None]:
        """Accuracy by class name, None for a class without pictures (JSON has no NaN).

        Classes of the same name (SUN397 has some) are told apart by their label in brackets.
        """
        names = [f"{name} ({i})" if class_names.count(name) > 1 else name for i, name in enumerate(class_names)]
        pairs = zip(names, self.per_class_accuracy.tolist(), strict=True)
        return {name: None if np.isnan(accuracy) else accuracy for name, accuracy in pairs}


def evaluate(
    classifier: nn.Module,
    transform: Callable[[Mapping[str, Tensor]], Tensor],
    dataset: Dataset[Any],
    batch_size: int = 256,
    num_workers: int | None = 0,
    precision: Precision = "float32",
    *,
    num_classes: int | None = None,
    description: str = "evaluating",
) -> Predictions:
    """Classify every picture of a data set once.

    Under `torch.distributed` each process takes its share, and every process returns the whole result.

    Args:
        classifier: pixel values (B, 3, S, S) → logits (B, C); its mode (train or eval) is restored.
        transform: turns a batch into pixel values on the batch's device.
        dataset: indexed by 0..N-1, gives samples for `vit_classify.data.collate`.
        batch_size: pictures at once in one process.
        num_workers: processes that load pictures, per process; None: `default_workers()`.
        precision: `bf16` runs under autocast.
        num_classes: C; none given: the number of the head's class names.
        description: in front of the progress bar.
    """
    if num_classes is None:
        head: Any = classifier.get_submodule("head")
        num_classes = len(head.class_names)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    size = len(dataset)  # type: ignore[arg-type]
    indices = range(rank, size, processes)
    device = next(classifier.parameters()).device
    loader = DataLoader(
        Subset(dataset, indices),
        batch_size,
        num_workers=workers_for(num_workers),
        collate_fn=collate,
        worker_init_fn=outlive_signals,
        pin_memory=device.type == "cuda",
    )
    was_training = classifier.training
    classifier.eval()
    predicted, confidence, labels = [], [], []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        for batch in tqdm(batches_of(loader), description, disable=True if rank else None, leave=False):
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            best = classifier(transform(batch)).float().softmax(dim=-1).max(dim=-1)
            predicted.append(best.indices.cpu())
            confidence.append(best.values.cpu())
            labels.append(batch["labels"].cpu())
    classifier.train(was_training)
    answers = _gathered(_joined(predicted, torch.int64), size, processes)
    truth = _gathered(_joined(labels, torch.int64), size, processes)
    sure = _gathered(_joined(confidence, torch.float32), size, processes)
    return Predictions(answers, truth, num_classes, sure)


def _joined(parts: list[Tensor], dtype: torch.dtype) -> np.ndarray:
    # a process may have no picture at all
    return (torch.cat(parts) if parts else torch.empty(0)).to(dtype).numpy()


def _gathered(mine: np.ndarray, size: int, processes: int) -> np.ndarray:
    """Every process's part, put back into the order of the data set: (size,)."""
    parts: list[Any] = [mine]
    if processes > 1:
        parts = [None] * processes
        dist.all_gather_object(parts, mine)
    assert sum(len(part) for part in parts) == size, "not every picture was classified exactly once"
    found = np.empty(size, dtype=mine.dtype)
    for process, part in enumerate(parts):
        found[process::processes] = part
    return found
