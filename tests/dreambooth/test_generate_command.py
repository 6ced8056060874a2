"""`mosgoat dreambooth generate`: what is made, kept, made anew and refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from common.cli import main as mosgoat
from common.errors import UserError
from dreambooth import generate_command
from dreambooth.generate_command import main
from dreambooth.manifest import read_manifest
from tests.dreambooth.made_runs import make_run
from tests.dreambooth.tiny import tiny_sdxl

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = "# of the test\na {token} {class} in the jungle\n\na purple {token} {class}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two folders of runs, and a file of prompts; not to be changed."""
    root = tmp_path_factory.mktemp("world")
    tiny_sdxl(root / "model")
    for number, method in enumerate(("lora", "goat")):
        for subject, class_word in (("duck", "toy"), ("rex", "dog")):
            make_run(
                root / method / subject, root / "model", subject, class_word=class_word, method=method, seed=number
            )
    (root / "prompts.txt").write_text(PROMPTS)
    return root


@pytest.fixture
def words(world: Path, tmp_path: Path) -> list[str]:
    """One adapter, one subject, two prompts, two seeds."""
    prompts, output = str(world / "prompts.txt"), str(tmp_path / "out")
    options = ["--prompts", prompts, "--seeds", "0", "1", "--steps", "1", "--output", output, "--device", "cpu"]
    return ["--run", str(world / "lora" / "duck"), *options]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*_*.png"))
    }


