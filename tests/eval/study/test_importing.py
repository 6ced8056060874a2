"""From folders to pairs: what is paired, what is left out and told, and that a copy tells nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from eval.study import importing
from eval.study.database import Study, open_study
from eval.study.importing import import_study
from tests.eval.study.world import METHODS, PROMPTS, draw, generated, make_study


def take(root: Path, *sets: tuple[str, Path], **options: Path | None):  # type: ignore[no-untyped-def]
    chosen = {"references": None, "prompts": None} | options
    return import_study(root / "study", sets, title="A study", **chosen)


def pairs_of(study: Study) -> list[tuple[str, ...]]:
    with study.reading() as db:
        return [
            tuple(row)
            for row in db.execute(
                "SELECT subject, shown_prompt, seed, one.name, other.name, first_picture, second_picture FROM pairs "
                "JOIN items ON items.id = item JOIN methods one ON one.id = first "
                "JOIN methods other ON other.id = second"
            )
        ]


def test_pairs_share_subject_prompt_and_seed_and_pixels_are_unchanged(tmp_path: Path) -> None:
    study, report = make_study(tmp_path, subjects=("dog6", "cat2"))
    assert report.pairs == 2 * len(PROMPTS) * 2
    assert report.is_whole
    for subject, prompt, seed, first, second, *pictures in pairs_of(study):
        assert (first, second) == METHODS
        number = [text.format(token="", **{"class": "dog"}).replace("  ", " ") for text in PROMPTS].index(prompt)
        for method, picture in zip(METHODS, pictures, strict=True):
            original = tmp_path / f"adapter-{method}" / subject / f"{number:02}_{seed}.png"
            with Image.open(original) as expected, Image.open(study.picture_file(picture)) as copy:
                np.testing.assert_array_equal(np.asarray(copy), np.asarray(expected))


def test_a_copy_tells_nothing_of_its_method(study: Study) -> None:
    files = list((study.path / "pictures").iterdir())
    assert len(files) == 2 * 6 + 3
    for file in files:
        assert len(file.name) == 32
        content = file.read_bytes()
        for word in ("secret", "veiled", "adapter", "method", "dog6"):
            assert word.encode() not in content
        with Image.open(file) as image:
            assert not {
                key for key in image.info if key not in ("jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi")
            }
    for *_, first, second in pairs_of(study):
        assert study.picture_file(first).stat().st_size == study.picture_file(second).stat().st_size


def test_a_smoother_method_is_not_betrayed_by_smaller_files(tmp_path: Path) -> None:
    for name, noise in (("smooth", 1), ("rough", 255)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, noise, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    sizes = {f.stat().st_size for f in tmp_path.rglob("*.png")}
    assert max(sizes) > 20 * min(sizes)
    (tmp_path / "prompts.csv").write_text("picture,prompt\n0,a\n1,b\n2,c\n")
    take(tmp_path, ("one", tmp_path / "smooth"), ("two", tmp_path / "rough"), prompts=tmp_path / "prompts.csv")
    for *_, first, second in pairs_of(open_study(tmp_path / "study")):
        one, other = (open_study(tmp_path / "study").picture_file(p).stat().st_size for p in (first, second))
        assert one == other


def test_the_order_in_the_database_does_not_follow_the_methods(tmp_path: Path) -> None:
    # With 24 random names, that all first methods' come before or all after is a chance of about 1e-6.
    study, _ = make_study(tmp_path, subjects=("dog6", "cat2"))
    firsts = sorted((first, True) for *_, first, _ in pairs_of(study))
    seconds = sorted((second, False) for *_, second in pairs_of(study))
    order = [is_first for _, is_first in sorted(firsts + seconds)]
    assert order not in ([True] * 12 + [False] * 12, [False] * 12 + [True] * 12)


def test_three_methods_give_all_pairs_of_methods(tmp_path: Path) -> None:
    study, report = make_study(tmp_path, methods=("a", "b", "c"))
    assert report.pairs == 3 * 6
    assert {(first, second) for *_, first, second, _, _ in pairs_of(study)} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_unreadable_unmatched_and_unequal_pictures_are_counted_and_named(tmp_path: Path) -> None:
    one, other = generated(tmp_path, "one"), generated(tmp_path, "other")
    (one / "dog6" / "00_0.png").write_bytes(b"not a picture")
    (one / "dog6" / "00_1.png").write_bytes((one / "dog6" / "00_1.png").read_bytes()[:200])
    draw(other / "dog6" / "01_0.png", 5, size=64)
    manifest = json.loads((other / "dog6" / "manifest.json").read_text())
    del manifest["pictures"]["02_1.png"]
    (other / "dog6" / "manifest.json").write_text(json.dumps(manifest))
    report = take(tmp_path, ("A", one), ("B", other))
    assert report.pairs == 6 - 4
    assert len(report.unreadable) == 2
    assert any("00_0.png" in line for line in report.unreadable)
    assert len(report.unmatched) == 1
    assert "city" in report.unmatched[0]
    assert "B has no such picture" in report.unmatched[0]
    assert len(report.unequal) == 1
    assert "48x48 (A) and 64x64 (B)" in report.unequal[0]
    assert not report.is_whole
    told = "\n".join(report.lines())
    assert "2 unreadable:" in told
    assert "1 of 6 pictures have not been generated" in told


def test_plain_folders_are_paired_by_name_whatever_the_ending(tmp_path: Path) -> None:
    for number, name in enumerate(("x/one.png", "x/two.png", "y/one.jpg", "y/two.png", "y/three.png")):
        draw(tmp_path / f"{name}", number) if name.endswith("png") else None
    Image.new("RGB", (48, 48), "red").save(tmp_path / "y" / "one.jpg")
    (tmp_path / "p.csv").write_text('picture,prompt\none,a red dog\ntwo.png,"a dog, blue"\n', encoding="utf-8")
    report = take(tmp_path, ("X", tmp_path / "x"), ("Y", tmp_path / "y"), prompts=tmp_path / "p.csv")
    assert sorted(prompt for _, prompt, *_ in pairs_of(open_study(tmp_path / "study"))) == ["a dog, blue", "a red dog"]
    assert report.questions == ["prompt_consistency"]
    assert any("no reference pictures" in note for note in report.notes)
    assert any("three.png: it has no line" in line for line in report.left_out)


def test_without_prompts_only_similarity_is_asked(tmp_path: Path) -> None:
    for name in ("x/dog/1.png", "y/dog/1.png", "real/dog/a.png"):
        draw(tmp_path / name, 1)
    report = take(tmp_path, ("X", tmp_path / "x"), ("Y", tmp_path / "y"), references=tmp_path / "real")
    assert report.questions == ["subject_similarity"]


def test_an_exif_rotation_is_applied_and_transparency_laid_on_white(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    turned, exif = Image.new("RGB", (40, 20), "blue"), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "x" / "1.jpg", exif=exif)
    Image.new("RGBA", (20, 40), (255, 0, 0, 0)).save(tmp_path / "y" / "1.png")
    (tmp_path / "p.csv").write_text("picture,prompt\n1,a\n")
    report = take(tmp_path, ("X", tmp_path / "x"), ("Y", tmp_path / "y"), prompts=tmp_path / "p.csv")
    assert report.pairs == 1  # 20x40 both
    ((*_, second),) = pairs_of(open_study(tmp_path / "study"))
    with Image.open(open_study(tmp_path / "study").picture_file(second)) as image:
        assert image.getpixel((3, 3)) == (255, 255, 255)


def test_different_settings_are_told(tmp_path: Path) -> None:
    one, other = generated(tmp_path, "one"), generated(tmp_path, "other")
    manifest = json.loads((other / "dog6" / "manifest.json").read_text()) | {"settings": {"steps": 20}}
    (other / "dog6" / "manifest.json").write_text(json.dumps(manifest))
    assert any("steps: A 50, B 20" in note for note in take(tmp_path, ("A", one), ("B", other)).notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one set", "at least two sets"),
        ("same name", "must differ"),
        ("no folder", "there is no such folder"),
        ("no pictures", "holds no pictures"),
        ("several adapters", "several adapters; name each: --set one="),
        ("nothing shared", "nothing to rate"),
        ("study exists", "is there already"),
        ("no references", "no reference picture of 'dog6' can be read"),
    ],
)
def test_what_cannot_be_a_study_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, change: str, message: str
) -> None:
    one, other = generated(tmp_path, "one"), generated(tmp_path, "other")
    sets = [("A", one), ("B", other)]
    if change == "one set":
        sets = sets[:1]
    elif change == "same name":
        sets = [("A", one), ("A", other)]
    elif change == "no folder":
        sets[1] = ("B", tmp_path / "absent")
    elif change == "no pictures":
        (tmp_path / "empty").mkdir()
        sets[1] = ("B", tmp_path / "empty")
    elif change == "several adapters":
        sets[0] = ("A", tmp_path)
    elif change == "nothing shared":
        sets[1] = ("B", generated(tmp_path, "cats", subjects=("cat2",)))
    elif change == "study exists":
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "mine.txt").write_text("x")
    elif change == "no references":
        for file in (tmp_path / "real").rglob("*.png"):
            file.write_bytes(b"")
    with pytest.raises(UserError, match=message) as caught:
        take(tmp_path, *sets)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study" / "study.sqlite").exists()
    assert not list(tmp_path.glob(".study*"))


def test_an_import_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".study.importing" / "pictures").mkdir(parents=True)
    (tmp_path / ".study.importing" / "study.sqlite").write_bytes(b"half")
    study, _ = make_study(tmp_path)
    assert pairs_of(study)
    assert not list(tmp_path.glob(".study*"))


def test_two_imports_into_one_folder_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, told = importing.create_database, []

    def while_the_first_runs(folder: Path) -> None:
        monkeypatch.setattr(importing, "create_database", true)
        with pytest.raises(UserError, match=r"another import is making --study .*; wait for it to end"):
            make_study(tmp_path)
        told.append(folder)
        true(folder)

    monkeypatch.setattr(importing, "create_database", while_the_first_runs)
    study, report = make_study(tmp_path)
    assert len(told) == 1
    assert len(pairs_of(study)) == report.pairs
    assert [path.name for path in study.path.parent.iterdir() if path.name.endswith(".importing")] == []


def test_an_import_whose_folder_was_taken_away_by_another_is_told(tmp_path: Path) -> None:
    alone = importing._alone_in(tmp_path / ".s.importing", tmp_path / "s")
    with pytest.raises(UserError, match=r"another import into --study .*s has just ended"), alone:
        pass


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file systems")
def test_only_the_owner_may_read_a_study(study: Study) -> None:
    assert study.path.stat().st_mode & 0o077 == 0
    assert (study.path / "study.sqlite").stat().st_mode & 0o077 == 0


def test_a_prompt_csv_that_cannot_be_used_is_named_with_its_line(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png"):
        draw(tmp_path / name, 1)
    for content, message in (
        ("picture,prompt\n1,\n", "line 2: the columns `picture` and `prompt` must both"),
        ("file,prompt\n1,a\n", "line 2: the columns `picture` and `prompt` must both"),
        ("picture,prompt\n1,a\n1,b\n", "line 3: 1 has another prompt"),
        ("picture,prompt\n", "no lines below"),
    ):
        (tmp_path / "p.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            take(tmp_path, ("X", tmp_path / "x"), ("Y", tmp_path / "y"), prompts=tmp_path / "p.csv")
    with pytest.raises(UserError, match="nothing to ask"):
        take(tmp_path, ("X", tmp_path / "x"), ("Y", tmp_path / "y"))
