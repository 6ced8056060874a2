"""The stages of `mosgoat demo` with stand-ins for the commands: what runs, what is kept, what is said, how it ends."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common import demo, demo_stages
from common.cli import COMMANDS
from common.demo_stages import Stage, Step
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# words of a stand-in: make FILE, fail STATUS, skip (makes nothing)
STAND_IN = (
    "import pathlib, sys\n"
    "print('ran', *sys.argv[1:], flush=True)\n"
    "what, file, *rest = sys.argv[1:]\n"
    "if what == 'make':\n"
    "    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)\n"
    "    pathlib.Path(file).write_text('made')\n"
    "sys.exit(int(rest[0]) if what == 'fail' else 0)\n"
)


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PROGRAM", (sys.executable, "-c", STAND_IN))


def stage(name: str, what: str = "make", *rest: str, after: str | None = None, again: bool = False) -> Stage:
    """A stage of one step that makes `NAME/file`, of that of `after` where it has one."""

    def steps(output: Path) -> list[Step]:
        file = output / name / "file"
        needs = (output / after / "file",) if after else ()
        return [Step((what, str(file), *rest), (file,), needs)]

    return Stage(name, f"what {name} shows", 1, steps, f"{name}/file", after, again)


def use(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(demo, "STAGES", stages)


Ran = Callable[[], list[str]]


@pytest.fixture
def ran(capfd: pytest.CaptureFixture[str]) -> Ran:
    """The stages whose commands have run since the last time."""

    def names() -> list[str]:
        return re.findall(r"^ran \w+ \S*/([\w-]+)/file", capfd.readouterr().out, re.MULTILINE)

    return names


def main(output: Path, *words: str) -> int:
    return demo.main(["--output", str(output), *words])


def test_every_step_is_a_command_and_every_evaluation_reads_what_its_stage_makes(tmp_path: Path) -> None:
    by_name = {each.name: each for each in demo_stages.STAGES}
    for each in demo_stages.STAGES:
        steps = each.steps(tmp_path)
        for step in steps:
            assert " ".join(step.words[:2]) in COMMANDS or step.words[0] in COMMANDS
            assert step.makes
        own = {path for step in steps for path in step.makes}
        needs = {path for step in steps for path in step.needs} - own
        made = {path for step in by_name[each.after].steps(tmp_path) for path in step.makes} if each.after else set()
        assert needs <= made
        assert bool(needs) == (each.after is not None)
    assert list(by_name) == sorted(by_name, key=lambda name: name == "report"), "the report comes last"


def test_the_runs_lie_where_the_training_commands_put_them(tmp_path: Path) -> None:
    import dreambooth.demo.run as dreambooth
    import llava.demo.run as llava
    import vit_classify.demo.run as vision

    def runs(name: str) -> set[Path]:
        [each] = [each for each in demo_stages.STAGES if each.name == name]
        [step] = each.steps(tmp_path)
        return {path.parent for path in step.makes if path.name == "results.json"}

    cells = vision.demo_cells(vision.read_arguments(["--output", str(tmp_path / "vision")]))
    assert runs("vision") == {cell.path for cell in cells}
    assert runs("llava") == {Path(str(llava.demo_recipe(tmp_path / "llava", demo_stages.LLAVA_RUN, None).output))}
    recipes = dreambooth.demo_recipes(dreambooth.read_arguments(["--output", str(tmp_path / "dreambooth")]))
    assert runs("dreambooth") == {Path(str(recipe.output)) for recipe in recipes.values()}


def test_stages_are_chosen_by_name_and_keep_their_order() -> None:
    assert demo.choose(None) == list(demo_stages.STAGES)
    assert [each.name for each in demo.choose("eval-mmbench, vision")] == ["vision", "eval-mmbench"]
    with pytest.raises(UserError, match=r"--only names 'visoin', which is no stage; did you mean vision\?"):
        demo.choose("visoin")
    with pytest.raises(UserError, match=r"--only=',' names nothing; stages: vision"):
        demo.choose(",")


def test_a_failed_stage_is_named_and_all_but_what_measures_it_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = (stage("broken", "fail", "3"), stage("whole"), stage("measure", after="broken"), stage("page", again=True))
    use(monkeypatch, *stages)
    assert main(tmp_path) == 1
    out = capfd.readouterr().out
    table = out[out.index("outcome") : out.index(" min in all")]
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert lines["broken"].split()[1] == "failed"
    assert lines["whole"].split()[1] == lines["page"].split()[1] == "done"
    assert "not run" in lines["measure"]
    assert "ran make" in out
    assert f"exit status 3 of mosgoat fail {tmp_path}/broken/file 3; what it printed stands above" in out
    assert "measure did not run: it needs broken, which failed" in out
    assert f"after mending it: mosgoat demo --output {tmp_path} --only broken,measure,page" in out
    assert out.rstrip().endswith(f"what page shows: {tmp_path}/page/file")


def test_what_an_evaluation_needs_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, stage("train"), stage("other"), stage("measure", after="train"))
    assert main(tmp_path, "--only", "measure") == 1
    out = capfd.readouterr().out
    assert "ran" not in out
    assert f"measure did not run: it needs train, and {tmp_path}/train/file is not there" in out
    assert out.rstrip().endswith(f"mosgoat demo --output {tmp_path} --only train,measure")


def test_what_is_finished_is_kept_until_it_is_gone_or_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran
) -> None:
    use(monkeypatch, stage("train"), stage("measure", after="train"), stage("page", again=True))
    assert main(tmp_path) == 0
    assert ran() == ["train", "measure", "page"]
    assert main(tmp_path) == 0
    assert ran() == ["page"], "of all that is there, and so made anew"
    (tmp_path / "measure" / "file").unlink()
    assert main(tmp_path, "--only", "measure") == 0
    assert ran() == ["measure"]
    later = time.time_ns() + 10**9
    os.utime(tmp_path / "train" / "file", ns=(later, later))
    assert main(tmp_path, "--only", "train,measure") == 0
    assert ran() == ["measure"]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    os.utime(moved / "measure" / "file", ns=(later, later))
    assert main(moved, "--only", "train,measure") == 0
    assert ran() == []


@pytest.mark.parametrize("record", ["", "[]", '{"finished": 3}', None])
def test_without_a_record_everything_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran, record: str | None
) -> None:
    use(monkeypatch, stage("train"))
    assert main(tmp_path) == 0
    file = tmp_path / demo.RECORD
    file.unlink() if record is None else file.write_text(record)
    ran()
    assert main(tmp_path) == 0
    assert ran() == ["train"]


def test_a_command_that_failed_is_run_again_although_its_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran
) -> None:
    use(monkeypatch, stage("train", "fail", "1"))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "file").write_text("half of it")
    assert main(tmp_path) == 1
    assert main(tmp_path) == 1
    assert ran() == ["train", "train"]


def test_a_command_that_leaves_nothing_behind_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, stage("train", "skip"))
    assert main(tmp_path) == 1
    assert f"ended well, but {tmp_path}/train/file is not there" in capfd.readouterr().out


def test_it_says_what_will_run_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, stage("first"), stage("second"))
    assert main(tmp_path) == 0
    told = capfd.readouterr().err
    plan, first, second = (told.index(text) for text in ("2 stages into", "[1/2] first", "[2/2] second"))
    assert plan < first < second
    assert "about 2 min on two idle CPU cores" in told
    assert re.search(r"^ +first +1 min +what first shows$", told, re.MULTILINE)
    assert "this stage takes about 1 min, all that is left about 2 min" in told
    assert "0:00 min elapsed" in told
    assert "\r" not in told, "a log has lines"


def test_the_time_left_follows_the_pace_of_this_machine(tmp_path: Path) -> None:
    running = demo.Demo(tmp_path, [stage("one"), stage("two"), stage("three")])
    assert running.minutes_left(0) == 3
    running.ended = [demo.Ended(running.stages[0], "kept", 0.0), demo.Ended(running.stages[1], "done", 150.0)]
    assert running.minutes_left(2) == 2.5
    running.ended = [demo.Ended(running.stages[0], "done", 0.5)]
    assert running.minutes_left(1) == 2 * 0.25, "a stage that was short for once does not promise the others"


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran
) -> None:
    use(monkeypatch, stage("train"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"/file is a file; give the path of a folder"):
        main(tmp_path / "file")
    with pytest.raises(UserError, match="could not be written"):
        main(tmp_path / "file" / "below")
    assert ran() == []


def test_two_demos_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran) -> None:
    use(monkeypatch, stage("train"))
    with (tmp_path / demo.LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another `mosgoat demo` is running in .*wait until it has ended"):
            main(tmp_path)
        assert ran() == []
    assert main(tmp_path) == 0
    assert ran() == ["train"]


def test_a_page_of_nothing_is_not_begun_and_the_whole_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, stage("train", "fail", "1"), stage("page", again=True))
    assert main(tmp_path, "--only", "page") == 1
    out = capfd.readouterr().out
    assert "ran" not in out
    assert "page did not run: nothing of what it is about is there yet" in out
    assert out.rstrip().endswith(f"mosgoat demo --output {tmp_path}")
    assert main(tmp_path) == 1
    assert "ran make" not in capfd.readouterr().out


@pytest.mark.parametrize("spelled", ["train", "./train", "../parent/train", "."])
def test_a_folder_is_the_same_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran, spelled: str
) -> None:
    use(monkeypatch, stage("train"))
    folder = tmp_path / "parent" / "train"
    assert main(folder) == 0
    ran()
    monkeypatch.chdir(folder if spelled == "." else folder.parent)
    assert main(Path(spelled)) == 0
    assert ran() == []


def test_help_and_plan_need_no_torch() -> None:
    code = (
        "import sys\nfrom common import demo\n"
        "try:\n    demo.main(['--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for each in demo_stages.STAGES:
        assert f"  {each.name} " in told


def start(script: Path, code: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    script.write_text("\n".join(code))
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, str(script)], cwd=ROOT, stdout=file, stderr=file, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_demo_leaves_no_command_running(tmp_path: Path, number: int, status: int) -> None:
    pids, log = tmp_path / "pids", tmp_path / "log"
    # the stand-in starts a process of its own, and both would run for minutes
    command = (
        "import os, pathlib, subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"pathlib.Path({str(pids) + '.tmp'!r}).write_text(f'{{os.getpid()}} {{inner.pid}}')\n"
        f"os.replace({str(pids) + '.tmp'!r}, {str(pids)!r})\n"
        "time.sleep(300)\n"
    )
    code = [
        "import pathlib, signal, sys",
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it",
        "from common import cli, demo",
        "from common.demo_stages import Stage, Step",
        f"demo._PROGRAM = (sys.executable, '-c', {command!r})",
        "make = lambda output: [Step(('x',), (output / 'file',))]",
        "demo.STAGES = (Stage('long', 'waiting', 1, make, 'file'),)",
        f"sys.exit(cli.main(['demo', '--output', {str(tmp_path / 'demo')!r}]))",
    ]
    running = start(tmp_path / "parent.py", code, log)
    try:
        assert wait_for(pids.is_file), log.read_text()
        children = [int(pid) for pid in pids.read_text().split()]
        running.send_signal(number)
        assert running.wait(60) == status
        assert wait_for(lambda: not any(map(alive, children)), 10)
    finally:
        running.kill()
        running.wait()
    told = log.read_text()
    assert "stopped during long; what is finished is kept, and the same command goes on" in told
    assert "Traceback" not in told
