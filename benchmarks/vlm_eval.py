"""Questions a second of the evaluation on vision-language benchmarks: in batches over one at a time, in one run.

    python benchmarks/vlm_eval.py --threads 1                               # the small LLaVA that ships, on a CPU
    python benchmarks/vlm_eval.py --model llava-hf/llava-1.5-7b-hf --template vicuna_v1 --batch 32      # on a GPU

1. A table of MMBench's form (each picture asked about once per rotation of four options) through `eval.vlm.predict`,
   from the file to the file: pictures decoded, prompts encoded, answers written. Batches over one at a time, and how
   many answers differ.
2. The same prompts through `llava.generation.generate` alone, which reads a picture anew for every question.
3. A table that asks about each picture once.

The questions are drawn; both sides are warmed up and take turns; medians and ratios of medians.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python looks beside a script first, and there this file's neighbours would hide the packages of their names.
sys.path[:] = [str(HERE.parent), str(HERE), *(place for place in sys.path if place not in ("", str(HERE)))]

import argparse
import base64
import io
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from measure import Row, device_of, environment, machine_options, medians, show

from eval.vlm.benchmarks import Benchmark, find_benchmark
from eval.vlm.predict import MAX_NEW_TOKENS, Speaker, predict
from eval.vlm.table import Table, read_table
from llava.config import ModelConfig
from llava.demo.draw import draw, questions
from llava.generation import generate
from llava.model import LlavaBase, load_model

ROTATION = 1_000_000


def write_table(path: Path, count: int, rotations: int, size: int) -> Path:
    """A table of drawn questions, each with so many rotations of its four options; pictures of so many pixels."""
    rng = np.random.default_rng(0)
    lines = ["\t".join(("index", "question", *"ABCD", "answer", "category", "image"))]
    drawn = questions(count, 0, held_out=False)
    pictures = []
    for scene, _ in drawn:
        file = io.BytesIO()
        draw(scene, rng).resize((size, size)).save(file, "JPEG")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    for rotation in range(rotations):
        for index, (_, question) in enumerate(drawn):
            options = [question.options[(at - rotation) % 4] for at in range(4)]
            answer = "ABCD"[options.index(question.answer)]
            image = str(index) if rotation else pictures[index]
            cells = (str(index + rotation * ROTATION), question.text, *options, answer, question.kind, image)
            lines.append("\t".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table_rows(
    args: argparse.Namespace, base: LlavaBase, benchmark: Benchmark, table: Table, folder: Path
) -> list[Row]:
    """One at a time, in batches, and in batches without sharing what is read of a picture."""
    device, count = base.device, len(table.questions)
    limit = args.max_new_tokens or MAX_NEW_TOKENS[benchmark.family]
    said: dict[str, list[str]] = {}

    def evaluated(name: str, size: int) -> Callable[[], None]:
        def run() -> None:
            output = folder / f"{table.path.stem}-{size}.jsonl"
            output.unlink(missing_ok=True)
            found = predict(
                base, table, benchmark, model="m", output=output, batch_size=size, max_new_tokens=limit
            ).predictions
            said[name] = [found[question.index] for question in table.questions]

        return run

    speaker = Speaker(base, benchmark, limit)
    prompts = [speaker.prompt(question) for question in table.questions]
    pictures = [table.picture(question) for question in table.questions]

    def generated() -> None:
        said["plain"] = generate(base, prompts, pictures, max_new_tokens=limit, batch_size=args.batch)

    tasks = {"one": evaluated("one", 1), "batch": evaluated("batch", args.batch), "plain": generated}
    took = medians(tasks, args.repeats, device, warm_up=1)
    changed = {name: sum(a != b for a, b in zip(said["one"], answers, strict=True)) for name, answers in said.items()}

    def row(what: str, name: str, target: str = "") -> Row:
        rate, ratio = count / took[name], took["one"] / took[name]
        what = f"{what}, {changed[name]} of {count} answers changed" if name != "one" else what
        return Row(what, rate, "questions/s", None if name == "one" else ratio, "" if name == "one" else "one", target)

    return [
        row("one at a time (one)", "one"),
        row(f"batches of {args.batch}", "batch", "≥ 3"),
        row(f"generate alone, batches of {args.batch}", "plain"),
    ]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="builtin:drawn-llava", help="as mosgoat eval vlm takes it")
    parser.add_argument("--template", default="llama3")
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--questions", type=int, default=24, help="pictures of a table")
    parser.add_argument("--max-new-tokens", type=int, help="default: the benchmark's own")
    parser.add_argument("--picture-size", type=int, default=448, help="side of the drawn pictures in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    machine_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = device_of(args)
    base = load_model(ModelConfig(name=args.model), template=args.template, precision=args.precision, device=device)
    sections = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, benchmark, rotations in (
            ("MMBench's form, four rotations a picture", find_benchmark("MMBench"), 4),
            ("one question a picture", find_benchmark("AI2D_TEST"), 1),
        ):
            count = args.questions if rotations > 1 else 2 * args.questions
            path = write_table(folder / f"{rotations}.tsv", count, rotations, args.picture_size)
            table = read_table(path, benchmark, progress=False)
            sections[title] = table_rows(args, base, benchmark, table, folder)
    limit = args.max_new_tokens or MAX_NEW_TOKENS["choice"]
    line = f"{args.model}, {args.precision}, {limit} new tokens at most; {environment(device)}"
    show(line, sections, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
