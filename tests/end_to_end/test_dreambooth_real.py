"""Real photographs through the code that an A100 runs: two of DreamBooth's subjects in one command, on a tiny SDXL."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.dreambooth.tiny import tiny_sdxl
from tests.end_to_end.commands import losses, results, run_command

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published set with two subjects, of which one has lost the end of a picture."""
    root = tmp_path_factory.mktemp("photographs") / "dreambooth"
    for name in ("cat2", "duck_toy", "prompts_and_classes.txt"):
        source, target = shared_data / "dreambooth" / "dataset" / name, root / "dataset" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    damaged = root / "dataset" / "duck_toy" / "01.jpg"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    return root


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "data_report.json").read_text(encoding="utf-8"))


def test_two_subjects_train_in_one_command(photographs: Path, tmp_path: Path) -> None:
    words = [
        "--data.path", str(photographs), "--subjects", "all", "--model.name", str(tiny_sdxl(tmp_path / "model")),
        "--data.resolution", "32", "--data.crop", "random", "--data.flip", "true", "--data.cache_dir",
        str(tmp_path / "cache"), "--prior.weight", "1", "--prior.pictures", "3", "--prior.steps", "2",
        "--adapter.method", "moslora", "--adapter.r", "4", "--train.batch_size", "4", "--train.max_steps", "3",
        "--train.log_every", "1", "--train.save_every", "0", "--train.trackers", "[]",
        "--output", str(tmp_path / "runs"),
    ]  # fmt: skip
    said = run_command("dreambooth", "train", *words).stderr
    for name, class_word, used, left_out in (("cat2", "cat", 5, []), ("duck_toy", "toy", 3, ["01.jpg"])):
        run = tmp_path / "runs" / name
        assert (results(run)["n"], results(run)["skipped"]) == (used, len(left_out))
        assert results(run)["metrics"]["samples"] == 12  # a true batch of 4, though there are 5 or 3 pictures
        assert list(losses(run)) == [1, 2, 3]
        assert load_file(run / "adapter" / "unet" / "adapter_model.safetensors")
        found = report(run)
        assert [skip[0] for skip in found["skipped"]] == left_out
        assert found["counts"] == {"pictures": used, "class pictures": 3}
        assert found["prompts"] == {f"a photo of ikat {class_word}": used, f"a photo of {class_word}": 3}
        # mirrored or not: the photographs are square, so that there is one place to crop
        assert found["crops"] == 2 * used
        assert f"subject         {name}, a {class_word}" in said
    assert "  left out      01.jpg: image file is truncated" in said
    # 8 photographs, 3 class pictures of 2 classes, 4 prompts
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 8 + 6 + 4
