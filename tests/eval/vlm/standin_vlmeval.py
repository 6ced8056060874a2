"""A stand-in for a checkout of VLMEvalKit: the parts that the engine touches, by its documented interface.

`run.py` asks the model that is entered under a name in `vlmeval.config.supported_VLM` row by row, and writes a
`status.json` as VLMEvalKit does, whether it went well or not; `$STANDIN` makes it fail in the ways in which it fails.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "vlmeval/__init__.py": """
import os
if os.environ.get("STANDIN") == "crash":
    os._exit(0)
if os.environ.get("STANDIN") == "wait":
    import time
    print("waiting", os.getpid(), flush=True)
    time.sleep(600)
os.environ["LMUData"] = "/nowhere"  # as its .env file may
os.environ["SKIP_ERR"] = "1"
""",
    "vlmeval/config.py": "supported_VLM = {}\n",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": """
class BaseModel:
    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, dump_image_func):
        self.dump_image_func = dump_image_func

    def dump_image(self, line, dataset):
        return self.dump_image_func(line)

    def generate(self, message, dataset=None):
        assert all(set(part) == {"type", "value"} for part in message)
        return self.generate_inner(message, dataset)
""",
    "vlmeval/dataset/__init__.py": """
class ImageMCQDataset:
    DATASET_MD5 = {"SEEDBench_IMG": "of the official file", "MMBench_DEV_EN": "of the official file"}

DATASET_CLASSES = [ImageMCQDataset]
""",
    "run.py": """
import argparse, base64, csv, datetime, json, os, sys
from pathlib import Path
from vlmeval.config import supported_VLM
from vlmeval.dataset import ImageMCQDataset

csv.field_size_limit(1 << 24)


def main():
    parser = argparse.ArgumentParser()
    for name in ("--data", "--model", "--work-dir", "--mode", "--judge"):
        parser.add_argument(name)
    options = parser.parse_args()
    how = os.environ.get("STANDIN", "")
    run = Path(options.work_dir) / options.model / datetime.datetime.now().strftime("T%Y%m%d-%H%M%S%f")
    run.mkdir(parents=True)
    state = {"status": "infer"}
    try:
        assert "SKIP_ERR" not in os.environ and os.environ["PRED_FORMAT"] == "tsv" and options.judge == "exact_matching"
        if options.data in ImageMCQDataset.DATASET_MD5:
            raise RuntimeError("another md5: would download the official table")
        folder = Path(os.environ["LMUData"])
        with (folder / f"{options.data}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\\t"))
        cells = {row["index"]: row["image"] for row in rows}
        cells = {key: cells.get(cell, cell) for key, cell in cells.items()}

        def dump_image(line):
            path = folder / "images" / f"{line['index']}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base64.b64decode(cells[str(line["index"])]))
            return [str(path)]

        model = supported_VLM[options.model]()
        model.set_dump_image(dump_image)
        hits = []
        for row in rows[:-1] if how == "leave out" else rows:
            line = {**row, "index": int(row["index"])}
            assert model.use_custom_prompt(options.data)
            answer = model.generate(model.build_prompt(line, dataset=options.data), dataset=options.data)
            hits.append(answer.strip()[:1] == row["answer"])
            if how == "fail" and len(hits) == 3:
                raise RuntimeError("CUDA error:\\nout of luck")
        state = {"status": "done"}
        if options.mode == "infer":
            state["skip_reason"] = "mode_infer"
        elif how == "skip":
            state["skip_reason"] = "mmbench_evaluation_requires_official_server"
        elif how != "no metrics":
            state["metrics"] = {"split=none|Overall": sum(hits) / len(hits)}
    except Exception as error:
        state = {"status": "done", "error_message": str(error)}
    (run / "status.json").write_text(json.dumps({"datasets": {options.data: state}}))
    sys.exit(0)


if __name__ == "__main__":
    raise AssertionError("its .env file would be read again")
""",
}


def write_standin(folder: Path) -> Path:
    """Lay the checkout out and return it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    return folder
