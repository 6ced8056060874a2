"""The server as a process: what it survives, what it says, and who can reach it."""

from __future__ import annotations

import re
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from common.errors import UserError
from eval.study.database import Study, open_study
from eval.study.server import hosting_of, is_local, serve
from tests.eval.study.serving import running
from tests.eval.study.world import fields, invite, organiser, votes


@contextmanager
def browser(address: str, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.get(f"/enter/{token}").status_code == 303
        yield client


def vote(client: httpx.Client) -> str:
    """Answer the next pair; returns its task."""
    form = fields(client.get("/rate").text)
    reply = client.post("/rate", data=form | {"subject_similarity": "left", "prompt_consistency": "tie"})
    assert reply.status_code == 303
    return form["task"]


@pytest.mark.slow
def test_no_vote_is_lost_when_the_server_is_killed_right_after_it(study: Study, tmp_path: Path) -> None:
    (token,), log, given = invite(study), tmp_path / "log", []
    for _ in range(2):
        with running(study.path, log) as (server, address), browser(address, token) as client:
            given.append(vote(client))
            given.append(vote(client))
            server.kill()  # SIGKILL: nothing is flushed, closed or rolled forward
            server.wait()
        with study.reading() as db:
            kept = [row["id"] for row in db.execute("SELECT id FROM tasks JOIN votes USING (rater, pair) GROUP BY id")]
        assert sorted(kept) == sorted(given)
    with running(study.path, log) as (_, address), browser(address, token) as client:
        assert "Pair 5 of 6" in client.get("/rate").text
    assert len(votes(study)) == 8


@pytest.mark.slow
def test_it_stops_in_good_order_and_its_log_holds_no_secret(study: Study, tmp_path: Path) -> None:
    tokens, log = [*invite(study), organiser(study)], tmp_path / "log"
    wrong = secrets.token_urlsafe(24)
    with running(study.path, log) as (server, address):
        for token in tuple(tokens):
            with browser(address, token) as client:
                reply = client.get("/nothing")
                tokens.append(client.cookies["study"])
                assert "server" not in reply.headers
        httpx.get(f"{address}/enter/{wrong}", timeout=60)
        server.send_signal(signal.SIGTERM)
        said = server.stdout.read() if server.stdout else ""
        assert server.wait(60) == 0
    assert "every answer is kept" in said
    assert log.read_text() == ""
    assert not any(token in said for token in (*tokens, wrong))


def test_a_port_in_use_is_said_in_one_line(study: Study) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port \d+ cannot be served at: Address already in use"):
            serve(study, "127.0.0.1", taken.getsockname()[1], None)


def test_an_address_of_nobody_is_said_in_one_line(study: Study) -> None:
    with pytest.raises(UserError, match="cannot be served at"):
        serve(study, "192.0.2.1", 0, None)


def test_it_is_reached_from_this_machine_alone_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    hosting = hosting_of("127.0.0.1", None)
    assert hosting.hosts == {"localhost", "127.0.0.1", "::1"}
    assert not hosting.secure
    assert capsys.readouterr().err == ""
    assert hosting_of("0.0.0.0", None).hosts is None
    assert "warning: 0.0.0.0 can be reached from other machines" in capsys.readouterr().err


def test_behind_a_proxy_the_public_name_is_known_and_the_cookie_is_secure() -> None:
    hosting = hosting_of("127.0.0.1", "https://study.example.org")
    assert hosting.hosts is not None
    assert "study.example.org" in hosting.hosts
    assert hosting.secure
    for wrong in ("study.example.org", "ftp://x.org", "https://x.org/inner", "https://"):
        with pytest.raises(UserError, match="--public-url"):
            hosting_of("127.0.0.1", wrong)


def test_local_addresses_are_told_from_open_ones() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_a_damaged_or_foreign_database_is_said_in_one_line(study: Study, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="there is no study at"):
        open_study(tmp_path / "other")
    (tmp_path / "other" / "study.sqlite").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        open_study(tmp_path / "other")
    with study.writing() as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="layout 99"):
        open_study(study.path)


def test_the_settings_that_keep_votes_are_on(study: Study) -> None:
    with study.writing() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        schema = " ".join(row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE name = 'votes'"))
    assert re.search(r"PRIMARY KEY \(rater, pair, question\)", schema)