def count_pictures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that are generated from now on."""
    sizes: list[int] = []
    whole = generate_command.generate

    def counting(base: Any, jobs: Any, **options: Any) -> Any:
        sizes.append(len(jobs))
        return whole(base, jobs, **options)

    monkeypatch.setattr(generate_command, "generate", counting)
    return sizes


def test_all_adapters_and_the_base_make_the_same_subjects_from_the_same_noise(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    runs = [str(world / "lora"), f"routed={world / 'goat'}"]
    options = ["--prompts", str(world / "prompts.txt"), "--seeds", "0", "3", "--steps", "1", "--output", str(out)]
    assert mosgoat(["dreambooth", "generate", "--run", *runs, "--base", *options]) == 0
    found = hashes(out)
    assert len(found) == 3 * 2 * 2 * 2
    assert len(set(found.values())) == len(found)  # every adapter, subject, prompt and seed gives another picture
    assert {path.rsplit("/", 1)[0] for path in found} == {
        f"{a}/{s}" for a in ("base", "lora", "routed") for s in ("duck", "rex")
    }
    manifest = read_manifest(out / "routed" / "rex")
    assert (manifest.adapter, manifest.subject, manifest.class_word, manifest.token) == ("routed", "rex", "dog", "zqx")
    assert manifest.prompts == ("a {token} {class} in the jungle", "a purple {token} {class}")
    assert manifest.seeds == (0, 3)
    assert sorted(manifest.pictures) == ["00_0.png", "00_3.png", "01_0.png", "01_3.png"]
    assert len(manifest.references) == 3
    assert all(Path(path).is_file() for path in manifest.references)
    assert (out / "grids.html").is_file()
    assert (out / "grids" / "duck.png").is_file()
    assert "grids" in capsys.readouterr().out


def test_picture_files_hold_nothing_but_pixels(words: list[str], tmp_path: Path) -> None:
    main(words)
    for path in (tmp_path / "out").rglob("*_*.png"):
        with Image.open(path) as image:
            assert image.info == {}
            assert image.size == (16, 16)


def test_what_is_there_is_not_made_again(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(words)
    before, sizes = hashes(tmp_path / "out"), count_pictures(monkeypatch)
    main(words)
    assert sizes == []
    (tmp_path / "out" / "lora" / "duck" / "01_0.png").unlink()
    main(words)
    assert sizes == [1]
    assert hashes(tmp_path / "out") == before


def test_more_seeds_are_added_and_fewer_take_nothing_away(
    words: list[str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(words)
    before, sizes = hashes(tmp_path / "out"), count_pictures(monkeypatch)
    main([*words, "--seeds", "5", "1"])
    assert sum(sizes) == 2
    (tmp_path / "fewer.txt").write_text(PROMPTS.rsplit("\n", 2)[0])
    main([*words, "--prompts", str(tmp_path / "fewer.txt"), "--seeds", "0"])
    (tmp_path / "more.txt").write_text(PROMPTS + "a red {token} {class}\n")
    main([*words, "--prompts", str(tmp_path / "more.txt"), "--seeds", "0"])
    assert sum(sizes) == 3
    manifest = read_manifest(tmp_path / "out" / "lora" / "duck")
    assert manifest.seeds == (0, 1, 5)
    assert len(manifest.prompts) == 3
    assert len(manifest.pictures) == 7
    assert before.items() <= hashes(tmp_path / "out").items()


@pytest.mark.parametrize("change", ["weights", "guidance", "prompts"])
def test_pictures_made_otherwise_are_never_taken_for_these(
    words: list[str], world: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "mine" / "duck", world / "model")
    words = ["--run", str(tmp_path / "mine"), *words[2:]]
    main(words)
    before = hashes(tmp_path / "out")
    if change == "weights":
        file = run / "adapter" / "unet" / "adapter_model.safetensors"
        save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
    elif change == "prompts":
        (tmp_path / "other.txt").write_text("a {token} {class} on the moon\na purple {token} {class}\n")
        words += ["--prompts", str(tmp_path / "other.txt")]
    else:
        words += [f"--{change}", "3"]
    wrong = 2 if change == "prompts" else 4
    with pytest.raises(UserError, match=rf"holds {wrong} pictures? made otherwise.*--overwrite"):
        main(words)
    assert hashes(tmp_path / "out") == before
    sizes = count_pictures(monkeypatch)
    main([*words, "--overwrite"])
    assert sum(sizes) == wrong
    after = hashes(tmp_path / "out")
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in after) == wrong


def test_foreign_pictures_without_a_manifest_are_not_overwritten(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out" / "lora" / "duck"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "mine.png")
    with pytest.raises(UserError, match="holds 1 picture made otherwise"):
        main(words)
    assert (folder / "mine.png").is_file()


def test_a_picture_that_was_written_just_before_a_crash_is_made_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(words)
    before = hashes(tmp_path / "out")
    file = tmp_path / "out" / "lora" / "duck" / "manifest.json"
    content = json.loads(file.read_text())
    del content["pictures"]["01_1.png"]  # the file is there, its entry was not written yet
    file.write_text(json.dumps(content))
    sizes = count_pictures(monkeypatch)
    main(words)
    assert sizes == [1]
    assert hashes(tmp_path / "out") == before


@pytest.mark.slow
def test_killed_and_started_again_it_makes_the_same_pictures(words: list[str], tmp_path: Path) -> None:
    # no guidance: one pass of the UNet a step
    words += ["--steps", "8", "--guidance", "0", "--batch-size", "1", "--seeds", "0", "1", "2"]
    command = [sys.executable, "-m", "common.cli", "dreambooth", "generate", *words]
    folder = tmp_path / "out" / "lora" / "duck"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        begin = time.monotonic()
        while not list(folder.glob("*.png")) and time.monotonic() - begin < 300:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    there = len(list(folder.glob("*.png")))
    assert 1 <= there < 6, "it was to be killed half-way"
    main(words)
    resumed = hashes(folder)
    assert len(resumed) == 6
    main([*words, "--output", str(tmp_path / "whole")])
    assert hashes(tmp_path / "whole" / "lora" / "duck") == resumed


def test_the_data_sets_own_prompts_are_taken_by_default(words: list[str], world: Path, tmp_path: Path) -> None:
    file = world / "lora" / "pictures" / "prompts_and_classes.txt"
    object_list, live_list = ("'a {0} {1} on a rug'.format(u, c)", "'a {0} {1} wearing a hat'.format(u, c)")
    file.write_text(
        f"Classes\n\nsubject_name,class\nduck,toy\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n{object_list}\n]\n\n"
        f"Live Subject Prompts\n\nprompt_list = [\n{live_list}\n]\n"
    )
    try:
        main(["--run", str(world / "lora"), *words[4:], "--seeds", "0"])
    finally:
        file.unlink()
    out = tmp_path / "out" / "lora"
    assert read_manifest(out / "duck").prompts == ("a {token} {class} on a rug",)
    assert read_manifest(out / "rex").prompts == ("a {token} {class} wearing a hat",)


def test_a_run_alone_is_called_after_its_folder_of_runs_or_itself(
    world: Path, words: list[str], tmp_path: Path
) -> None:
    main(["--run", str(world / "lora" / "duck"), *words[2:]])
    own = make_run(tmp_path / "my-run", world / "model")
    main(["--run", str(own), f"named={own}", *words[2:], "--seeds", "0"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "grids",
        "grids.html",
        "lora",
        "my-run",
        "named",
    ]


@pytest.mark.parametrize("long", [False, True])
def test_prompts_that_are_too_long_are_counted(
    words: list[str], tmp_path: Path, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text(PROMPTS + ("a {token} {class} " + "that is long " * 20 + "\n") * long)
    main([*words, "--prompts", str(tmp_path / "long.txt"), "--seeds", "0"])
    assert ("longer than the model can read, cut at the end: 1 of 3 prompts" in capsys.readouterr().err) == long


def test_runs_whose_photographs_are_gone_still_generate(
    world: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "gone" / "duck", world / "model")
    for path in (tmp_path / "gone" / "pictures" / "duck").iterdir():
        path.unlink()
    assert main(["--run", str(run), *words[2:], "--seeds", "0"]) == 0
    assert read_manifest(tmp_path / "out" / "gone" / "duck").references == ()
    assert "no references are noted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--steps", "0"], "--steps=0 must be from 1"),
        (["--guidance", "nan"], "--guidance=nan must be from 0"),
        (["--seeds", "-1"], "--seeds=-1 must be from 0"),
        (["--batch-size", "0"], "--batch-size=0 must be from 1"),
        (["--size", "13"], "size=13 is not a multiple of 8"),
        (["--size", "0"], "size=0 is not a multiple of 8"),
        (["--device", "toaster"], "--device=toaster is no device"),
        (["--device", "cuda:99"], "--device=cuda:99 cannot be used on this machine"),
        (["--output", __file__], r"test_generate_command\.py is a file; give the path of a folder"),
        (["--subjects", "cow"], "--subjects cow: no run teaches that; the runs teach duck"),
        (["--run", "nothing"], "there is no folder nothing"),
        (["--prompts", "nothing.txt"], r"--prompts=nothing\.txt cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], change: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([*words, *change])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt"),
        ("a {0} dog\n", r"prompt 1: \{0\} is not filled in"),
        ("a dog\na dog\n", "prompt 2 is there twice"),
    ],
)
def test_unsound_prompts_are_refused(words: list[str], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        main([*words, "--prompts", str(tmp_path / "bad.txt")])


def test_names_that_clash_are_refused(world: Path, words: list[str], tmp_path: Path) -> None:
    other = make_run(tmp_path / "lora" / "duck", world / "model", seed=3)
    with pytest.raises(UserError, match="are both called lora and teach duck"):
        main(["--run", str(world / "lora"), str(other), *words[2:]])
    with pytest.raises(UserError, match="is called base, as the model without an adapter"):
        main(["--run", f"base={other}", "--base", *words[2:]])
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        main(["--run", f"grids={other}", *words[2:]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no run and holds none"):
        main(["--run", str(tmp_path / "empty"), *words[2:]])


def test_one_base_for_two_models_is_refused(world: Path, words: list[str], tmp_path: Path) -> None:
    tiny_sdxl(tmp_path / "model", seed=5)
    other = make_run(tmp_path / "other" / "duck", tmp_path / "model")
    with pytest.raises(UserError, match=r"to another model.*no single base for both"):
        main(["--run", str(world / "lora"), str(other), "--base", *words[2:]])


def test_an_adapter_for_another_model_is_refused(world: Path, words: list[str], tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine" / "duck", tiny_sdxl(tmp_path / "model"))
    tiny_sdxl(tmp_path / "model", seed=8)  # the folder has other weights now
    with pytest.raises(UserError, match="was trained on another model"):
        main(["--run", str(run), *words[2:]])


def test_processes_divide_the_sets_and_make_the_same_pictures(
    world: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(words[words.index("--output") + 1])
    given = ["--run", str(world / "lora"), *words[2:]]
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        before = len(hashes(out))
        assert main(given) == 0
        assert len(hashes(out)) - before == {0: 4, 1: 4, 2: 0}[rank]
    assert "2 sets of pictures, which are not divided further: 1 process without work" in capsys.readouterr().err
    assert {path.name for path in (out / "grids").glob("*.png")} == {"duck.png", "rex.png"}
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert main([*given[:-3], str(out.parent / "alone"), *given[-2:]]) == 0
    assert hashes(out) == hashes(out.parent / "alone")
