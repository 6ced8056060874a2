"""`mosgoat report` over runs and evaluations as the pipelines leave them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from eval.report import command
from eval.report.command import main, write_report
from tests.common.reporting.test_page import Outline
from tests.eval.report.world import (
    add_chat,
    add_samples,
    generated,
    images_evaluation,
    make_run,
    of_paper,
    study_evaluation,
    subjects_evaluation,
    vlm_evaluation,
)


def sections(html: str) -> list[str]:
    page = Outline(html)
    return [str(part["id"]) for part in page.all("section") + page.all("details") if "id" in part]


def test_a_page_shows_what_the_runs_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages" / "report.html"
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b", seed=1), make_run(tmp_path, "c", method="goat")]
    add_samples(runs[0])
    assert main([*map(str, runs), "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    html = out.read_text()
    expected = ["result", "samples", "training", "router-load", "adapters", "confusions", "cost"]
    assert sections(html) == [*expected, "recipes", "environment", "how-to-reproduce"]
    # bars, two samples, loss, training accuracy (validation accuracy needs two points: none), entropy, two loads,
    # two spectra, mixers, two confusions
    assert len(Outline(html).all("img")) == 13
    assert "55.00 ± 7.07" in html  # accuracies of 0.5 and 0.6
    assert "the mean over a balanced routing" in html
    assert "✗ called a, is b" in html
    assert not [tag for tag in Outline(html).all("img") if not str(tag["src"]).startswith("data:")]


def test_parts_that_a_run_lacks_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", method="lora", diagnosed=False)
    expected = ["result", "training", "cost", "recipes", "environment", "how-to-reproduce"]
    assert sections(write_report([run], tmp_path / "r.html").read_text()) == expected
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    left = ["result", "cost", "recipes", "how-to-reproduce"]
    assert sections(write_report([run], tmp_path / "r.html").read_text()) == left


def test_a_folder_stands_for_all_that_lies_under_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = tmp_path / "demo"
    add_samples(make_run(demo, "vision/runs/lora", method="lora"))
    add_chat(make_run(demo, "llava/moslora", validation_loss=1.25, tokens_per_second=1781.0))
    images_evaluation(demo / "eval-images", str(demo / "vision/runs/lora"))
    vlm_evaluation(demo / "llava/moslora/eval_vlm", "MoSLoRA (run)", run=str(demo / "llava/moslora"), model=None)
    subjects_evaluation(demo / "eval-subjects", models={"dino": "facebook/dino-vits16"})
    study_evaluation(demo / "study")
    generated(demo / "dreambooth/pictures")
    html = write_report([demo], tmp_path / "r.html").read_text()
    assert capsys.readouterr().err == ""
    page = Outline(html)
    assert "2 finished runs of 2 settings, 4 evaluations, 2 sets of generated pictures." in page.text
    assert sections(html) == [
        "result", "image-classification-measured-again", "vision-language-benchmarks-beside-m-table-5",
        "pictures-of-subjects-beside-dreambooth-table-1", "human-study", "samples", "generated-pictures", "training",
        "adapters", "confusions", "cost", "recipes", "environment", "how-to-reproduce",
    ]  # fmt: skip
    assert "1.2500" in page.text
    assert re.search(r"1.781 tokens/s", page.text)  # a thin space
    assert "What colour is it?" in page.text


def test_what_is_unfinished_or_damaged_in_a_folder_is_named_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "unfinished", "broken", "odd"):
        make_run(tmp_path, f"runs/{name}", diagnosed=False)
    (tmp_path / "runs/unfinished/results.json").unlink()
    (tmp_path / "runs/broken/environment.json").write_text("{")
    (tmp_path / "runs/odd/results.json").write_text("[]")
    (vlm_evaluation(tmp_path / "runs/e", "m") / "MMBench_DEV_EN" / "results.json").write_text('{"task": "vlm", "benchm')
    images_evaluation(tmp_path / "runs/f", "gone", metrics={})
    (tmp_path / "runs/g").mkdir()
    (tmp_path / "runs/g/results.json").write_text('{"task": "weather", "metrics": {}}')
    (tmp_path / "runs/h").mkdir()
    (tmp_path / "runs/h/manifest.json").write_text('{"adapter": 3}')
    page = Outline(write_report([tmp_path / "runs"], tmp_path / "r.html").read_text())
    told = capsys.readouterr().err
    for words in (
        "runs/unfinished has not finished",
        "runs/broken/environment.json is broken at line 1",
        "runs/odd/results.json is no result of a run",
        "MMBench_DEV_EN/results.json is broken",
        "f/eval_images.json is not what eval images writes",
        "results of weather, which is no evaluation that this version knows",
        "h/manifest.json: adapter=3 must be a text",
    ):
        assert words in told
        assert words in page.text
    assert "2 finished runs of 2 settings." in page.text, "the environment is no reason to hide a run"
    assert "7 things could not be shown: see Left out." in page.text


def test_a_path_that_is_broken_itself_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", diagnosed=False)
    with pytest.raises(UserError, match=r"is a folder; give the path of a file"):
        main([str(run), "-o", str(tmp_path)])
    with pytest.raises(UserError, match="there is no run or evaluation at"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="is a file; give the folder"):
        main([str(run / "results.json")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing that can be shown lies under"):
        main([str(run), str(tmp_path / "empty")])
    (run / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json is broken.*delete the file"):
        main([str(run), "-o", str(tmp_path / "r.html")])
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        main([str(run)])
    with pytest.raises(UserError, match=r"nothing that can be shown lies under .*has not finished"):
        main([str(tmp_path)])


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "runs/a", diagnosed=False)
    images_evaluation(tmp_path / "runs/b", "a")
    true = Path.read_text

    def read_text(path: Path, *given: Any, **more: Any) -> str:
        if path.name == "eval_images.json":
            raise PermissionError(13, "Permission denied", str(path))
        return true(path, *given, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    text = Outline(write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert f"{tmp_path}/runs/b/eval_images.json cannot be read: Permission denied" in text


def test_what_lies_under_two_paths_is_shown_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "runs/a", diagnosed=False)
    images_evaluation(run, str(run))
    (tmp_path / "runs" / "again").symlink_to(run)
    html = write_report([run, run / "plots" / "..", tmp_path / "runs"], tmp_path / "r.html").read_text()
    assert "1 finished run, 1 evaluation." in html


def test_a_run_of_a_task_that_this_version_does_not_know_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", task="hologram", diagnosed=False, brightness=0.125)
    page = Outline(write_report([run], tmp_path / "r.html").read_text())
    assert "0.1250" in page.text
    assert "this version has no command that makes a run of hologram" in page.text


def test_text_from_a_run_or_the_title_cannot_become_markup(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    run = make_run(tmp_path, "a", method=script, diagnosed=False)
    add_chat(run)
    vlm_evaluation(tmp_path / "e", script)
    page = Outline(write_report([run, tmp_path / "e"], tmp_path / "r.html", title=script).read_text())
    assert not page.all("script")
    assert not page.all("b")
    assert page.text.count(script) > 3
    assert "<b>nobody</b> knows" in page.text


def test_missing_pictures_of_samples_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", diagnosed=False)
    add_samples(run)
    (run / "samples" / "00.webp").unlink()
    page = Outline(write_report([run], tmp_path / "r.html").read_text())
    assert "1 of these pictures are not in" in page.text
    assert "✓ b" in page.text


def test_every_run_and_evaluation_has_its_command(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a run", diagnosed=False)
    images_evaluation(tmp_path / "one", str(run), command="mosgoat eval images --run 'a run'", environment={})
    images_evaluation(tmp_path / "two", str(tmp_path / "deleted"), source="pictures", dataset="mine")
    vlm_evaluation(tmp_path / "three", "m")
    text = Outline(write_report([tmp_path], tmp_path / "r.html").read_text()).text
    assert f"mosgoat vit train --config '{run}/config.yaml' --output NEW" in text
    assert f"# {run}, abcdef123456" in text
    assert "mosgoat eval images --run 'a run'" in text
    assert "deleted is not there any more" in text
    assert "--split test --data.name mine --data.source pictures --output NEW" in text
    assert "made by mosgoat eval vlm, which did not note its words then: model=some/model" in text


def test_a_page_of_many_runs_stays_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for number in range(30):
        config = {"train": {"learning_rate": number}}
        run = make_run(tmp_path, f"runs/{number:02}", diagnosed=False, config=config, method="goat")
        add_samples(run)
    file = write_report([tmp_path / "runs"], tmp_path / "r.html")
    page = Outline(file.read_text())
    assert "The first 12 of 30 settings with samples; give fewer paths to see the others." in page.text
    assert "learning_rate=29" in page.text
    assert file.stat().st_size < 4_000_000


def test_every_check_is_of_an_evaluation_that_has_a_part() -> None:
    assert set(command._CHECKS) == {"images", "vlm", "dreambooth_subjects", "study"}


def test_a_published_number_stands_beside_no_drawn_one(tmp_path: Path) -> None:
    make_run(tmp_path, "drawn", diagnosed=False, results={"dataset": "signs"})
    builtin = {"model": {"name": "builtin:signs-vit"}, "data": {"name": "gtsrb"}}
    make_run(tmp_path, "drawn base", diagnosed=False, results={"dataset": "gtsrb"}, config=builtin)
    vlm_evaluation(tmp_path / "e", "tiny", "DrawnQuestions")
    labels = {"dino": "drawn identity"}
    subjects_evaluation(tmp_path / "s", models={"dino": "builtin:drawn-encoder"}, labels=labels)
    page = Outline(write_report([tmp_path], tmp_path / "r.html").read_text())
    assert "published, " not in page.text
    assert "drawn questions" in page.text
    assert "drawn identity" in page.text
    of_paper(tmp_path, "real", diagnosed=False)
    page = Outline(write_report([tmp_path], tmp_path / "r.html").read_text())
    assert page.text.count("published, ") == 1
    assert "Not here, as [G] does not have them: signs, gtsrb" in page.text


def test_the_json_of_an_evaluation_may_hold_anything(tmp_path: Path) -> None:
    make_run(tmp_path, "a", diagnosed=False)
    for number, content in enumerate(([], 3, None, {"task": 4}, {"task": "study", "comparisons": 3})):
        folder = tmp_path / f"e{number}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(content))
    assert "5 things could not be shown" in write_report([tmp_path], tmp_path / "r.html").read_text()
