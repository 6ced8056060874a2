"""Runs, evaluations and pictures as the suite leaves them on the disk, made without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from common.reporting.adapter_plots import plot_mixers, plot_singular_values
from common.reporting.plots import plot_confusion
from common.reporting.runs import MIXERS_PLOT, SPECTRA_PLOT
from common.reporting.samples import Sample, Samples, write_samples
from dreambooth.manifest import Manifest, PictureEntry, picture_name, write_manifest
from eval.study.export import results_json
from eval.study.questions import QUESTIONS
from eval.study.results import RaterProgress, StudyResults, Vote, compare
from eval.subjects import results as subjects
from eval.subjects.scores import Measured, PictureScore
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.results import write_results
from eval.vlm.scoring import Scores

COST = {"train_seconds": 12.5, "trainable_parameters": 1000}
ABOUT = {
    "started": "2026-01-01",
    "devices": [{"name": "cpu"}],
    "packages": {"torch": "2.14"},
    "git": {"commit": "abcdef1234567890", "changed_files": 0},
}
ABILITIES = {"attribute": 60.0, "coarse": 80.0, "logic": 25.0, "relation": 10.0}


def picture(colour: str = "red", size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.new("RGB", size, colour)


def make_run(
    root: Path,
    name: str,
    *,
    method: str = "moslora",
    seed: int = 0,
    diagnosed: bool = True,
    task: str | None = None,
    results: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **metrics: float,
) -> Path:
    """A run directory; `diagnosed` adds the files of adapters and routers."""
    run = root / name
    (run / "plots").mkdir(parents=True)
    recipe = {"adapter": {"method": method}, "seed": seed, "output": str(run), **(config or {})}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    measured = {"accuracy": 0.5 + seed / 10, "per_class": {"a": 1}, **COST, **metrics}
    task = task or ("llava" if "validation_loss" in metrics else "vit_classify")
    content = {"task": task, "method": method, "seed": seed, "n": 40, "metrics": measured, **(results or {})}
    (run / "results.json").write_text(json.dumps(content))
    lines = [{"step": i, "loss": 2 / i, "accuracy": i / 10} for i in range(1, 6)]
    lines.append({"step": 5, "eval_accuracy": 0.5})
    (run / "environment.json").write_text(json.dumps(ABOUT))
    if diagnosed:
        plot_singular_values(run / "plots" / SPECTRA_PLOT, {"a.0": [2.0, 1.0]})
        plot_confusion(run / "plots" / "confusion.png", np.eye(2, dtype=int), ["a", "b"])
    if diagnosed and method == "moslora":
        plot_mixers(run / "plots" / MIXERS_PLOT, {"a.0": np.eye(2)})
    if diagnosed and method == "goat":
        load = [{"step": i, "tokens": {"a.0": [i, 2], "a.1": [1, 1]}} for i in range(1, 6)]
        (run / "router_load.jsonl").write_text("".join(json.dumps(line) + "\n" for line in load))
        (run / "router_load.json").write_text(json.dumps({"a.0": [0.25, 0.75]}))
        lines = [{**line, "router_load_entropy": 0.9} for line in lines[:5]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def of_paper(root: Path, name: str, dataset: str = "eurosat", n: int = 2700, **more: Any) -> Path:
    """A run of `vit_classify` on one of the paper's sets."""
    model = {"name": "ViT-B-32-quickgelu", "weights": None, "head": "zero_shot"}
    train = {"batch_size": 512, "learning_rate": 1e-4, "epochs": None, "max_steps": None, **more.pop("train", {})}
    config = {"model": model, "data": {"name": dataset, "source": more.pop("source", None)}, "train": train}
    results = {"dataset": dataset, "n": n, "head": "zero_shot", "skipped": 0}
    return make_run(root, name, config=config, results=results, **more)


def add_samples(run: Path) -> None:
    labels = [Sample(picture("blue"), answer="a", expected="b", right=False), Sample(picture(), "", "b", "b", True)]
    write_samples(run, Samples("labels", "2 of the 40 test pictures, 1 of them wrong.", labels))


def add_chat(run: Path) -> None:
    chat = [
        Sample(picture(), "What colour is it?", "red", "red", True),
        Sample(None, "Why?\nSay more.", "because", "<b>nobody</b> knows", None),
    ]
    write_samples(run, Samples("chat", "Greedy answers.", chat))


def images_evaluation(folder: Path, run: str, **more: Any) -> Path:
    """What `mosgoat eval images` writes."""
    content = {"task": "vit_classify", "run": run, "dataset": "signs", "source": None, "split": "test", "skipped": 0}
    content |= {"metrics": {"accuracy": 0.75}, "n": 40, "method": "lora", **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval_images.json").write_text(json.dumps(content))
    return folder


def vlm_evaluation(folder: Path, label: str, benchmark: str = "MMBench_DEV_EN", **more: Any) -> Path:
    """What `mosgoat eval mmbench` writes for one benchmark, with abilities."""
    metrics = {"dev": {"overall": 41.25, "l2-category": ABILITIES}}
    told = {"run": None, "model": "some/model", "label": label, "engine": "own", "answer": "generate", **more}
    name = benchmark + ("" if told["answer"] == "generate" else f"_{told['answer']}")
    write_results(folder / name, find_benchmark(benchmark), Scores(metrics, [{"index": 0}], 1164), more=told)
    return folder


def subjects_evaluation(folder: Path, *, models: dict[str, str], labels: dict[str, str] | None = None) -> Path:
    """What `mosgoat eval subjects` writes for two adapters, two subjects."""
    scores = [
        PictureScore(adapter, subject, 0, "a {token} {class}", seed, Path("x.png"), {"dino": 0.5 + seed / 100 + shift})
        for adapter, shift in (("lora", 0.0), ("moslora", 0.1))
        for subject in ("dog", "cat2")
        for seed in (0, 1)
    ]
    more = {"labels": labels, "about": "drawn"} if labels else {}
    measured = Measured(scores, {"dog": {"dino": 0.8}, "cat2": {"dino": 0.7}}, {"lora": 4, "moslora": 4}, **more)  # type: ignore[arg-type]
    subjects.write_results(folder, measured, {"models": models, "generated": [], "missing": []})
    return folder


def study_evaluation(folder: Path) -> Path:
    """What `mosgoat eval study` exports."""
    votes = [Vote(rater, pair, "first" if pair else "tie", False) for rater in range(3) for pair in range(2)]
    raters = [RaterProgress(f"rater {i}", 2, 2, False, "") for i in range(3)]
    found = [compare(question, "moslora", "lora", votes) for question in QUESTIONS]
    results = StudyResults("dogs & cats", "2026-01-01", ["moslora", "lora"], 2, raters, found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results_json(results))
    return folder


def generated(root: Path, *, prompts: int = 2, subject: str = "dog6") -> Path:
    """Pictures of two adapters as `mosgoat dreambooth generate` leaves them; one is missing."""
    for adapter in ("base", "lora"):
        folder = root / adapter / subject
        folder.mkdir(parents=True)
        names = {(prompt, seed): picture_name(prompt, seed) for prompt in range(prompts) for seed in (0, 1)}
        for name in names.values():
            picture("green", (64, 64)).save(folder / name)
        (folder / names[0, 1]).unlink()
        texts = tuple(f"a {{token}} {{class}}, place {number}" for number in range(prompts))
        entries = {name: PictureEntry(*cell) for cell, name in names.items()}
        write_manifest(folder, Manifest(adapter, subject, "dog", "ikat", texts, (0, 1), pictures=entries))
    return root
