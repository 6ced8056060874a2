"""The `mosgoat` command; `python -m common.cli` is the same program, for torchrun and accelerate.

Commands are named by string and imported on use, so that `mosgoat --help` answers without torch.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from common.errors import UserError
from common.words import did_you_mean

# command: (module:function that takes the remaining words and returns an exit status, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("common.demo:main", "all three pipelines at work on small embedded models and data"),
    "methods": (
        "common.adapters.listing:main",
        "every method of the two papers: equation, size, what can be done with it",
    ),
    "params": (
        "common.counting.command:main",
        "trained parameters and FLOPs of a method on a model, without its weights",
    ),
    "export": ("common.export:main", "write a run's adapter as a plain LoRA, or merged into the whole model"),
    "report": ("eval.report.command:main", "one page of tables and plots from any number of runs and evaluations"),
    "vit train": ("vit_classify.train:main", "fine-tune a CLIP vision tower on a picture set"),
    "vit evaluate": ("eval.images:main", "measure a finished run (the same as `mosgoat eval images`)"),
    "vit prepare": ("vit_classify.prepare:main", "fetch or verify a picture set and build its cache"),
    "vit sweep": (
        "vit_classify.sweep:main",
        "train methods x sets and print the paper's table with your row",
    ),
    "vit demo": ("vit_classify.demo.run:main", "train LoRA, MoSLoRA and GOAT on drawn signs, with a report"),
    "llava train": ("llava.train:main", "fine-tune a LLaVA-1.5 model on visual instructions"),
    "llava check-data": ("llava.check_data:main", "verify a file of conversations and its pictures"),
    "llava chat": ("llava.chat:main", "talk with a finished run about a picture"),
    "llava predict": ("llava.predict:main", "answer a file of questions with a finished run"),
    "llava demo": ("llava.demo.run:main", "teach a small LLaVA to answer questions, with a page of before and after"),
    "dreambooth train": ("dreambooth.train:main", "teach SDXL a subject from a handful of pictures"),
    "dreambooth generate": ("dreambooth.generate_command:main", "pictures of subjects, prompts and seeds, with grids"),
    "dreambooth demo": ("dreambooth.demo.run:main", "teach a small SDXL a drawn character, before and after"),
    "eval images": ("eval.images:main", "top-1 and per-class accuracy of a finished run"),
    "eval mmbench": ("eval.vlm.command:main_mmbench", "MMBench of a LLaVA run, scored offline as VLMEvalKit scores it"),
    "eval vlm": ("eval.vlm.command:main", "nine vision-language benchmarks of a LLaVA run"),
    "eval score": ("eval.vlm.score:main", "score anyone's predictions on one of the nine benchmarks"),
    "eval subjects": ("eval.subjects.command:main", "DINO, CLIP-I and CLIP-T of generated pictures of subjects"),
    "eval study": ("eval.study.command:main", "a blind human study of two or more sets of pictures"),
}


def usage(prefix: str = "") -> str:
    """The help page: all commands, or those that begin with `prefix`."""
    shown = {name: text for name, (_, text) in COMMANDS.items() if f"{name} ".startswith(prefix)}
    width = max(map(len, shown))
    lines = [
        "usage: mosgoat COMMAND [options]        mosgoat COMMAND --help explains a command",
        "",
        "Fine-tune models with MoSLoRA and GOAT adapters, and measure the result.",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in shown.items()),
        "",
        "Several GPUs: torchrun --nproc-per-node 4 -m -- common.cli COMMAND [options]",
    ]
    return "\n".join(lines)


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split `words` into the command's name and the rest.

    Raises:
        UserError: no command begins with these words; the message names near ones.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS and len(words) >= length:
            return name, list(words[length:])
    given = " ".join(word for word in words[:2] if not word.startswith("-"))
    raise UserError(f"there is no command {given!r}; {did_you_mean(given, COMMANDS)}")


def load_command(name: str) -> Callable[[list[str]], int | None]:
    """Import the function behind a command."""
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(module), function)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: words behind `mosgoat`; none given: those of this process.

    Returns:
        The exit status: 0 done, 1 done in part (the command has said what failed), 2 the user must
        mend something, 130 interrupted, 141 its output was no longer read; 143 by `SystemExit`, after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _survive_output()
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] in groups and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(usage(f"{words[0]} "))
        return 0
    # OpenMP's threads spin for milliseconds after each small operation and so stall each other where the cores are
    # shared: beside two busy processes 60 steps of the tiny recipe took 72 s, with this 7 s, and alone 7 s either way.
    # Read when torch is imported, hence here.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not sys.stderr.isatty():  # in a log the libraries' progress bars are one long line; ours stay out of it too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        name, rest = find_command(words)
        status = load_command(name)(rest) or 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            importlib.import_module("common.training.processes").leave()
        return status
    except UserError as error:
        return _fail(str(error), 2)
    except (ImportError, RuntimeError) as error:  # the latter where torch and torchvision are not of one build
        why = importlib.import_module("common.missing").explain_import_error(error)
        if why is None:
            raise
        return _fail(why, 2)
    except BrokenPipeError:  # `mosgoat ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        return _fail("interrupted; a run that was begun goes on with the same command", 130)


def _survive_output() -> None:
    # A terminal or a log of another encoding must not end a run because of a name or a plus-minus sign.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Its kernels for 4-bit weights on a CPU are nothing that a user needs to fetch.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _fail(message: str, status: int) -> int:
    # An error of one process alone (a file missing on its node) must be told apart from one of all.
    rank = os.environ.get("RANK", "0")
    print(f"mosgoat{'' if rank == '0' else f' [process {rank}]'}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
