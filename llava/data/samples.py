"""Conversations → samples → batches, padded or packed.

B samples (rows) of a batch, T tokens of the longest, S side of a picture, n pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import UserError
from common.pictures import DecodeError
from common.training.order import IGNORED_LABEL
from llava.data.dataset import Conversations
from llava.data.packing import pack
from llava.data.pictures import load_picture


class Sample(TypedDict, total=False):
    """One row of a batch.

    Args:
        input_ids: (T,) int64.
        labels: (T,) int64, -100 where nothing is learnt.
        pixel_values: (3, S, S) float32 of one conversation, (n, 3, S, S) of several, None without a picture.
        position_ids: (T,) int64, restarted with each conversation; only where rows are packed.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None
    position_ids: Tensor


class Processing(Protocol):
    """The part of a loaded model that turns pictures into its input (`llava.model.LlavaBase`)."""

    image_processor: Any


def pixels_of(image_processor: Any, image: Image.Image) -> Tensor:
    """A picture as the vision tower takes it.

    Args:
        image_processor: of transformers.
        image: RGB.

    Returns:
        (3, S, S) float32.
    """
    return image_processor(images=image, return_tensors="pt")["pixel_values"][0]


class TrainSamples(Dataset[Sample]):
    """Conversations as the model sees them, indexed by (epoch, index); every epoch sees them alike.

    Args:
        conversations: what is said.
        base: the model's image processor.

    Raises:
        UserError: on access: a picture that could be read when the data were checked cannot be read now, or a
            conversation is not the one that was counted. Nothing is put in its place.
    """

    def __init__(self, conversations: Conversations, base: Processing) -> None:
        self._conversations, self._image_processor = conversations, base.image_processor

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        _, index = key
        if not 0 <= index < len(self):
            raise IndexError(index)
        conversations = self._conversations
        encoded = conversations.coding.encode(conversations.row(index))
        if encoded is None or len(encoded.input_ids) != conversations.length(index):
            raise UserError(f"{conversations.describe(index)} has changed since its tokens were counted; start again")
        return {
            "input_ids": torch.tensor(encoded.input_ids),
            "labels": torch.tensor(encoded.labels),
            "pixel_values": self._pixels(index) if encoded.has_image else None,
        }

    def _pixels(self, index: int) -> Tensor:
        root, name = str(self._conversations.root), self._conversations.picture(index)
        assert name is not None
        try:
            return pixels_of(self._image_processor, load_picture(root, name))
        except DecodeError as error:
            raise UserError(
                f"the picture {root}/{name} of {self._conversations.describe(index)} cannot be used now: {error}. "
                "It passed when the data were checked; mend it and resume, or run `mosgoat llava check-data`, which "
                "finds all such pictures, and begin a new run without them"
            ) from error


class PackedSamples(Dataset[Sample]):
    """Several conversations to a row, their positions restarted, so that attention can keep them apart.

    Args:
        samples: one conversation each.
        lengths: (N,) their tokens.
        packed_length: longest allowed row.
        seed: which conversations of like length share a row.

    Raises:
        UserError: a conversation is longer than a row.
    """

    def __init__(self, samples: Dataset[Sample], lengths: np.ndarray, packed_length: int, seed: int) -> None:
        longest = int(np.max(lengths, initial=0))
        if longest > packed_length:
            raise UserError(
                f"data.packed_length={packed_length} is less than the longest conversation of {longest} tokens; raise "
                "it, or lower data.max_text_tokens"
            )
        self._samples = samples
        self._members, self._starts = pack(lengths, packed_length, seed)
        # (rows,) tokens of each row.
        self.lengths = np.add.reduceat(np.asarray(lengths)[self._members], self._starts[:-1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def members(self, row: int) -> np.ndarray:
        """Indices of the conversations of a row, in their order."""
        return self._members[self._starts[row] : self._starts[row + 1]]

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, row = key
        if not 0 <= row < len(self):
            raise IndexError(row)
        parts = [self._samples[(epoch, index)] for index in self.members(row).tolist()]
        for part in parts:
            # Nothing before it: the last token of the sample in front must not learn to predict it.
            part["labels"][0] = IGNORED_LABEL
        pictures = [part["pixel_values"] for part in parts if part["pixel_values"] is not None]
        return {
            "input_ids": torch.cat([part["input_ids"] for part in parts]),
            "labels": torch.cat([part["labels"] for part in parts]),
            "position_ids": torch.cat([torch.arange(len(part["input_ids"])) for part in parts]),
            "pixel_values": torch.stack(pictures) if pictures else None,
        }


class Collate:
    """Samples -> a batch padded on the right.

    Packed rows get no `attention_mask`: with one, transformers no longer sees from the positions where a conversation
    begins, and it would attend to the ones before it. Their padding is a conversation of its own instead: its positions
    begin at 0 again.

    Args:
        pad_token_id: fills `input_ids`; never looked at.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Batch samples.

        Returns:
            `input_ids` and `labels` (B, T) int64; `attention_mask` (B, T) int64, or `position_ids` (B, T) int64 where
            rows are packed; `pixel_values` (n, 3, S, S) float32 in the order of the rows, absent without pictures.
        """
        batch = {
            "input_ids": _padded([sample["input_ids"] for sample in samples], self._pad),
            "labels": _padded([sample["labels"] for sample in samples], IGNORED_LABEL),
        }
        longest = batch["input_ids"].shape[1]
        if "position_ids" in samples[0]:
            rows = [sample["position_ids"] for sample in samples]
            batch["position_ids"] = torch.stack([torch.cat([row, torch.arange(longest - len(row))]) for row in rows])
        else:
            batch["attention_mask"] = _padded([torch.ones_like(sample["input_ids"]) for sample in samples], 0)
        pictures = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        if pictures:
            batch["pixel_values"] = torch.cat([part if part.ndim == 4 else part[None] for part in pictures])
        return batch


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
