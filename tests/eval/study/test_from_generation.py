"""What `mosgoat dreambooth generate` writes is what `mosgoat eval study import` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cli import main as mosgoat
from eval.study.database import open_study
from tests.dreambooth.made_runs import make_run
from tests.dreambooth.tiny import tiny_sdxl
from tests.eval.study.world import answer, enter, invite, votes


@pytest.mark.slow
def test_pictures_of_two_adapters_become_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_sdxl(tmp_path / "model")
    runs = [str(make_run(tmp_path / method / "duck", model, method=method)) for method in ("lora", "moslora")]
    (tmp_path / "prompts.txt").write_text("a {token} {class} in the jungle\na purple {token} {class}\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "0", "1", "--steps", "1", "--device", "cpu"]
    assert mosgoat(["dreambooth", "generate", "--run", *runs, *words, "--output", str(tmp_path / "made")]) == 0
    sets = [word for name in ("moslora", "lora") for word in ("--set", f"{name}={tmp_path / 'made' / name}")]
    capsys.readouterr()
    assert mosgoat(["eval", "study", "import", "--study", str(tmp_path / "study"), *sets]) == 0
    assert "4 pairs of moslora, lora from 4 prompts and seeds" in capsys.readouterr().out
    study = open_study(tmp_path / "study")
    client = enter(study, invite(study)[0])
    page = client.get("/rate").text
    assert "zqx" not in page  # the word that means the subject
    assert "Reference picture 1" in page
    assert answer(client) == 303
    assert len(votes(study)) == 2
