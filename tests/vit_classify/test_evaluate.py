"""Every picture is counted exactly once, whatever the batches and the processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vit_classify.data import collate
from vit_classify.data.images import Sample
from vit_classify.evaluate import Predictions, evaluate


class Numbered(Dataset[Sample]):
    """Picture i shows the number of the class that a classifier is to name, which is wrong for every fifth."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        shown = (index if index % 5 else index + 1) % 3
        return {"image": torch.full((3, 2, 2), shown, dtype=torch.uint8), "label": index % 3}


class Reader(nn.Module):
    """Names the class that a picture shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[int] = []

    def forward(self, pixel_values: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append(len(pixel_values))
        return -(pixel_values.mean(dim=(1, 2, 3))[:, None] - torch.arange(3.0)).abs() * self.weight


def transform(batch: dict[str, Tensor]) -> Tensor:
    return batch["images"].float()


@pytest.mark.parametrize("batch_size", [1, 4, 17, 100])
def test_every_picture_is_counted_once_in_its_place(batch_size: int) -> None:
    reader = Reader()
    found = evaluate(reader, transform, Numbered(17), batch_size, num_classes=3)
    assert sum(reader.seen) == len(found.labels) == found.confusion.sum() == 17
    assert found.labels.tolist() == [i % 3 for i in range(17)]
    assert found.predicted.tolist() == [(i if i % 5 else i + 1) % 3 for i in range(17)]
    assert found.top1 == pytest.approx(13 / 17)


def test_confidence_is_the_probability_of_the_answer() -> None:
    found = evaluate(Reader(), transform, Numbered(4), num_classes=3)
    logits = -(torch.tensor(found.predicted)[:, None] - torch.arange(3.0)).abs()
    np.testing.assert_allclose(found.confidence, logits.softmax(1).amax(1).numpy(), rtol=1e-6)


def test_workers_change_nothing() -> None:
    alone = evaluate(Reader(), transform, Numbered(17), 4, num_classes=3)
    helped = evaluate(Reader(), transform, Numbered(17), 4, num_workers=2, num_classes=3)
    assert alone.predicted.tolist() == helped.predicted.tolist()


def test_the_classifier_gets_its_mode_back() -> None:
    reader = Reader().train()
    evaluate(reader, transform, Numbered(3), num_classes=3)
    assert reader.training
    evaluate(reader.eval(), transform, Numbered(3), num_classes=3)
    assert not reader.training


def test_bf16_runs_under_autocast() -> None:
    class Looks(Reader):
        def forward(self, pixel_values: Tensor) -> Tensor:
            self.kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            return super().forward(pixel_values)

    looks = Looks()
    evaluate(looks, transform, Numbered(3), num_classes=3, precision="bf16")
    assert looks.kind == torch.bfloat16
    evaluate(looks, transform, Numbered(3), num_classes=3)
    assert looks.kind is None


def test_confusion_has_true_classes_in_rows_and_called_ones_in_columns() -> None:
    found = Predictions(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 4, np.ones(4))
    assert found.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.confusion.dtype == np.int64
    np.testing.assert_array_equal(found.per_class_accuracy, [0.5, 0.5, np.nan, np.nan])
    by_class = found.by_class(["a", "b", "c", "d"])
    assert by_class == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert json.loads(json.dumps(by_class)) == by_class


def test_class_names_that_are_equal_do_not_hide_each_other() -> None:
    found = Predictions(np.array([0, 0]), np.array([0, 1]), 2, np.ones(2))
    assert found.by_class(["kite", "kite"]) == {"kite (0)": 1.0, "kite (1)": 0.0}


def test_pictures_are_batched_by_the_collate_of_the_data() -> None:
    assert set(collate([Numbered(1)[0]])) == {"images", "labels"}


TWO = """
import importlib.util, json, sys
from datetime import timedelta
import torch.distributed as dist

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
reader = toy.Reader()
found = toy.evaluate(reader, toy.transform, toy.Numbered(int(sys.argv[2])), 3, num_classes=3)
print(json.dumps([sum(reader.seen), found.predicted.tolist(), found.labels.tolist(), found.confidence.tolist()]))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [17, 1])
def test_two_processes_share_the_work_and_agree_with_one(size: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, __file__, str(size)],
            cwd=root,
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, *mine), (second, *other) = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    alone = evaluate(Reader(), transform, Numbered(size), num_classes=3)
    assert mine == other == [alone.predicted.tolist(), alone.labels.tolist(), alone.confidence.tolist()]
    assert first + second == size
    assert abs(first - second) <= 1
