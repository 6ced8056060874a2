"""The layer and model benchmarks give every figure that they promise."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[str, str], tuple[dict, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a benchmark with options; gives what it writes and what it prints."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def call(script: str, options: str) -> tuple[dict, str]:
        output = tmp_path / "figures.json"
        assert importlib.import_module(script).main([*options.split(), "--device", "cpu", "--json", str(output)]) == 0
        return json.loads(output.read_text()), capsys.readouterr().out

    return call


def test_the_layers_table_has_a_line_for_every_case_and_its_ratios(run: Run) -> None:
    content, printed = run("adapters", "--shapes 16x32x48 64x32x32 --repeats 1")
    results = content["results"]
    assert len(results) == 2 * 2 * 2  # shapes, precisions, dropouts
    for result in results:
        timed = {"frozen", "lora", "moslora", "goat", "loop"}
        timed |= {"lora_bf16"} if result["case"]["precision"] == "bf16" else set()
        assert set(result["milliseconds"]) == timed
        assert all(math.isfinite(value) and value > 0 for value in result["milliseconds"].values())
        assert set(result["saved"]) == {"lora", "moslora", "goat", "loop", "lora_fa"}
    lines = [line.split("|") for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(results) + 2  # head, cases, largest and target
    assert content["environment"] in printed


def test_the_quick_table_has_the_first_layer_only(run: Run) -> None:
    options = "--quick --shapes 16x32x48 64x32x32 --repeats 1 --precisions float32 --dropouts 0"
    content, _ = run("adapters", options)
    assert [result["case"]["out_features"] for result in content["results"]] == [48]


@pytest.mark.slow
def test_every_model_is_compared_with_its_frozen_self_and_with_lora(run: Run) -> None:
    content, printed = run("models", "--models llava sdxl --batch 1 --repeats 1 --precision float32 --width 1")
    for rows in content["sections"].values():
        assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in rows)
        ratios = {(row["what"], row["over"]) for row in rows if row["ratio"] is not None}
        for method in ("moslora", "goat"):
            for over in ("frozen forward+backward", "frozen forward", "PEFT LoRA step"):
                assert (f"{method} step", over) in ratios
    assert set(content["sections"]) == {"small LLaVA", "small SDXL UNet"}
    assert content["environment"] in printed
