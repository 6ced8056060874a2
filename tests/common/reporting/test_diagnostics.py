"""What a run keeps about its adapter."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from common.adapters import build_config
from common.adapters.spectrum import update_spectra
from common.reporting.diagnostics import FILE_NAME, evenly_spaced, write_diagnostics
from common.reporting.runs import LOAD_PLOT, MIXERS_PLOT, SPECTRA_PLOT, training_load


def adapted(method: str) -> nn.Module:
    torch.manual_seed(0)
    config = build_config(method, r=4, target_modules=["0", "2"], **({"num_experts": 2} if method == "goat" else {}))
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    return nn.ModuleDict({"tower": model})  # adapters may lie anywhere below


def write_load(run: Path, *steps: tuple[int, list[float]]) -> None:
    lines = [{"step": step, "tokens": {"tower.0": counts}} for step, counts in steps]
    (run / "router_load.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_moslora_run_keeps_spectra_and_mixers(tmp_path: Path) -> None:
    model = adapted("moslora")
    found = write_diagnostics(tmp_path, model)
    assert found == json.loads((tmp_path / FILE_NAME).read_text())
    assert found.keys() == {"singular_values", "mixers"}
    for name, values in update_spectra(model).items():
        assert found["singular_values"][name] == pytest.approx(values.tolist(), rel=1e-5)  # kept with six digits
    mixer = model["tower"].base_model.model[0].mosgoat_mixer["default"].detach().numpy()
    assert found["mixers"]["tower.0"] == pytest.approx(np.linalg.svd(mixer, compute_uv=False).tolist(), rel=1e-5)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {SPECTRA_PLOT, MIXERS_PLOT}


def test_a_routed_run_keeps_the_load_it_ended_with(tmp_path: Path) -> None:
    write_load(tmp_path, (25, [100, 0]), (75, [50, 50]), (80, [10, 30]), (100, [20, 40]))
    found = write_diagnostics(tmp_path, adapted("goat"))
    assert found["router_load"]["tower.0"] == [0.3, 0.7]  # of the lines behind step 75
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {SPECTRA_PLOT, LOAD_PLOT}


def test_a_run_without_an_adapter_keeps_nothing(tmp_path: Path) -> None:
    assert write_diagnostics(tmp_path, nn.Linear(2, 2)) == {}
    assert list(tmp_path.iterdir()) == []


def test_layers_that_saw_no_token_have_no_load(tmp_path: Path) -> None:
    write_load(tmp_path, (10, [0, 0]))
    assert training_load(tmp_path / "router_load.jsonl") == {}
    assert training_load(tmp_path / "absent.jsonl") == {}


def test_mixers_of_a_deep_model_are_shown_from_the_first_to_the_last_layer() -> None:
    mixers = {str(i): np.eye(2) for i in range(100)}
    shown = list(evenly_spaced(mixers, 12))
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == ("0", "99")
    assert list(evenly_spaced(mixers, 200)) == list(mixers)
