"""The stages of `mosgoat demo`: chosen by name, in processes of their own, a failed one named beside the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import demo
from common.cli import COMMANDS
from common.errors import UserError


def stage(name: str, *command: str) -> demo.Stage:
    return demo.Stage(name, command, f"what {name} shows", 1)


def test_every_stage_is_a_command_that_takes_an_output() -> None:
    for each in demo.STAGES:
        assert " ".join(each.command) in COMMANDS


def test_stages_are_chosen_by_name_and_keep_their_order() -> None:
    assert demo.choose(None) == list(demo.STAGES)
    assert [each.name for each in demo.choose("llava, vision")] == ["vision", "llava"]
    with pytest.raises(UserError, match=r"--only names 'visoin', which is no stage; did you mean vision\?"):
        demo.choose("visoin")
    with pytest.raises(UserError, match=r"--only=',' names nothing; stages: vision"):
        demo.choose(",")


def test_a_failed_stage_is_named_and_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "STAGES", (stage("broken", "methods", "--nonsense"), stage("whole", "--help")))
    assert demo.main(["--output", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["broken", "failed"] for line in lines)
    assert any(line.split()[:2] == ["whole", "done"] for line in lines)
    assert lines[-1].endswith(f"mosgoat demo --output {tmp_path} --only broken")
