"""`mosgoat export`: a finished run as a plain LoRA that other tools open, or as a whole model."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import nn

from common.adapters import METHODS, export_lora
from common.adapters.export_sdxl import COMPONENTS, export_sdxl
from common.errors import UserError
from common.files import TEMPORARY, fsync_tree, share_as_usual, write_json
from common.reporting.runs import Run, read_json, read_run

PROG = "mosgoat export"
MARK = "export.json"  # what an export is of; its presence lets --overwrite replace the folder
Target = Literal["lora", "merged"]
Format = Literal["peft", "diffusers", "kohya"]

# `task` of a run's results -> the module that opens its runs, with the two functions below.
#   load_adapted(run: Path) -> Adapted
#   save_merged(run: Path, directory: Path) -> None: the whole model, adapter merged, in its own format
EXPORTERS = {
    "vit_classify": "vit_classify.export",
    "llava": "llava.export",
    "dreambooth": "dreambooth.export",
}


@dataclass(frozen=True)
class Adapted:
    """The model of a run as its pipeline loads it.

    Args:
        components: name -> model with an adapter, a `PeftModel` or one with an injected adapter; `unet`,
            `text_encoder`, `text_encoder_2` for SDXL, one of any name elsewhere.
        beside: files that were trained with the adapter and belong beside it, such as a new head.
    """

    components: Mapping[str, nn.Module]
    beside: Sequence[Path] = field(default_factory=tuple)


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    run: Path
    to: Target
    format: Format
    output: Path
    overwrite: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, export, say what was written; exit status 0."""
    options = read_arguments(list(argv or []))
    print(export(options))
    return 0


