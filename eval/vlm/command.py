"""`mosgoat eval mmbench` and `mosgoat eval vlm`: a LLaVA model on vision-language benchmarks, offline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.commands import require_between
from common.errors import UserError
from common.reporting.runs import read_json, refuse_other_results
from eval.vlm.benchmarks import DRAWN, NINE, Benchmark, find_benchmark
from eval.vlm.drawn import TABLE, is_drawn, require_drawn
from eval.vlm.evaluation import FOLDER, Job, evaluate
from eval.vlm.judge import add_judge_options, require_judged
from eval.vlm.likelihood import require_options
from eval.vlm.predict import MAX_NEW_TOKENS
from eval.vlm.results import TASK
from llava.model_open import add_model_options
from llava.model_run import read_recipe


def main_mmbench(argv: Sequence[str] | None = None) -> int:
    """`mosgoat eval mmbench`; exit status 1 where there is no score."""
    parser = _parser("mosgoat eval mmbench", "Measure a LLaVA model on MMBench, offline, as VLMEvalKit scores it.")
    parser.add_argument("--benchmark", help=f"which version, language and split; default: {NINE[0]}")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"the benchmark's TSV file, or a folder with it; default: the folder $LMUData. {TABLE}: drawn questions "
        "in MMBench's form, scored as MMBench is and under a name of their own",
    )
    options = parser.parse_args(list(argv or []))
    drawn = is_drawn(options.data)
    benchmark = find_benchmark(options.benchmark or (DRAWN.name if drawn else NINE[0]))
    if drawn:
        require_drawn(benchmark)
    if benchmark.family != "circular":
        raise UserError(f"--benchmark={benchmark.name} is not MMBench; use mosgoat eval vlm --benchmarks for it")
    return _run(options, [benchmark], options.data, (parser.prog, *(argv or ())))


def main(argv: Sequence[str] | None = None) -> int:
    """`mosgoat eval vlm`; exit status 1 where not every benchmark that was asked for has its score."""
    parser = _parser("mosgoat eval vlm", "Measure a LLaVA model on vision-language benchmarks, offline.")
    parser.add_argument(
        "--benchmarks", nargs="+", default=["all"], help=f"names, or all (the default) for {', '.join(NINE)}"
    )
    add_judge_options(parser)
    parser.add_argument("--data-root", type=Path, help="folder of the tables NAME.tsv; default: $LMUData")
    options = parser.parse_args(list(argv or []))
    names = [name for word in options.benchmarks for name in word.split(",") if name]
    if not names:
        raise UserError(f"--benchmarks names none; give all, or some of {', '.join(NINE)}")
    benchmarks = [find_benchmark(name) for name in dict.fromkeys(_named(names))]
    require_judged(options, benchmarks)
    if options.data_root is not None and not options.data_root.is_dir():
        raise UserError(f"--data-root={options.data_root} is not a folder; give the one that holds NAME.tsv files")
    return _run(options, benchmarks, options.data_root, (parser.prog, *(argv or ())))


def _named(names: Sequence[str]) -> list[str]:
    """`all` stands for the nine, also beside other names."""
    return [name for word in names for name in (NINE if word == "all" else (word,))]


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=description, allow_abbrev=False)
    parser.epilog = "Several GPUs: torchrun --nproc-per-node 4 -m -- common.cli eval vlm --run RUN"
    add_model_options(parser)
    lengths = ", ".join(f"{family} {limit}" for family, limit in MAX_NEW_TOKENS.items())
    parser.add_argument("--batch-size", type=int, default=8, help="questions at once in one process; default: 8")
    parser.add_argument("--max-new-tokens", type=int, help=f"an answer is cut there; default: {lengths}")
    parser.add_argument(
        "--answer",
        choices=("generate", "likelihood"),
        default="generate",
        help="likelihood: rank the texts of the options instead, for models that cannot name a letter",
    )
    parser.add_argument(
        "--engine", choices=("own", "vlmeval"), default="own", help="vlmeval: VLMEvalKit's inference and scores"
    )
    parser.add_argument("--vlmeval-root", type=Path, help="checkout of VLMEvalKit, where it is not installed")
    parser.add_argument("--output", type=Path, help=f"folder for the files; default: RUN/{FOLDER}")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="score tables that lack rotations or answers, and say so"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="evaluated runs, or --output folders of other evaluations, to show beside this one",
    )
    return parser


def _run(
    options: argparse.Namespace, benchmarks: Sequence[Benchmark], data: Path | None, command: Sequence[str]
) -> int:
    job = _job(options, benchmarks, data, command)
    if options.engine == "vlmeval":
        from eval.vlm.vlmeval_engine import run_vlmeval  # only where it is asked for

        return run_vlmeval(job, options.vlmeval_root)
    return evaluate(job)


def _job(
    options: argparse.Namespace, benchmarks: Sequence[Benchmark], data: Path | None, command: Sequence[str]
) -> Job:
    for key in ("batch_size", "max_new_tokens"):
        if getattr(options, key) is not None:
            require_between(f"--{key.replace('_', '-')}", getattr(options, key))
    if options.answer == "likelihood":
        if options.max_new_tokens is not None:
            raise UserError("--max-new-tokens has no effect with --answer=likelihood, which generates nothing")
        for benchmark in benchmarks:
            require_options(benchmark)
    if options.vlmeval_root is not None and options.engine != "vlmeval":
        raise UserError("--vlmeval-root has no effect without --engine vlmeval")
    if options.run is None and options.output is None:
        raise UserError("--model needs --output, the folder for the files")
    if options.run is not None:
        read_recipe(options.run)  # that it is a finished run of llava, before anything takes time
    output = options.output or options.run / FOLDER
    refuse_other_results(output, TASK)
    suffix = "" if options.answer == "generate" else f"_{options.answer}"
    return Job(
        options=options,
        benchmarks=benchmarks,
        data=data,
        output=output,
        answer=options.answer,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        allow_incomplete=options.allow_incomplete,
        beside=[_evaluated(path, f"results{suffix}.json") for path in options.beside],
        command=command,
    )


def _evaluated(path: Path, file: str) -> Path:
    """The folder of an evaluation, of a run or on its own."""
    for folder in (path / FOLDER, path):
        if (folder / file).is_file() and read_json(folder / file).get("task") == TASK:
            return folder
    raise UserError(f"--beside={path} was not evaluated in this way yet: it has no {FOLDER}/{file}, and no {file}")
