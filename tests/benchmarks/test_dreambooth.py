"""The benchmark runs as a script and gives every figure that it promises; no time is asserted."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dreambooth  # noqa: F401  # before the folder is looked into that has a script of this name

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the script runs on."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("dreambooth_world")


def test_the_small_model_has_the_proportions_of_sdxl(world: ModuleType) -> None:
    small = world.shares(world.SMALL)
    # counted for SDXL at 1024 px: 6.76 TFLOP, of which the VAE's encoder would be 0.722 and both text encoders 0.016
    assert small["vae"] == pytest.approx(0.722, rel=0.1)
    assert small["texts"] == pytest.approx(0.016, abs=0.01)


def test_both_ways_train_the_same_adapter_on_the_same_model(world: ModuleType) -> None:
    pictures = world.draw_pictures(world.TOY, 3, CPU)
    ours, theirs = (world.make_base(world.TOY, "float32", CPU) for _ in range(2))
    assert ours.unet.conv_in.weight.equal(theirs.unet.conv_in.weight)
    samples = world.prepare_cache(ours, pictures)
    assert ours.vae is None
    assert ours.text_encoders is None
    steps = [
        world.our_step(ours, samples, "lora", r=4, batch=2),
        world.published_step(theirs, pictures, r=4, batch=2, texts_every_step=False),
    ]
    trained = [[p for p in base.unet.parameters() if p.requires_grad] for base in (ours, theirs)]
    assert sum(p.numel() for p in trained[0]) == sum(p.numel() for p in trained[1])
    for step, parameters in zip(steps, trained, strict=True):
        before = [parameter.detach().clone() for parameter in parameters]
        step()
        assert all(not new.equal(old) for new, old in zip(parameters, before, strict=True) if old.abs().sum() == 0)


@pytest.mark.slow
def test_one_run_gives_every_ratio_as_a_table_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/dreambooth.py", "--quick", "--threads", "1", "--json", str(file)]
    printed = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    content = json.loads(file.read_text())
    rows = [row for section in content["sections"].values() for row in section]
    ratios = {(row["what"], row["over"]) for row in rows if row["ratio"] is not None}
    ours = [f"ours, {method}, r={8 if method == 'goat' else 4}" for method in ("lora", "moslora", "goat")]
    over = ("published way, one prompt", "published way, captions", "frozen forward+backward")
    assert {(what, other) for what in ours for other in over} <= ratios
    assert ("ours, lora", "published way, one prompt") in ratios  # memory
    assert all(row["value"] > 0 for row in rows)
    assert "random weights" in content["environment"]
    assert printed.count("\n|") == len(rows) + len(content["sections"]) + 2


@pytest.mark.slow
def test_the_rows_of_a_gpu_can_be_made(world: ModuleType) -> None:
    specification = importlib.util.spec_from_file_location("dreambooth_script", ROOT / "benchmarks" / "dreambooth.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    rows = script.large_rows(
        ("lora", "goat"),
        shape=world.TOY,
        precision="bf16",
        batch=1,
        repeats=1,
        device=CPU,
        attentions=("sdpa",),
        compiled=(False,),
    )
    assert [(row.what, row.over) for row in rows] == [
        ("published way, one prompt, sdpa", "16 min on an A100 [M]"),
        *((f"ours, {m}, sdpa", over) for m in ("lora", "goat") for over in ("16 min on an A100 [M]", "published way")),
    ]
    assert all(row.value > 0 for row in rows)
