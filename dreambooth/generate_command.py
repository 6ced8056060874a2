"""`mosgoat dreambooth generate`: pictures of subjects by adapters from the same noise; goes on where it stopped."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import xxhash
from tqdm import tqdm

from common.cache import fingerprint_of, locked
from common.commands import add_device_option, require_between, say
from common.config import Precision
from common.devices import usable_device
from common.errors import UserError
from common.files import atomic_write
from common.pictures import encoded
from common.words import counted
from common.write_errors import writing_is_explained
from dreambooth.generate import PictureJob, embed_prompts, generate, size_for
from dreambooth.generate_plan import BASE, Target, find_targets
from dreambooth.grid_pages import write_grids
from dreambooth.manifest import MANIFEST, Manifest, PictureEntry, picture_name, read_manifest, write_manifest
from dreambooth.model import SdxlBase, load_model, put_adapter, take_adapter_off, tokenize
from dreambooth.model_run import ADAPTER

PROG = "mosgoat dreambooth generate"
_ELSEWHERE = "give an --output on a local disk"
_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures that are missing, then the grids."""
    options = _parser().parse_args(list(argv or []))
    _check(options)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    targets = find_targets(options.run, base=options.base, prompts=options.prompts, subjects=options.subjects)
    if len(targets) < processes and rank == 0:
        idle = counted(processes - len(targets), "process", "processes")
        say(f"{counted(len(targets), 'set')} of pictures, which are not divided further: {idle} without work")
    targets = targets[rank::processes]
    if not targets:
        return 0
    say(f"{counted(len(targets), 'set')} of pictures: " + ", ".join(str(target.folder) for target in targets))
    for target in targets:
        if not target.references:
            say(f"the pictures that {target.run} was trained on are not there any more: no references are noted")
    with writing_is_explained(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
        total = sum(len(target.prompts) for target in targets) * len(options.seeds)
        with tqdm(total=total, desc="generating", unit=" pictures", disable=rank > 0 or None) as bar:
            for group in _by_model(targets):
                _make_group(group, options, bar)
        # Processes do not wait for each other, which a process group does for minutes only; the last one draws all.
        with locked(options.output, "grids", _ELSEWHERE) if processes > 1 else contextlib.nullcontext():
            written = write_grids(options.output)
    print(f"pictures are in {options.output}; grids: {', '.join(str(path) for path in written)}")
    return 0


def _check(options: argparse.Namespace) -> None:
    require_between("--steps", options.steps, most=10_000)
    require_between("--batch-size", options.batch_size)
    require_between("--guidance", options.guidance, 0, 1000, "5 is usual, up to 1 there is no guidance")
    for seed in options.seeds:
        require_between("--seeds", seed, 0, 2**63 - 1)
    options.seeds = sorted(set(options.seeds))


def _by_model(targets: Sequence[Target]) -> list[list[Target]]:
    """Targets that share a model, which is loaded once; those without an adapter first."""
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(repr((target.recipe.model, target.recipe.train.precision)), []).append(target)
    return [sorted(group, key=lambda target: target.adapter != BASE) for group in groups.values()]


def _make_group(targets: Sequence[Target], options: argparse.Namespace, bar: Any) -> None:
    recipe = targets[0].recipe
    device = usable_device(options.device or _own_gpu())
    base = load_model(recipe.model, precision=options.precision or recipe.train.precision, device=device)
    for target in targets:
        folder = options.output / target.folder
        folder.mkdir(parents=True, exist_ok=True)
        if target.adapter != BASE:
            put_adapter(base, target.run)
        try:
            with locked(folder, "generated pictures", _ELSEWHERE):
                _make(base, target, folder, options, bar)
        finally:
            take_adapter_off(base)


def _own_gpu() -> str | None:
    """Of one of several processes on a machine, where there are GPUs."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else None


@dataclass(frozen=True)
class _Plan:
    """What one folder is to hold: the manifest with what is there already, and what remains."""

    manifest: Manifest
    waiting: list[tuple[int, PictureEntry]]


def _make(base: SdxlBase, target: Target, folder: Path, options: argparse.Namespace, bar: Any) -> None:
    side = size_for(base, target.recipe.data.resolution if options.size is None else options.size)
    settings = _settings(base, options, side)
    plan = _plan(base, target, folder, options, settings)
    manifest = plan.manifest
    write_manifest(folder, manifest)
    bar.update(len(target.prompts) * len(options.seeds) - len(plan.waiting))
    if not plan.waiting:
        return
    texts = [manifest.prompt_text(index) for index in dict.fromkeys(index for index, _ in plan.waiting)]
    if longer := tokenize(base, texts).truncated:
        more = f" (and {len(longer) - _SHOWN} more)" if len(longer) > _SHOWN else ""
        say(
            f"warning: longer than the model can read, cut at the end: {len(longer)} of "
            f"{counted(len(texts), 'prompt')}: " + "; ".join(longer[:_SHOWN]) + more
        )
    embedded = embed_prompts(base, texts)
    for start in range(0, len(plan.waiting), options.batch_size):
        batch = plan.waiting[start : start + options.batch_size]
        jobs = [PictureJob(manifest.prompt_text(index), entry.seed) for index, entry in batch]
        made = generate(
            base,
            jobs,
            steps=options.steps,
            guidance=options.guidance,
            size=side,
            batch_size=options.batch_size,
            embedded=embedded,
        )
        pictures = dict(manifest.pictures)
        for (index, entry), image in zip(batch, made, strict=True):
            name = picture_name(index, entry.seed)
            atomic_write(folder / name, encoded(image))
            pictures[name] = entry
        # behind the files: what the manifest names is there, whenever the process is killed
        manifest = replace(manifest, pictures=dict(sorted(pictures.items())))
        write_manifest(folder, manifest)
        bar.update(len(batch))


def _settings(base: SdxlBase, options: argparse.Namespace, side: int) -> dict[str, Any]:
    return {
        "steps": options.steps,
        "guidance": options.guidance,
        "size": side,
        "precision": base.precision,
        "sampler": base.scheduler_config["_class_name"],
    }


def _plan(
    base: SdxlBase, target: Target, folder: Path, options: argparse.Namespace, settings: Mapping[str, Any]
) -> _Plan:
    weights = _weights(base, target)
    schedule = fingerprint_of({key: str(value) for key, value in base.scheduler_config.items()})
    fixed = (weights, dict(settings), schedule)
    new = Manifest(
        adapter=target.adapter,
        subject=target.subject,
        class_word=target.class_word,
        token=target.recipe.data.token,
        prompts=target.prompts,
        seeds=tuple(options.seeds),
        references=target.references,
        settings=settings,
        weights=weights,
    )

    def mark(manifest: Manifest, prompt: int, seed: int) -> str:
        return fingerprint_of(*fixed, manifest.prompt_text(prompt), seed)

    old = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    if old is not None and old.prompts[: len(new.prompts)] == new.prompts:
        new = replace(new, prompts=old.prompts)  # fewer prompts than before: the others stay
    kept = _kept(old, new, folder, mark, options.overwrite)
    seeds = tuple(sorted({*new.seeds, *(entry.seed for entry in kept.values())}))
    manifest = replace(new, seeds=seeds, pictures=kept)
    there = manifest.by_cell()
    cells = [(prompt, seed) for prompt in range(len(target.prompts)) for seed in options.seeds]
    waiting = [
        (prompt, PictureEntry(prompt, seed, mark(manifest, prompt, seed)))
        for prompt, seed in cells
        if (prompt, seed) not in there
    ]
    return _Plan(manifest, waiting)


def _kept(old: Manifest | None, new: Manifest, folder: Path, mark: Any, overwrite: bool) -> dict[str, PictureEntry]:
    """The pictures that are there and would come out the same; others go, but only when told so.

    Raises:
        UserError: there are others, and nobody said that they may go.
    """
    if old is None:
        strange = {path.name for path in folder.glob("*.png")}
        kept = {}
    else:
        kept = {
            name: entry
            for name, entry in old.pictures.items()
            if entry.prompt < len(new.prompts) and entry.made_by == mark(new, entry.prompt, entry.seed)
        }
        strange = old.pictures.keys() - kept.keys()
    if strange and not overwrite:
        raise UserError(
            f"{folder} holds {counted(len(strange), 'picture')} made otherwise: by other weights, of other prompts, or "
            "with other settings; choose another --output, or give --overwrite to make them anew"
        )
    for name in strange:
        (folder / name).unlink(missing_ok=True)
    return {name: entry for name, entry in kept.items() if (folder / name).is_file()}


def _weights(base: SdxlBase, target: Target) -> str:
    """A hash of the base's weights and of all files of the adapter."""
    digest = xxhash.xxh3_128(base.fingerprint.encode())
    if target.adapter != BASE:
        root = target.run / ADAPTER
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.epilog = (
        "Several GPUs: torchrun --nproc-per-node 4 -m -- common.cli dreambooth generate --run RUNS --output DIR; the "
        "sets of pictures, one for each adapter and subject, are divided among the processes."
    )
    parser.add_argument(
        "--run",
        required=True,
        nargs="+",
        metavar="[NAME=]PATH",
        help="runs, or folders of runs with one for each subject; NAME is what its pictures are called by",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder: ADAPTER/SUBJECT/PROMPT_SEED.png")
    parser.add_argument("--base", action="store_true", help="also the model without an adapter, called `base`")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="prompts_and_classes.txt as DreamBooth's data set has it, or one prompt a line with {token} and {class}; "
        "default: the one beside the pictures of the training",
    )
    parser.add_argument("--subjects", nargs="+", help="of the runs' subjects only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="default: 0 1 2 3")
    parser.add_argument("--steps", type=int, default=50, help="of sampling; default: 50")
    parser.add_argument("--guidance", type=float, default=5.0, help="scale of classifier-free guidance; default: 5")
    parser.add_argument("--size", type=int, help="side in pixels; default: the training's")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at once; default: 4")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the frozen weights; default: the run's")
    add_device_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="make pictures anew that were made otherwise")
    return parser
