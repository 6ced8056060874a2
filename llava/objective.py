"""A batch of conversations → loss over the supervised tokens, in the form the engine trains.

B samples (rows), T tokens, H hidden size, N supervised tokens, V vocabulary, I pictures, S picture size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapters import set_token_mask
from common.training.order import IGNORED_LABEL
from llava.model import LlavaBase


class LlavaObjective(nn.Module):
    """Next-token cross entropy of a LLaVA model over the answers of a batch.

    The output head is applied to the positions that predict a supervised token only: with a vocabulary of
    128 256 the float32 logits of all positions would take more memory than the rest of the step.

    Args:
        base: made ready by `prepare_training`.
    """

    def __init__(self, base: LlavaBase) -> None:
        super().__init__()
        self.model = base.model  # registers the weights with the engine
        self._base = base
        self._pad_token_id = base.tokenizer.pad_token_id
        self._image_size = base.image_size
        llava = base.llava()
        vision = llava.config.vision_config
        self._tower_tokens = (vision.image_size // vision.patch_size) ** 2 + 1  # patches and the class token
        seeing = [*llava.model.vision_tower.parameters(), *llava.model.multi_modal_projector.parameters()]
        self._trains_sight = any(p.requires_grad for p in seeing)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Any]:
        """Loss of a (micro-)batch.

        Args:
            input_ids: (B, T) int64, right-padded.
            labels: (B, T) int64, -100 where a token is not supervised; not shifted.
            attention_mask: (B, T), 0 on padding; None where rows are packed, see `llava.data`.
            position_ids: (B, T) int64, restarted for each sample of a packed row; None: counted along the row.
            pixel_values: (I, 3, S, S), one for each picture in the order of the rows; None: no pictures.
            num_items_in_batch: supervised tokens of the whole step, over processes and micro-batches; none given:
                of this batch.

        Returns:
            `loss`, 0-dim float32: the sum over supervised tokens / `num_items_in_batch`; `token_accuracy`, 0-dim
            float32: share of the supervised tokens that are the likeliest. Both are 0 in a batch without any. And
            `counts`: `tokens` (real ones, picture tokens included), `supervised_tokens` and `positions` (B · T).
        """
        hidden, unused = self._hidden(input_ids, attention_mask, position_ids, pixel_values)
        targets = labels[:, 1:]
        supervised = targets != IGNORED_LABEL
        # a label in the first column has no position before it that could predict it
        logits = self._base.llava().lm_head(hidden[:, :-1][supervised]).float()  # (N, V)
        targets = targets[supervised]  # (N,)
        count = (labels != IGNORED_LABEL).sum().clamp(min=1)
        total = F.cross_entropy(logits, targets, reduction="sum") + unused
        right = (logits.detach().argmax(dim=-1) == targets).sum()
        return {
            "loss": total / (count if num_items_in_batch is None else num_items_in_batch),
            "token_accuracy": right / count,
            "counts": {
                "tokens": (input_ids != self._pad_token_id).sum(),
                "supervised_tokens": supervised.sum(),
                "positions": torch.tensor(input_ids.numel(), device=input_ids.device),
            },
        }

    def _hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, pixel_values: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """The language model's last hidden states (B, T, H), and a zero that ties in what this batch does not use."""
        llava = self._base.llava()
        real = attention_mask if attention_mask is not None else input_ids != self._pad_token_id
        set_token_mask(llava.model.language_model, real)  # padding is not routed anywhere
        set_token_mask(llava.model.vision_tower, None)
        unused: Tensor | float = 0.0
        if pixel_values is None and self._trains_sight:
            # Without it a batch of text alone gives tower and projector no gradient at all: other processes would
            # wait for theirs, and AdamW would skip them, which depends on how a step is divided.
            blank = torch.zeros(1, 3, self._image_size, self._image_size, device=input_ids.device)
            features = llava.model.get_image_features(blank).pooler_output
            unused = sum(feature.sum() for feature in features).float() * 0.0
            # nor are its patches tokens of the batch, whose experts were to be balanced
            nothing = torch.zeros(self._tower_tokens, dtype=torch.bool, device=input_ids.device)
            set_token_mask(llava.model.vision_tower, nothing)
        outputs = llava.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            # with a cache, transformers takes packed rows for one long sample
            use_cache=False,
        )
        return outputs.last_hidden_state, unused
