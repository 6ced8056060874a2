"""The benchmark runs as a script and gives every figure that it promises."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("vit")


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpus_peak_is_found_by_whole_words_of_its_name(vit: ModuleType, gpu: str, expected: float | None) -> None:
    assert vit.peak_flops(gpu, "bf16") == expected
    assert vit.peak_flops(gpu, "float32") is None  # the peaks are bfloat16's


@pytest.mark.slow
def test_the_rows_of_a_gpu_can_be_made(vit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)
    args = vit.arguments("--model ViT-S-32-alt --batch 1 --repeats 1 --device cpu --precision bf16".split())
    rows = vit.training_rows(args, torch.device("cpu"))
    assert [row.what for row in rows][::3] == [f"{method} training" for method in ("lora", "moslora", "goat")]
    for rate, flops, _ in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        # forward and gradient of the activations: at least twice the 2 x 1.1 GFLOP of this tower's forward
        assert 4e9 < flops.value * 1e12 / rate.value < 6e9
        assert flops.ratio == pytest.approx(flops.value * 1e12 / 312e12)


@pytest.mark.slow
def test_one_run_gives_every_ratio_as_a_table_and_as_json(tmp_path: Path) -> None:
    small = "--model ViT-S-32-alt --batch 1 --repeats 1 --pictures 4 --device cpu --precision float32 --json".split()
    command = [sys.executable, "benchmarks/vit.py", *small, str(tmp_path / "vit.json")]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "vit.json").read_text())
    rows = [row for section in content["sections"].values() for row in section]
    ratios = {(row["what"], row["over"]) for row in rows if row["ratio"] is not None}
    steps = {(f"{method} step", "frozen forward+backward") for method in ("lora", "moslora", "goat")}
    attention = {(f"split attention, {what}", "open_clip's own") for what in ("forward", "forward+backward")}
    assert steps | attention | {("cache, whole path on the CPU", "PIL + torchvision")} <= ratios
    assert all(row["value"] > 0 for row in rows)
    assert content["environment"] in printed
    assert printed.count("\n|") == len(rows) + len(content["sections"]) + 2
