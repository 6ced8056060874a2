"""What `mosgoat demo` runs: its stages, the commands of each, and the files by which one knows that they are done."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A command of a stage.

    Args:
        words: behind `mosgoat`.
        makes: files that are there when it is done.
        needs: files of earlier stages that it reads. The step is done again when one is younger than what it makes.
    """

    words: tuple[str, ...]
    makes: tuple[Path, ...]
    needs: tuple[Path, ...] = ()

    def is_made(self) -> bool:
        """Whether all that it makes is there, and no older than what it is made of."""
        if not all(path.is_file() for path in (*self.makes, *self.needs)):
            return False
        oldest = min(os.stat(path).st_mtime_ns for path in self.makes)
        return all(os.stat(path).st_mtime_ns <= oldest for path in self.needs)


@dataclass(frozen=True)
class Stage:
    """A part of the demo.

    Args:
        name: what `--only` calls it, and its folder.
        purpose: what it shows.
        minutes: about how long it takes on two idle CPU cores.
        steps: folder of the demo -> its commands, in order.
        shows: what to look at afterwards, under the folder of the demo.
        after: the stage that it measures, without which it cannot run.
        again: done anew every time, because it is of all that is there.
    """

    name: str
    purpose: str
    minutes: float
    steps: Callable[[Path], Sequence[Step]]
    shows: str
    after: str | None = None
    again: bool = False


# What the training commands call their runs; a test compares them with the commands' own constants.
VISION_METHODS, VISION_SEEDS = ("linear_probe", "lora", "moslora", "goat"), (0, 1, 2)
LLAVA_RUN = "moslora"
DREAMBOOTH_RUNS = ("moslora", "lora")
_STAND_IN = "builtin:drawn-encoder"


def _vision_run(output: Path, method: str, seed: int) -> Path:
    return output / "vision" / "runs" / "signs" / method / f"seed{seed}"


def _vision(output: Path) -> list[Step]:
    runs = [_vision_run(output, method, seed) for method in VISION_METHODS for seed in VISION_SEEDS]
    return [_training(("vit", "demo"), output / "vision", runs)]


def _llava(output: Path) -> list[Step]:
    return [_training(("llava", "demo"), output / "llava", [output / "llava" / LLAVA_RUN])]


def _dreambooth(output: Path) -> list[Step]:
    folder = output / "dreambooth"
    step = _training(("dreambooth", "demo"), folder, [folder / "runs" / name for name in DREAMBOOTH_RUNS])
    return [Step(step.words, (*step.makes, folder / "measured.json"))]


def _training(command: tuple[str, ...], folder: Path, runs: Sequence[Path]) -> Step:
    makes = (*(run / "results.json" for run in runs), folder / "report.html")
    return Step((*command, "--output", str(folder)), makes)


def _eval_images(output: Path) -> list[Step]:
    steps = []
    for method in VISION_METHODS:
        run, folder = _vision_run(output, method, VISION_SEEDS[0]), output / "eval-images" / method
        words = ("eval", "images", "--run", str(run), "--output", str(folder))
        steps.append(Step(words, (folder / "eval_images.json",), (run / "results.json",)))
    return steps


def _eval_mmbench(output: Path) -> list[Step]:
    run, folder = output / "llava" / LLAVA_RUN, output / "eval-mmbench"
    common = ("--data", "builtin:drawn-mmbench", "--answer", "likelihood", "--batch-size", "64", "--output")
    before, after = folder / "base", folder / LLAVA_RUN
    base = ("--model", "builtin:drawn-llava", "--template", "llama3")
    needs, file = (run / "results.json",), "results_likelihood.json"
    return [
        Step(("eval", "mmbench", *base, *common, str(before)), (before / file,), needs),
        Step(
            ("eval", "mmbench", "--run", str(run), *common, str(after), "--beside", str(before)),
            (after / file,),
            (*needs, before / file),
        ),
    ]


def _eval_subjects(output: Path) -> list[Step]:
    pictures, folder = output / "dreambooth" / "pictures", output / "eval-subjects"
    models = ("--dino", _STAND_IN, "--clip", _STAND_IN)
    words = ("eval", "subjects", "--generated", str(pictures), *models, "--output", str(folder))
    return [Step(words, (folder / "results.json",), (output / "dreambooth" / "measured.json",))]


def _report(output: Path) -> list[Step]:
    page = output / "report.html"
    return [Step(("report", str(output), "-o", str(page), "--title", "mosgoat demo"), (page,))]


# Minutes: of `make demo` on two idle cores, 2026-11-22. In seconds: vision 183, llava 103, dreambooth 94,
# eval-images 43, eval-mmbench 33, eval-subjects 9, report 15.
STAGES = (
    Stage(
        "vision",
        "a small vision transformer learns 18 new signs: a new head alone, LoRA, MoSLoRA, GOAT; three runs of each",
        3,
        _vision,
        "vision/report.html",
    ),
    Stage(
        "llava",
        "a small vision-language model that describes pictures learns to answer questions about them",
        1.8,
        _llava,
        "llava/report.html",
    ),
    Stage(
        "dreambooth",
        "a small SDXL learns to draw a new character from five pictures of it",
        1.6,
        _dreambooth,
        "dreambooth/report.html",
    ),
    Stage(
        "eval-images",
        "top-1 accuracy and confusions of one run of each method, from the saved adapters alone",
        0.7,
        _eval_images,
        "eval-images",
        "vision",
    ),
    Stage(
        "eval-mmbench",
        "drawn questions in MMBench's form, with circular evaluation and abilities, before and after",
        0.6,
        _eval_mmbench,
        "eval-mmbench/moslora/radar_DrawnQuestions_likelihood.png",
        "llava",
    ),
    Stage(
        "eval-subjects",
        "DreamBooth's measures of the pictures, with a small network for drawings instead of DINO and CLIP",
        0.2,
        _eval_subjects,
        "eval-subjects/plots/subjects.png",
        "dreambooth",
    ),
    Stage("report", "all of it on one page", 0.3, _report, "report.html", again=True),
)
