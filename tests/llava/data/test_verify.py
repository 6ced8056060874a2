"""The pass over the pictures: once, in parallel, going on where it was stopped."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.data import verify
from llava.data.dataset import open_source
from llava.data.pictures import Check
from tests.llava.data.conftest import Folder, conversation, picture


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_STARTED", float("inf"))  # as if each check were a run of its own


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were opened, in chunks of about four."""
    names: list[str] = []
    original = verify.problem_of
    monkeypatch.setattr(verify, "CHUNK", 4)
    monkeypatch.setattr(
        verify, "problem_of", lambda root, stamp, check: names.append(stamp.name) or original(root, stamp, check)
    )
    return names


def check(folder: Folder, level: Check = "decode", **options: object) -> verify.Verified:
    settings = {"check": level, "workers": 0, **options}
    return open_source(folder.config(), str(folder.path), "data.path", **settings).verified  # type: ignore[arg-type]


def test_every_picture_is_looked_at_once(folder: Folder, looked_at: list[str]) -> None:
    found = check(folder)
    assert sorted(looked_at) == sorted(row["image"] for row in folder.rows if "image" in row)
    assert (found.pictures, found.problems, found.moved) == (18, {}, 0)


def test_second_check_reads_no_picture_again(folder: Folder, looked_at: list[str]) -> None:
    check(folder)
    looked_at.clear()
    check(folder)
    check(folder, "header")
    assert looked_at == []


def test_closer_look_opens_them_again(folder: Folder, looked_at: list[str]) -> None:
    check(folder, "header")
    looked_at.clear()
    check(folder, "decode")
    assert len(looked_at) == 18


def test_changed_picture_is_read_again_with_its_chunk(folder: Folder, looked_at: list[str]) -> None:
    check(folder)
    looked_at.clear()
    folder.image(0).write_bytes(b"damaged")
    found = check(folder)
    assert list(found.problems) == [folder.rows[0]["image"]]
    assert folder.rows[0]["image"] in looked_at
    assert len(looked_at) < 18


def test_new_conversations_change_few_chunks(folder: Folder, looked_at: list[str]) -> None:
    check(folder)
    looked_at.clear()
    picture(99).save(folder.images / "coco" / "new.jpg")
    folder.rows.append(conversation(99, "coco/new.jpg"))
    folder.write()
    assert check(folder).pictures == 19
    assert "coco/new.jpg" in looked_at
    assert len(looked_at) < 18


def test_stopped_check_goes_on(folder: Folder, looked_at: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original, written = verify.append_json_line, []

    def stop_after_two(path: Path, value: dict) -> None:
        original(path, value)
        written.append(value)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify, "append_json_line", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            check(folder)
    done = len(looked_at)
    assert 0 < done < 18
    assert check(folder).pictures == 18
    assert sorted(looked_at) == sorted(row["image"] for row in folder.rows if "image" in row)


def test_damaged_journal_costs_time_only(folder: Folder, looked_at: list[str]) -> None:
    check(folder)
    journal = next((folder.root / "cache").rglob("journal.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-40] + b"\x00\xff\n[]\n{}\n")
    assert check(folder).pictures == 18


def test_permission_that_was_missing_is_tried_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """chmod leaves size and time of a file as they are."""
    denied = {"cannot be read: Permission denied"}
    original = verify.problem_of
    with monkeypatch.context() as patch:
        patch.setattr(
            verify,
            "problem_of",
            lambda root, stamp, level: next(iter(denied)) if "000" in stamp.name else original(root, stamp, level),
        )
        assert len(check(folder).problems) == 1
    assert check(folder).problems == {}


def test_picture_that_is_lost_and_mended_is_noticed_each_time(folder: Folder) -> None:
    path = folder.image(0)
    content = path.read_bytes()
    assert check(folder, "header").problems == {}
    path.unlink()
    assert len(check(folder, "header").problems) == 1
    path.write_bytes(content)
    assert check(folder, "header").problems == {}


def test_closer_look_is_kept(folder: Folder, looked_at: list[str]) -> None:
    """Training asks for headers; where all was unpacked before, a changed picture is unpacked, too."""
    path = folder.image(0)
    picture(0, 200, 300).save(path)
    check(folder)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = check(folder, "header")
    assert found.check == "decode"
    assert list(found.problems) == [folder.rows[0]["image"]]


def test_second_process_of_a_run_looks_at_no_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = check(folder)
    monkeypatch.setattr(verify, "_STARTED", 0.0)  # the index is younger than the run
    monkeypatch.setattr(verify, "_verify", None)
    assert check(folder) == first


def test_worker_processes_find_the_same(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.image(0).write_bytes(b"damaged")
    folder.image(1).unlink()
    alone = check(folder)
    for path in (folder.root / "cache").rglob("*.json*"):
        path.unlink()
    monkeypatch.setattr(verify, "CHUNK", 2)
    assert check(folder, workers=2) == alone
    assert len(alone.problems) == 2


def test_another_root_is_another_index(make_folder: Callable[..., Folder], looked_at: list[str]) -> None:
    one, two = make_folder("one", 8), make_folder("two", 8)
    one.image(0).unlink()
    config = one.config()
    assert len(check(one).problems) == 1
    source = open_source(one.config(image_root=str(two.images)), str(one.path), "data.path", check="decode", workers=0)
    assert source.verified.problems == {}
    assert open_source(config, str(one.path), "data.path", workers=0).verified.problems != {}


def test_index_is_machine_readable(folder: Folder) -> None:
    folder.image(0).write_bytes(b"damaged")
    check(folder)
    index = json.loads(next((folder.root / "cache").rglob("verified-*.json")).read_text())
    assert index["check"] == "decode"
    assert index["root"] == os.path.realpath(folder.images)
    assert list(index["problems"]) == [folder.rows[0]["image"]]


def test_processes_that_start_together_do_the_work_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun; each writes the names it has opened."""
    monkeypatch.setattr(verify, "_STARTED", 0.0)
    original = verify.problem_of

    def slowly(*args: Any) -> str:
        with (folder.root / "opened").open("a") as log:
            log.write(f"{args[1].name}\n")
        time.sleep(0.01)
        return original(*args)

    monkeypatch.setattr(verify, "problem_of", slowly)
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            os._exit(0 if check(folder).pictures == 18 else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert len((folder.root / "opened").read_text().split()) == 18
