"""Runs in processes of their own: how many, and that none outlives the demo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_classify.demo import workers

ROOT = Path(__file__).resolve().parents[3]


def test_one_run_per_core_but_no_more_than_runs_or_memory_allows(monkeypatch: pytest.MonkeyPatch):
    for cores, runs, expected in ((2, 12, 2), (1, 12, 1), (64, 12, workers.MOST_JOBS), (8, 3, 3), (2, 0, 1)):
        monkeypatch.setattr(workers, "usable_cores", lambda cores=cores: cores)
        assert workers.default_jobs(runs) == expected


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_demo(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from vit_classify.demo import workers\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, mp_context=context, initializer=workers._start)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _alive(worker)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    for _ in range(300):  # up to 30 s on a busy machine; at once on an idle one
        if not _alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on after its parent was killed")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_saves_its_runs_and_ends(tmp_path: Path, number: int, status: int):
    output = tmp_path / "demo"
    words = [*"vit demo --seeds 1 --methods lora,goat --jobs 2 --only runs".split(), "--output", str(output)]
    with (tmp_path / "log").open("w+") as log:
        demo = subprocess.Popen(
            [sys.executable, "-m", "common.cli", *words],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # a shell's background jobs, such as this suite may be, ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            deadline = time.monotonic() + 200
            while not list(output.rglob("metrics.jsonl")) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert demo.poll() is None, "it ended before it was interrupted"
            # Ctrl-C reaches every process of a terminal, SIGTERM the one that it is sent to
            os.killpg(demo.pid, number) if number == signal.SIGINT else demo.send_signal(number)
            assert demo.wait(60) == status
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)
                demo.wait()
        log.seek(0)
        assert "Traceback" not in log.read()
    assert list(output.rglob("checkpoints/step-*"))
