"""`mosgoat export`: what it refuses, and folders that are whole or absent."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from common import export
from common.adapters import METHODS, build_config
from common.errors import UserError
from common.export import Adapted
from tests.common.adapters import sdxl
from tests.common.adapters.tiny_models import shake


def toy(method: str) -> nn.Module:
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 12)), build_config(method, r=4, target_modules=["0"]))
    shake(model)
    return model


@pytest.fixture
def toy_pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A pipeline named `toy`, whose module opens every run as the same small model."""
    module: Any = ModuleType("toy_export")
    module.load_adapted = lambda run: Adapted({"toy": toy("moslora")}, [run / "head.json"])
    module.save_merged = lambda run, directory: (directory / "model.txt").write_text("whole")
    monkeypatch.setitem(sys.modules, "toy_export", module)
    monkeypatch.setitem(export.EXPORTERS, "toy", "toy_export")
    return module


@pytest.fixture
def run(tmp_path: Path, toy_pipeline: ModuleType) -> Path:
    path = tmp_path / "run"
    (path / "adapter").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"adapter": {"method": "moslora"}}))
    (path / "results.json").write_text(json.dumps({"task": "toy", "metrics": {}}))
    (path / "head.json").write_text("{}")
    return path


def call(run: Path, out: Path, *words: str, to: str = "lora") -> None:
    assert export.main(["--run", str(run), "--to", to, "--output", str(out), *words]) == 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def set_method(run: Path, method: str) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"adapter": {"method": method}}))


def test_a_lora_comes_with_what_was_trained_beside_it_and_says_where_it_is_from(run: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "out")
    expected = {"adapter_config.json", "adapter_model.safetensors", "head.json", "export.json"}
    assert names(tmp_path / "out") == expected
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about == {"run": str(run), "task": "toy", "method": "moslora", "to": "lora", "format": "peft"}


def test_several_components_have_a_folder_each(run: Path, tmp_path: Path, toy_pipeline: Any) -> None:
    toy_pipeline.load_adapted = lambda run: Adapted({"tower": toy("moslora"), "llm": toy("lora")})
    call(run, tmp_path / "out")
    assert names(tmp_path / "out") == {"tower", "llm", "export.json"}


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_sdxl_run_is_one_lora_file(form: str, run: Path, tmp_path: Path, toy_pipeline: Any) -> None:
    unet = sdxl.pipeline().unet
    unet.add_adapter(build_config("moslora", r=4, target_modules=sdxl.ATTENTION))
    toy_pipeline.load_adapted = lambda run: Adapted({"unet": unet})
    call(run, tmp_path / "out", "--format", form)
    assert names(tmp_path / "out") == {"pytorch_lora_weights.safetensors", "export.json"}


def test_sdxls_namings_are_refused_for_other_models(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--format=kohya is a naming of SDXL's layers.*use --format peft"):
        call(run, tmp_path / "out", "--format", "kohya")
    assert names(tmp_path) == {"run"}


def test_the_files_can_be_read_by_whom_the_folder_can(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        call(run, tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


@pytest.mark.parametrize("to", ["lora", "merged"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_or_refused_with_a_way_out(method: str, to: str, run: Path, tmp_path: Path) -> None:
    set_method(run, method)
    row = METHODS[method]
    if row.exportable if to == "lora" else row.mergeable or method == "full":
        call(run, tmp_path / "out", to=to)
        return
    with pytest.raises(UserError, match=rf"--to {to} is not possible with adapter.method={method}: ") as refused:
        call(run, tmp_path / "out", to=to)
    ways = ("train moslora or lora", "--to merged", "what was trained lies in the run", "is what")
    assert any(way in str(refused.value) for way in ways)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_filled_and_a_full_one_is_never_touched(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    call(run, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for words in ((), ("--overwrite",)):
        with pytest.raises(UserError, match="is not empty and holds no export"):
            call(run, tmp_path / "mine", *words)
        with pytest.raises(UserError, match="is not empty and holds no export"):
            call(run, run, *words)
    with pytest.raises(UserError, match="is a file"):
        call(run, run / "head.json", "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_earlier_export_is_replaced_whole_if_told_so(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(run, out)
    with pytest.raises(UserError, match=rf"holds an export of {run}; give another folder, or --overwrite"):
        call(run, out, to="merged")
    call(run, out, "--overwrite", to="merged")
    assert names(out) == {"model.txt", "export.json"}
    assert names(tmp_path) == {"run", "out"}


def test_an_export_that_fails_leaves_the_old_one_and_nothing_else(run: Path, tmp_path: Path, toy_pipeline: Any) -> None:
    out = tmp_path / "out"
    call(run, out)

    def fails(run: Path, directory: Path) -> None:
        (directory / "half.txt").write_text("half")
        raise OSError("no space left on device")

    toy_pipeline.save_merged = fails
    with pytest.raises(UserError, match=r"cannot be written: no space left"):
        call(run, out, "--overwrite", to="merged")
    assert "adapter_config.json" in names(out)
    assert names(tmp_path) == {"run", "out"}


def test_a_run_that_cannot_be_exported_is_named(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="there is no run at"):
        call(tmp_path / "nowhere", out)
    set_method(run, "gaot")
    with pytest.raises(UserError, match=r"adapter\.method=gaot is no method"):
        call(run, out)
    set_method(run, "moslora")
    (run / "results.json").write_text(json.dumps({"task": "poetry", "metrics": {}}))
    with pytest.raises(UserError, match="is a run of poetry, which cannot be exported; known: vit_classify"):
        call(run, out)
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        call(run, out)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"it has no config\.yaml"):
        call(run, out)


def test_a_format_of_a_merged_model_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--format=peft has no effect with --to merged"):
        call(run, tmp_path / "out", "--format", "peft", to="merged")


def test_every_pipeline_that_is_there_offers_both_functions() -> None:
    import importlib

    root = Path(export.__file__).resolve().parent.parent
    for task, module in export.EXPORTERS.items():
        if (root / task / "export.py").is_file():
            found = importlib.import_module(module)
            assert callable(found.load_adapted)
            assert callable(found.save_merged)


@pytest.mark.parametrize("task", [["toy"], None, "nothing", "gone"])
def test_run_of_a_task_without_an_exporter_is_refused(
    run: Path, tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.EXPORTERS, "gone", "a_pipeline_that_is_not_there.export")
    (run / "results.json").write_text(json.dumps({"task": task, "metrics": {}}))
    with pytest.raises(UserError, match=r"cannot|must be a text"):
        call(run, tmp_path / "out")


def test_method_that_is_no_name_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"adapter": {"method": ["goat"]}}))
    with pytest.raises(UserError, match="is no method"):
        call(run, tmp_path / "out")


def test_output_that_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too long"):
        call(run, tmp_path / ("n" * 300))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link to"):
        call(run, tmp_path / "link")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / export.MARK).write_text("[]")
    with pytest.raises(UserError, match="an unknown run"):
        call(run, tmp_path / "odd")


def test_disk_that_fills_up_within_the_weights_is_told_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:  # what safetensors raises, which is no OSError
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(export, "export_lora", full)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
        call(run, tmp_path / "out")
    assert names(tmp_path) == {"run"}