def read_arguments(argv: Sequence[str]) -> Options:
    """The command line.

    Raises:
        UserError: an option without effect.
    """
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="directory of a finished run")
    parser.add_argument(
        "--to",
        required=True,
        choices=("lora", "merged"),
        help="lora: a plain LoRA, exactly equal to the adapter; merged: the whole model in its own format",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument(
        "--format",
        choices=("peft", "diffusers", "kohya"),
        help="of a lora; default: peft. diffusers and kohya (ComfyUI, A1111) are for SDXL",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the output folder")
    given = parser.parse_args(argv)
    if given.format is not None and given.to == "merged":
        raise UserError(f"--format={given.format} has no effect with --to merged, which has its own; leave it out")
    return Options(given.run, given.to, given.format or "peft", given.output, given.overwrite)


def export(options: Options) -> str:
    """Write the export.

    Returns:
        What was written, in a line or two.

    Raises:
        UserError: the run cannot be exported in this way, or the output folder must not be replaced.
    """
    run = read_run(options.run)
    method = method_of(run)
    require_possible(method, options)
    exporter = exporter_of(run)
    with new_folder(options.output, options.overwrite) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Could not find a config file")  # PEFT, of a base without a name
        if options.to == "merged":
            exporter.save_merged(options.run, folder)
        else:
            write_lora(exporter.load_adapted(options.run), folder, options.format)
        about = {"run": str(options.run.resolve()), "task": run.results["task"], "method": method, "to": options.to}
        write_json(folder / MARK, about | ({"format": options.format} if options.to == "lora" else {}))
        share_as_usual(folder)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    what = "the whole model" if options.to == "merged" else f"a plain LoRA, {options.format} format"
    return f"{method} of {options.run} written to {options.output} as {what} ({size / 1e6:.1f} MB)"


def write_lora(adapted: Adapted, folder: Path, form: Format) -> None:
    """Write a loaded adapter as a plain LoRA in one of the formats.

    Raises:
        UserError: the adapter is no LoRA, or the format is not one for this model.
    """
    if form == "peft":
        alone = len(adapted.components) == 1
        for name, model in adapted.components.items():
            export_lora(model, folder if alone else folder / name)
    elif set(adapted.components) <= set(COMPONENTS):
        export_sdxl(adapted.components, folder, form)
    else:
        raise UserError(f"--format={form} is a naming of SDXL's layers, and this run has none; use --format peft")
    for file in adapted.beside:
        shutil.copyfile(file, folder / file.name)


def method_of(run: Run) -> str:
    """The adapter method of a run; raises `UserError` if it names none that is known."""
    section = run.config.get("adapter")
    method = section.get("method") if isinstance(section, Mapping) else None
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{run.path / 'config.yaml'}: adapter.method={method} is no method; was the file changed?")
    return method


def exporter_of(run: Run) -> Any:
    """The module that opens a run's model."""
    task = run.results.get("task")
    if not isinstance(task, str) or task not in EXPORTERS:
        raise UserError(f"{run.path} is a run of {task}, which cannot be exported; known: {', '.join(EXPORTERS)}")
    try:
        return importlib.import_module(EXPORTERS[task])
    except ModuleNotFoundError as error:
        if not f"{EXPORTERS[task]}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{run.path} is a run of {task}, which this installation of mosgoat cannot export") from None


def require_possible(method_name: str, options: Options) -> None:
    """Refuse, before a model is loaded, what the method does not allow, with the reason and what to do instead."""
    method, adapter = METHODS[method_name], options.run / "adapter"
    merges = method.mergeable or method_name == "full"
    if merges if options.to == "merged" else method.exportable:
        return
    instead = " `--to merged` writes the whole model." if merges else ""
    if method.routed:
        reason = (
            "it weighs its experts anew for every token, so that no single weight and no plain LoRA equals it. Keep "
            f"{adapter} as it is: this suite opens it, and PEFT does after `import common.adapters`. If other tools "
            "must open it, train moslora or lora"
        )
    elif method.build is None:
        reason = "it is no adapter." if merges else "it leaves the model as it is; what was trained lies in the run"
        reason += instead
    else:
        opens = "this suite opens" if method.ours else "stock PEFT opens"
        reason = f"its update ({method.equation}) is no product of two narrow matrices. {adapter} is what {opens}."
        reason += instead
    head = f"--to {options.to} is not possible with adapter.method={method_name}: "
    raise UserError(head + reason)


def require_mergeable(path: Path, method_name: str, uses: str) -> None:
    """Refuse to merge what no single weight equals.

    Args:
        path: the run.
        method_name: its method.
        uses: the commands that use the run as it is.

    Raises:
        UserError: with the reason and what to do instead.
    """
    method = METHODS[method_name]
    if not method.mergeable:
        why = "weighs its experts anew for every token" if method.routed else "is more than an added matrix"
        raise UserError(
            f"{path} was trained with adapter.method={method.name}, which {why}, so that no single weight equals it: "
            f"it cannot be merged. Use the run as it is ({uses}), or train moslora or lora"
        )


def require_empty(directory: Path) -> None:
    """Raise `UserError` if `directory` holds something already."""
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; give a new folder")


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is deleted when it does not.

    Args:
        path: the folder to make; an empty one may be there.
        overwrite: whether an earlier export may be replaced; anything else is never.

    Raises:
        UserError: there is something at `path` that must not be replaced, or it cannot be written.
    """
    _require_free(path, overwrite)
    path = path.absolute()
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}{kind}{TEMPORARY}") for kind in ("", ".old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        fsync_tree(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other
        if old.exists() and not path.exists():
            old.rename(path)
        raise UserError(f"--output={path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_free(path: Path, overwrite: bool) -> None:
    try:
        there = path.exists() or path.is_symlink()
    except OSError as error:  # a name that is too long, a folder that must not be entered
        raise UserError(f"--output={path} cannot be written: {error.strerror}") from error
    if not there:
        return
    if not path.exists():
        raise UserError(f"--output={path} is a link to {path.readlink()}, which is not there; give another folder")
    if not path.is_dir():
        raise UserError(f"--output={path} is a file; give the path of a folder")
    if not any(path.iterdir()):
        return
    if not (path / MARK).is_file():
        raise UserError(f"--output={path} is not empty and holds no export; give another folder")
    if not overwrite:
        about = read_json(path / MARK)
        source = about.get("run") if isinstance(about, dict) else None
        raise UserError(
            f"--output={path} holds an export of {source or 'an unknown run'}; give another folder, or --overwrite"
        )
