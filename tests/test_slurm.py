"""The Slurm script: its syntax, what it starts, and when it puts its job back."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "docs/slurm/train.sbatch"
# Stand-ins for the two programs of Slurm: they write down what they were called with.
SRUN = """#!/bin/bash
echo "srun $*" >> calls
echo "timeout ${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-none}" >> calls
eval "${DURING:-true}"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf '%s\\n' node3 node4; else echo "scontrol $*" >> calls; fi
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def submit(place: Path, *words: str, during: str = "true") -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm would on the first node; `during` is shell that the training stands for."""
    environment = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "70123",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "DURING": during,
    }
    return subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def test_it_is_valid_bash() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_starts_one_torchrun_a_node_that_meet_at_the_first(place: Path) -> None:
    done = submit(place, "llava", "train", "--config", "a b.yaml", "--output", "runs/x")
    assert done.returncode == 0, done.stderr
    started, timeout = calls(place)
    assert started == (
        "srun torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id 70123 "
        "--rdzv-endpoint node3:30123 -m -- common.cli llava train --config a b.yaml --output runs/x"
    )
    assert timeout == "timeout 240"


def test_an_output_behind_an_equals_sign_is_found_too(place: Path) -> None:
    during = "sleep 0.02; mkdir -p runs/x/checkpoints/step-00000100; exit 143"
    assert submit(place, "vit", "train", "--output=runs/x", during=during).returncode == 143
    assert calls(place)[-1] == "scontrol requeue 70123"


@pytest.mark.parametrize("where", ["runs/x/checkpoints", "runs/x/dog6/checkpoints"])
def test_a_job_that_got_on_and_did_not_end_well_is_put_back(place: Path, where: str) -> None:
    during = f"sleep 0.02; mkdir -p {where}/step-00000100; exit 143"
    done = submit(place, "dreambooth", "train", "--output", "runs/x", during=during)
    assert done.returncode == 143
    assert calls(place)[-1] == "scontrol requeue 70123"


@pytest.mark.parametrize(
    ("during", "status"),
    [
        ("exit 2", 2),  # a misspelt key
        ("mkdir -p runs/x/checkpoints/.partial-step-00000100; exit 1", 1),  # never a whole one
        ("mkdir -p runs/x/checkpoints/step-00000100; exit 0", 0),  # done
    ],
)
def test_a_job_that_is_done_or_got_nowhere_is_not_put_back(place: Path, during: str, status: int) -> None:
    done = submit(place, "vit", "train", "--output", "runs/x", during=f"sleep 0.02; {during}")
    assert done.returncode == status
    assert not any("requeue" in call for call in calls(place))


def test_checkpoints_of_an_earlier_attempt_do_not_put_it_back(place: Path) -> None:
    (place / "runs/x/checkpoints/step-00000100").mkdir(parents=True)
    os.utime(place / "runs/x/checkpoints/step-00000100", (1, 1))
    assert submit(place, "vit", "train", "--output", "runs/x", during="exit 1").returncode == 1
    assert not any("requeue" in call for call in calls(place))


def test_without_an_output_it_says_how_it_is_used(place: Path) -> None:
    done = submit(place, "vit", "train", "--config", "x.yaml")
    assert done.returncode == 2
    assert "--output RUN" in done.stderr
    assert not (place / "calls").exists()
