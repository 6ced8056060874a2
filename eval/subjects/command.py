"""`mosgoat eval subjects`: DreamBooth's measures of generated pictures: DINO, CLIP-I and CLIP-T."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.cache import cache_root
from common.commands import add_device_option, require_between, require_one_process
from common.devices import usable_device
from common.errors import UserError
from common.reporting.published import load_published
from common.reporting.runs import read_json
from common.reporting.tables import render_text
from common.training.environment import made_by
from common.write_errors import writing_is_explained
from eval.subjects.drawn import ENCODER, drawn_clip, is_drawn, with_drawn_dino
from eval.subjects.extractors import CLIP, DINO, Extractors, load_clip, load_dino
from eval.subjects.results import comparison_table, comparisons, main_table, subject_table, write_results
from eval.subjects.scores import Measured, measure
from eval.subjects.sets import read_sets, require_whole

PROG = "mosgoat eval subjects"
_SHOWN = 10
_DRAWN = f"{ENCODER}: for the demo's drawings; its figures are not comparable with others"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; exit status 1 when some pictures were missing or unreadable."""
    options = _parser().parse_args(list(argv or []))
    require_one_process(PROG, "give each of several commands some of the folders")
    require_between("--batch-size", options.batch_size)
    sets = read_sets(options.generated, options.references)
    missing = require_whole(sets, options.allow_incomplete)
    folders = [str(root.resolve()) for root in options.generated]
    _refuse_overwriting(options, folders)
    cache = None if options.no_cache else cache_root(options.cache_dir) / "subject-features"
    with writing_is_explained(options.output):
        options.output.mkdir(parents=True, exist_ok=True)  # before the models are loaded
    measured = measure(sets, load_extractors(options), cache=cache, batch_size=options.batch_size)
    facts = {
        "generated": folders,
        "references": None if options.references is None else str(options.references.resolve()),
        "models": {name: getattr(options, name) for name in ("dino", "clip") if options.only in (None, name)},
        "missing": missing,
        **made_by(PROG, list(argv or [])),
    }
    with writing_is_explained(options.output):
        write_results(options.output, measured, facts)
    show(measured, missing, options.output, _heading(options))
    return int(bool(missing or measured.unreadable))


def load_extractors(options: argparse.Namespace) -> Extractors:
    """The models for the measures that are asked for."""
    device = usable_device(options.device)
    chosen = [name for name in ("dino", "clip") if options.only in (None, name)]
    drawn = {name: is_drawn(getattr(options, name), f"--{name}") for name in chosen}  # before anything is loaded
    found = Extractors()
    if "clip" in chosen:
        found = drawn_clip() if drawn["clip"] else load_clip(options.clip, device)
    if "dino" in chosen:
        found = with_drawn_dino(found) if drawn["dino"] else replace(found, dino=load_dino(options.dino, device))
    return found


def _heading(options: argparse.Namespace) -> str:
    """What is measured with, where it is not (by name) what the paper measures with."""
    chosen = [(name, getattr(options, name)) for name in ("dino", "clip") if options.only in (None, name)]
    other = [f"{name.upper()}: {given}" for name, given in chosen if given != {"dino": DINO, "clip": CLIP}[name]]
    return f"measured with {', '.join(other)}" if other else "measured"


def show(measured: Measured, missing: Sequence[str], output: Path, heading: str) -> None:
    """Print the tables and everything that was left out."""
    print(render_text(main_table(measured, load_published("dreambooth_table1"), heading)))
    found = comparisons(measured)
    if found:
        print(f"\n{render_text(comparison_table(found, measured.labels))}")
    print(f"\n{render_text(subject_table(measured))}\n")
    notes = [f"missing: {line}" for line in missing]
    notes += [f"unreadable, left out: {path}: {reason}" for path, reason in measured.unreadable]
    notes += [f"longer than CLIP can read, cut at its end: {text}" for text in measured.cut_texts]
    for line in notes[:_SHOWN]:
        print(line)
    if len(notes) > _SHOWN:
        print(f"and {len(notes) - _SHOWN} more, in results.json")
    files = "results.json, pictures.csv, by_prompt.csv, by_subject.csv, plots/subjects.png"
    print(f"written to {output}: {files}")


def _refuse_overwriting(options: argparse.Namespace, folders: list[str]) -> None:
    file = options.output / "results.json"
    if options.overwrite or not file.is_file():
        return
    old: Any = read_json(file)
    if not isinstance(old, dict) or old.get("generated") != folders:
        raise UserError(f"{file} holds the measurement of something else; give another --output, or --overwrite")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--generated",
        required=True,
        nargs="+",
        type=Path,
        help="folders from `mosgoat dreambooth generate --output`, or single adapters' folders of them",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--references",
        type=Path,
        help="folder with a folder of real pictures for each subject; default: those that each run was trained on",
    )
    parser.add_argument("--dino", default=DINO, help=f"Hub id or folder; default: {DINO}. {_DRAWN}")
    parser.add_argument("--clip", default=CLIP, help=f"Hub id or folder; default: {CLIP}. {_DRAWN}")
    parser.add_argument("--only", choices=("dino", "clip"), help="leave the other model out; default: both")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at once; default: 32")
    add_device_option(parser)
    parser.add_argument("--cache-dir", help="where features are kept; default: $MOSGOAT_CACHE or ~/.cache/mosgoat")
    parser.add_argument("--no-cache", action="store_true", help="do not keep features")
    parser.add_argument("--allow-incomplete", action="store_true", help="measure although pictures are missing")
    parser.add_argument("--overwrite", action="store_true", help="replace another measurement in --output")
    return parser
