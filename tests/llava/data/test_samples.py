import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from llava.data import Collate, Conversations, PackedSamples, TrainSamples, open_data
from tests.llava.data.conftest import SIZE, Base, Folder

IMAGE_TOKENS = 4
PAD = 7


@pytest.fixture
def conversations(folder: Folder, tiny_tokenizer: PreTrainedTokenizerFast) -> Conversations:
    image = tiny_tokenizer.convert_tokens_to_ids("<image>")
    return open_data(folder.config(), tiny_tokenizer, image_tokens=IMAGE_TOKENS, image_token_id=image).train


@pytest.fixture
def samples(conversations: Conversations) -> TrainSamples:
    return TrainSamples(conversations, Base())


def test_sample_has_a_picture_where_its_tokens_are(samples: TrainSamples, conversations: Conversations) -> None:
    image = conversations.coding.image_token_id
    for i in range(len(samples)):
        sample = samples[(0, i)]
        assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
        pixels, tokens = sample["pixel_values"], int((sample["input_ids"] == image).sum())
        assert tokens == (0 if pixels is None else IMAGE_TOKENS)
        if pixels is not None:
            assert (pixels.shape, pixels.dtype) == ((3, SIZE, SIZE), torch.float32)


def test_every_epoch_sees_the_same_sample(samples: TrainSamples) -> None:
    first, later = samples[(0, 5)], samples[(3, 5)]
    assert torch.equal(first["input_ids"], later["input_ids"])
    assert torch.equal(first["pixel_values"], later["pixel_values"])


@pytest.mark.parametrize("index", [-1, 24])
def test_index_beyond_the_data_is_an_index_error(samples: TrainSamples, index: int) -> None:
    with pytest.raises(IndexError):
        samples[(0, index)]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"damaged")], ids=["gone", "damaged"])
def test_picture_that_fails_later_is_named_and_not_replaced(
    folder: Folder, samples: TrainSamples, spoil: Callable[[Path], object]
) -> None:
    spoil(folder.image(0))
    with pytest.raises(UserError, match=r"000\.jpg of conversation row0 cannot be used now.*check-data"):
        samples[(0, 0)]


def test_padded_batch(samples: TrainSamples) -> None:
    taken = [samples[(0, i)] for i in (3, 0, 5)]  # text alone, then two with pictures
    batch = Collate(PAD)(taken)
    lengths = [len(sample["input_ids"]) for sample in taken]
    assert set(batch) == {"input_ids", "labels", "attention_mask", "pixel_values"}
    assert batch["input_ids"].shape == batch["labels"].shape == (3, max(lengths))
    for row, (sample, length) in enumerate(zip(taken, lengths, strict=True)):
        assert torch.equal(batch["input_ids"][row, :length], sample["input_ids"])
        assert torch.equal(batch["labels"][row, :length], sample["labels"])
        assert (batch["input_ids"][row, length:] == PAD).all()
        assert (batch["labels"][row, length:] == -100).all()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)
    assert torch.equal(batch["pixel_values"][0], taken[1]["pixel_values"])
    assert torch.equal(batch["pixel_values"][1], taken[2]["pixel_values"])


def test_batch_of_text_alone_has_no_pictures(samples: TrainSamples) -> None:
    assert set(Collate(PAD)([samples[(0, 3)], samples[(0, 7)]])) == {"input_ids", "labels", "attention_mask"}


def test_packed_row_is_its_samples_one_after_the_other(samples: TrainSamples, conversations: Conversations) -> None:
    length = 2 * int(conversations.lengths.max())
    packed = PackedSamples(samples, conversations.lengths, length, seed=0)
    seen = []
    for row in range(len(packed)):
        found, start, pictures = packed[(0, row)], 0, []
        assert len(found["input_ids"]) == packed.lengths[row] <= length
        for i in packed.members(row).tolist():
            seen.append(i)
            sample = samples[(0, i)]
            part = slice(start, start + len(sample["input_ids"]))
            assert torch.equal(found["input_ids"][part], sample["input_ids"])
            assert torch.equal(found["labels"][part][1:], sample["labels"][1:])
            assert found["labels"][start] == -100
            assert found["position_ids"][part].tolist() == list(range(len(sample["input_ids"])))
            start = part.stop
            if sample["pixel_values"] is not None:
                pictures.append(sample["pixel_values"])
        assert start == len(found["input_ids"])
        if pictures:
            assert torch.equal(found["pixel_values"], torch.stack(pictures))
        else:
            assert found["pixel_values"] is None
    assert sorted(seen) == list(range(24))


def test_packed_batch_has_no_mask_and_padding_is_apart(samples: TrainSamples, conversations: Conversations) -> None:
    packed = PackedSamples(samples, conversations.lengths, 2 * int(conversations.lengths.max()), seed=0)
    rows = sorted(range(len(packed)), key=lambda row: packed.lengths[row])
    short, long = packed[(0, rows[0])], packed[(0, rows[-1])]
    batch = Collate(PAD)([short, long])
    assert "attention_mask" not in batch
    used = len(short["input_ids"])
    assert (batch["position_ids"][0, used:] == torch.arange(batch["input_ids"].shape[1] - used)).all()
    assert (batch["labels"][0, used:] == -100).all()
    pictures = sum(len(row["pixel_values"]) for row in (short, long) if row["pixel_values"] is not None)
    assert len(batch["pixel_values"]) == pictures


def test_row_must_hold_the_longest_conversation(samples: TrainSamples, conversations: Conversations) -> None:
    longest = int(conversations.lengths.max())
    PackedSamples(samples, conversations.lengths, longest, seed=0)
    with pytest.raises(UserError, match=f"data.packed_length={longest - 1} is less than the longest"):
        PackedSamples(samples, conversations.lengths, longest - 1, seed=0)


def test_worker_processes_give_the_same_samples(samples: TrainSamples) -> None:
    keys = [[(0, i) for i in range(start, start + 6)] for start in range(0, 24, 6)]
    alone = [Collate(PAD)([samples[key] for key in batch]) for batch in keys]
    spawned = pickle.loads(pickle.dumps(samples))  # what a spawned worker gets
    loader = DataLoader(spawned, batch_sampler=keys, collate_fn=Collate(PAD), num_workers=1)
    for expected, found in zip(alone, loader, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_memory_maps_are_opened_by_each_process_itself(samples: TrainSamples, conversations: Conversations) -> None:
    conversations.row(0)
    state = conversations.__getstate__()
    assert state["_columns"] == {}
    assert state["rows"].__getstate__()["_batches"] is None
    assert isinstance(conversations._column("rows"), np.memmap)
    assert os.path.isfile(conversations.rows._path)
