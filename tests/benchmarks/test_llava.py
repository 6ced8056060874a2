"""The benchmark runs as a script and gives every figure that it promises; no time is asserted."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.objective import LlavaObjective

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
METHODS = ("lora", "moslora", "goat")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the script runs on."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("llava_world")


@pytest.fixture
def gpu(world: ModuleType) -> ModuleType:
    """The script's part for a GPU."""
    return importlib.import_module("llava_gpu")


def test_drawn_lengths_are_the_same_mixture_at_every_size_of_a_picture(world: ModuleType) -> None:
    real = world.draw_lengths(4000, world.LLAMA3_8B)
    assert real.image_tokens == 576
    assert real.text.max() <= world.MOST_TEXT
    assert ((real.answer >= 1) & (real.answer < real.text)).all()
    assert 1 - real.has_image.mean() == pytest.approx(40_688 / 665_298, abs=0.01)  # conversations of text alone
    small = world.draw_lengths(4000, world.tiny_shape(32, 1, 100, grid=8))
    assert (small.has_image == real.has_image).all()
    assert small.total.mean() / real.total.mean() == pytest.approx(64 / 576, rel=0.02)


def test_a_drawn_sample_has_the_form_of_a_training_sample(world: ModuleType) -> None:
    shape = world.tiny_shape(32, 1, 100, grid=2)
    lengths = world.draw_lengths(60, shape)
    samples = world.DrawnSamples(lengths, shape)
    for index in range(60):
        sample = samples[(0, index)]
        assert len(sample["input_ids"]) == len(sample["labels"]) == lengths.total[index]
        assert (sample["labels"] != -100).sum() == lengths.answer[index]
        assert (sample["input_ids"] == world.IMAGE).sum() == 4 * lengths.has_image[index]
        assert (sample["pixel_values"] is not None) == lengths.has_image[index]
    assert not lengths.has_image.all()
    assert samples[(0, 3)]["input_ids"].equal(samples[(5, 3)]["input_ids"])


@pytest.mark.parametrize("method", METHODS)
def test_model_flops_are_those_that_pytorch_counts_where_nothing_is_padded(
    world: ModuleType, gpu: ModuleType, method: str
) -> None:
    shape = world.tiny_shape(64, 2, 200, grid=4)
    lengths = world.draw_lengths(20, shape)
    index = int(np.flatnonzero(lengths.has_image)[0])
    base = world.adapted(world.make_base(shape, "float32", CPU), method, 8)
    batch = world.batch_of(world.DrawnSamples(lengths, shape), [index], CPU)
    objective = LlavaObjective(base).train()
    counter = FlopCounterMode(display=False)
    with counter:
        objective(**batch)["loss"].backward()
    # 10 %: PyTorch counts the convolution of the patches and all of a causal attention, and no gradient of the
    # input where nothing before it is trained.
    assert gpu.model_flops(base.llava(), shape, lengths, np.array([index])) == pytest.approx(
        counter.get_total_flops(), rel=0.1
    )


@pytest.mark.slow
def test_the_rows_of_a_gpu_can_be_made(world: ModuleType, gpu: ModuleType) -> None:
    pytest.importorskip("bitsandbytes")
    rows = gpu.large_rows(
        METHODS,
        ("none", "nf4"),
        batch=1,
        repeats=1,
        device=CPU,
        peak=1e12,
        shape=world.tiny_shape(64, 1, 100, grid=2),
        r=8,
    )
    labels = [f"{method}, {weights}" for weights in ("bf16", "nf4") for method in METHODS]
    assert [row.what for row in rows][::3] == labels
    for rate, flops, hours in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert rate.value > 0
        assert flops.ratio == pytest.approx(flops.value)  # of a peak of 1 TFLOP/s
        assert hours.ratio == pytest.approx(hours.value / 20)


@pytest.mark.slow
def test_one_run_gives_every_ratio_as_a_table_and_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/llava.py", "--quick", "--threads", "1", "--json", str(tmp_path / "out.json")]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "out.json").read_text())
    rows = [row for section in content["sections"].values() for row in section]
    ratios = {(row["what"].split(" (")[0], row["over"]) for row in rows if row["ratio"] is not None}
    logits = {(f"{what}, supervised logits", "all logits") for what in ("step", "kept for the backward")}
    ways = ("modality_length", "length", "packed in 2048", "packed in 4096")
    batching = {(f"{way}: {what}", "random") for way in ways for what in ("share of real tokens", "real tokens/s")}
    steps = {(f"{method} step", "frozen forward+backward") for method in METHODS}
    epoch = {("ours: length-grouped, supervised logits", "transformers' Trainer")}
    assert logits | batching | steps | epoch <= ratios
    assert all(row["value"] > 0 for row in rows)
    assert all(row["value"] <= 100 for row in rows if row["unit"] == "%")
    assert content["environment"] in printed
    assert "synthetic lengths" in content["environment"]
    assert printed.count("\n|") == len(rows) + len(content["sections"]) + 2
