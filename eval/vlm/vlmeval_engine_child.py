"""The process in which VLMEvalKit runs: `python -m eval.vlm.vlmeval_engine_child SPEC.json`.

It has a process to itself because its import changes much: TLS certificates are not verified any more, gradients and
logging are switched, variables come in from a `.env` file. Here our model is entered into its table of models, and its
own `run.py` is called. What came of it stands in files, read by `eval.vlm.vlmeval_engine`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from common.files import append_json_line, read_json_lines, write_json
from common.pictures import decode
from common.reporting.runs import read_json
from eval.vlm.benchmarks import Benchmark, find_benchmark
from eval.vlm.predict import Speaker
from eval.vlm.prompts import prompt_of
from eval.vlm.question import Index
from eval.vlm.table import Table, read_table
from llava.answers import MARK, mark
from llava.data.pictures import within_square
from llava.generation import generate
from llava.model_base import LlavaBase
from llava.model_open import identity, open_model

NAME = "mosgoat"  # of our model in its table
# Variables that change what it measures or where it writes, and those of a parent under torchrun.
SWITCHES = (
    "MMEVAL_ROOT", "EVAL_FORMAT", "SPLIT_THINK", "SKIP_ERR", "FWD_API", "PRINT_VANILLA", "EVAL_PROXY", "LOCAL_LLM",
    "VERBOSE", "FORCE_LOCAL", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run VLMEvalKit as the file `argv[0]` says, and write what became of it to the `outcome` that it names."""
    spec = read_json(Path(argv[0]))
    try:
        outcome = _run(spec)
    except UserError as error:
        outcome = {"error": str(error)}
    write_json(Path(spec["outcome"]), outcome)
    return 0


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    benchmark, work = find_benchmark(spec["benchmark"]), Path(spec["work"])
    config, datasets = _imported(Path(spec["root"]))
    for switch in SWITCHES:
        os.environ.pop(switch, None)  # after the import, which reads a .env file
    os.environ |= {"LMUData": spec["lmu_data"], "PRED_FORMAT": "tsv"}
    for kind in datasets:
        getattr(kind, "DATASET_MD5", {}).pop(benchmark.name, None)  # another md5 than the official makes it download
    options = argparse.Namespace(**spec["options"])
    if options.run is not None:
        options.run = Path(options.run)
    base = open_model(options)
    table = read_table(Path(spec["table"]), benchmark, check_pictures=False, progress=False)
    weights = identity(options, base)
    key = f"vlmeval {weights} {base.template} {base.precision} {spec['max_new_tokens']}"
    model = _model(base, table, benchmark, spec["max_new_tokens"], key, work / "answers.jsonl")
    config.supported_VLM[NAME] = lambda **settings: model
    before = set(_status_files(work))
    _call(Path(spec["root"]) / "run.py", benchmark, work, spec["mode"])
    found = sorted(set(_status_files(work)) - before)
    predictions = work / "predictions.json"
    write_json(predictions, [{"index": index, "prediction": text} for index, text in model.answers.items()])
    return {
        "status": str(found[-1]) if found else None,
        "predictions": str(predictions),
        "weights": weights,
        "template": base.template,
        "precision": base.precision,
    }


def _imported(root: Path) -> tuple[Any, Sequence[Any]]:
    """Its table of models and its kinds of benchmarks."""
    sys.path.insert(0, str(root))
    try:
        config = importlib.import_module("vlmeval.config")
        return config, importlib.import_module("vlmeval.dataset").DATASET_CLASSES
    except ImportError as error:
        advice = f"pip install -r {root / 'requirements.txt'}"
        raise UserError(f"VLMEvalKit in {root} cannot be imported: {error}; install what it needs: {advice}") from error


def _call(script: Path, benchmark: Benchmark, work: Path, mode: str) -> None:
    words = ["--data", benchmark.name, "--model", NAME, "--work-dir", str(work / "runs"), "--mode", mode]
    sys.argv = [str(script), *words, "--judge", "exact_matching"]
    # not as __main__, which would read the .env file once more
    begin = runpy.run_path(str(script)).get("main")
    if begin is None:
        raise UserError(f"{script} has no function main: a version of VLMEvalKit that mosgoat does not know")
    with contextlib.suppress(SystemExit):  # the status file says how it ended
        begin()


def _status_files(work: Path) -> list[Path]:
    return list((work / "runs" / NAME).glob("*/status.json"))


def _model(base: LlavaBase, table: Table, benchmark: Benchmark, limit: int, key: str, kept: Path) -> Any:
    """Our model as an instance of its base class.

    Every answer is kept as it comes, under the mark of all that it depends on: an evaluation that was stopped goes on
    there, and needs no files of VLMEvalKit's own, which are not bound to the weights.
    """
    parent = importlib.import_module("vlmeval.vlm.base").BaseModel
    speaker = Speaker(base, benchmark, limit)
    old = {row.get(MARK): row["prediction"] for row in read_json_lines(kept) if "prediction" in row}

    class MosgoatModel(parent):  # type: ignore[misc, valid-type]
        INTERLEAVE = False

        def __init__(self) -> None:
            super().__init__()
            self.answers: dict[Index, str] = {}
            self._index: Index = ""

        def use_custom_prompt(self, dataset: str | None) -> bool:
            return True

        def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
            index = table.key(line["index"].item() if hasattr(line["index"], "item") else line["index"])
            assert index is not None, f"VLMEvalKit asks for a row that is not in the table: {line['index']}"
            self._index = index
            picture = self.dump_image(line, dataset)[0]
            text = prompt_of(questions[index], benchmark)
            return [{"type": "image", "value": picture}, {"type": "text", "value": text}]

        def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            question = questions[self._index]
            content = next(Path(part["value"]) for part in message if part["type"] == "image").read_bytes()
            prompt = speaker.prompt(question)
            name = mark(key, prompt, content)
            answer = old.get(name)
            if answer is None:
                picture = within_square(Image.fromarray(decode(content)))
                answer = generate(base, [prompt], [picture], max_new_tokens=limit)[0]
                append_json_line(kept, {"index": question.index, "prediction": answer, MARK: name})
            self.answers[question.index] = answer
            return answer

    questions = {question.index: question for question in table.questions}
    return MosgoatModel()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
