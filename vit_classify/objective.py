"""A batch of pictures → loss and accuracy, in the form the engine trains.

B batch, S image size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.training.order import IGNORED_LABEL
from vit_classify.model import VitClassifier


class ClassificationObjective(nn.Module):
    """Cross entropy of a classifier.

    Args:
        classifier: made ready by `prepare_training`.
        transform: turns a batch into normalised pixel values (B, 3, S, S) on the batch's device.
    """

    def __init__(self, classifier: VitClassifier, transform: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.classifier = classifier
        self.transform = transform

    def forward(self, *, num_items_in_batch: Tensor | int | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of a (micro-)batch.

        Args:
            num_items_in_batch: supervised items of the whole step, over processes and micro-batches; none given:
                of this batch.
            **batch: `labels` (B,) int64, -100 where not counted, and what the transform needs.

        Returns:
            `loss`, 0-dim float32: the sum over supervised items / `num_items_in_batch`; `accuracy`, 0-dim
            float32: the mean over this batch's supervised items. Both are 0 in a batch without any.
        """
        labels = batch["labels"]
        with torch.no_grad():
            pixel_values = self.transform(batch)
        logits = self.classifier(pixel_values)  # (B, C) float32
        supervised = labels != IGNORED_LABEL
        count = supervised.sum().clamp(min=1)
        total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
        right = ((logits.detach().argmax(dim=-1) == labels) & supervised).sum()
        return {
            "loss": total / (count if num_items_in_batch is None else num_items_in_batch),
            "accuracy": right / count,
        }
