"""The loss of a LLaVA model on held-out conversations, each counted once over any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.training import processes
from common.training.loader import batches_of, outlive_signals, workers_for
from llava.model import LlavaBase
from llava.objective import LlavaObjective


def validation_loss(
    objective: LlavaObjective,
    base: LlavaBase,
    samples: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    lengths: Sequence[int],
    batch_size: int,
    num_workers: int | None = 0,
) -> dict[str, float]:
    """Mean loss and accuracy per supervised token; a collective call.

    Args:
        objective: of the model.
        base: the model itself.
        samples: indexed by (epoch, index), as in training.
        collate: samples -> batch.
        lengths: of the samples; those of like length share a batch.
        batch_size: samples at once in one process.
        num_workers: processes that load samples, per process; None: `default_workers()`.

    Returns:
        `loss` and `token_accuracy`; the same in every process.
    """
    by_length = sorted(range(len(samples)), key=lambda index: -lengths[index])
    own = [(0, index) for index in by_length[processes.rank() :: processes.world_size()]]
    loader = DataLoader(
        samples,
        batch_sampler=[own[first : first + batch_size] for first in range(0, len(own), batch_size)],
        collate_fn=collate,
        num_workers=workers_for(num_workers),
        worker_init_fn=outlive_signals,
    )
    was_training = objective.training
    objective.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, supervised tokens
    # not inference_mode: FSDP2 keeps what it gathers, and training cannot go through inference tensors
    with torch.no_grad(), base.autocast():
        bar = tqdm(loader, "validation", disable=None if processes.is_main() else True, leave=False)
        for batch in batches_of(bar):
            found = objective(**{key: value.to(base.device) for key, value in batch.items()})
            tokens = float(found["counts"]["supervised_tokens"])
            sums += torch.tensor([float(found["loss"]) * tokens, float(found["token_accuracy"]) * tokens, tokens])
    objective.train(was_training)
    loss, right, tokens = (sum(column) for column in zip(*processes.gather(sums.tolist()), strict=True))
    return {"loss": loss / max(tokens, 1.0), "token_accuracy": right / max(tokens, 1.0)}
