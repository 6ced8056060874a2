"""What somebody without a link, with another's link, or with bad intentions gets."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

import pytest

from eval.study.database import Study, open_study
from eval.study.security import MOST_BODY_BYTES, MOST_SESSIONS, Buckets, Hosting, Limits, address_of
from tests.eval.study.world import answer, client_of, enter, fields, invite, organiser, send, votes


@pytest.fixture(scope="module")
def base(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study for the attacks that change nothing."""
    return open_study(Path(shutil.copytree(made, tmp_path_factory.mktemp("attacked") / "study")))


@pytest.mark.parametrize(
    "path",
    [
        "/picture/../study.sqlite",
        "/picture/..%2Fstudy.sqlite",
        "/picture/%2e%2e%2fstudy.sqlite",
        "/picture/....//study.sqlite",
        "/picture/%00",
        "/picture//etc/passwd",
        "/picture/..\\study.sqlite",
        "/picture/" + "a" * 32,
        "/picture/" + "A" * 5000,
        "/study.css/../../study.sqlite",
        "/pages/rate.html",
        "/study.sqlite",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_of_a_request_reaches_a_file(base: Study, path: str) -> None:
    client = enter(base, invite(base)[0])
    reply = client.get(path)
    assert reply.status_code == 404
    assert b"SQLite" not in reply.content
    assert b"root:" not in reply.content


def test_pictures_are_for_those_who_take_part(base: Study) -> None:
    with base.reading() as db:
        picture = db.execute("SELECT id FROM pictures").fetchone()["id"]
    assert client_of(base).get(f"/picture/{picture}").status_code == 401
    assert enter(base, invite(base)[0]).get(f"/picture/{picture}").status_code == 200


@pytest.mark.parametrize("path", ["/", "/rate", "/last", "/welcome", "/thanks", "/results", "/votes.csv"])
@pytest.mark.parametrize("cookie", [None, "x" * 32, "../../etc/passwd", "' OR 1=1 --", "a" * 4000])
def test_without_a_valid_session_there_is_nothing(base: Study, path: str, cookie: str | None) -> None:
    client = client_of(base)
    headers = {} if cookie is None else {"cookie": f"study={cookie}"}
    reply = client.get(path, headers=headers)
    assert reply.status_code == 401
    assert "personal link" in reply.text


def test_a_form_of_another_site_changes_nothing(study: Study) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)
    answers = {"subject_similarity": "left", "prompt_consistency": "left"}
    without = {key: value for key, value in form.items() if key != "proof"}
    for forged in (without, without | {"proof": ""}, without | {"proof": "0" * 64}, without | {"proof": "ä" * 9}):
        assert client.post("/rate", data=forged | answers).status_code == 403
    for origin in ("cross-site", "same-site", "none"):
        headers = {"sec-fetch-site": origin}
        assert client.post("/rate", data=form | answers, headers=headers).status_code == 403
    assert not votes(study)
    assert client.post("/rate", data=form | answers, headers={"sec-fetch-site": "same-origin"}).status_code == 303


def test_the_proof_of_one_session_is_none_for_another(study: Study) -> None:
    token, other = invite(study, 2)
    mine, theirs, again = enter(study, token), enter(study, other), enter(study, token)
    form = fields(mine.get("/rate").text)
    for client in (theirs, again):
        stolen = fields(client.get("/rate").text) | {"proof": form["proof"]}
        assert send(client, stolen) == 403


def test_a_task_of_another_rater_or_of_nobody_is_refused(study: Study) -> None:
    token, other = invite(study, 2)
    mine, theirs = enter(study, token), enter(study, other)
    form = fields(mine.get("/rate").text)
    foreign = fields(theirs.get("/rate").text)["task"]
    for task in (foreign, "", "1", "0" * 16, secrets.token_urlsafe(12), "' OR '1'='1", "../1"):
        assert send(mine, form | {"task": task}) == 404
    assert not votes(study)


def test_pairs_cannot_be_answered_ahead(study: Study) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)
    with study.reading() as db:
        ahead = [row["id"] for row in db.execute("SELECT id FROM tasks WHERE position > 0")]
    for task in ahead:
        assert send(client, form | {"task": task}) == 409
    assert not votes(study)


def test_a_replayed_form_of_an_earlier_pair_changes_nothing(study: Study) -> None:
    client = enter(study, invite(study)[0])
    old = fields(client.get("/rate").text)
    send(client, old, "left", "left")
    for _ in range(2):
        answer(client)
    before = votes(study)
    for revision in ("0", "1", "2"):
        assert send(client, old | {"revision": revision}, "right", "right") == 409
    assert votes(study) == before


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "-1"},
        {"revision": "1e9"},
        {"revision": "9" * 40},
        {"revision": "٣٣٣٣٣٣٣"},
        {"subject_similarity": "first"},
        {"subject_similarity": "<script>"},
        {"prompt_consistency": "LEFT"},
    ],
)
def test_answers_that_no_form_gives_are_refused(base: Study, change: dict[str, str]) -> None:
    client = enter(base, invite(base)[0])
    form = fields(client.get("/rate").text) | {"subject_similarity": "left", "prompt_consistency": "left"}
    assert client.post("/rate", data=form | change).status_code == 400


def test_requests_that_are_too_large_are_refused_whatever_they_say(base: Study) -> None:
    client = enter(base, invite(base)[0])
    form = fields(client.get("/rate").text)
    assert client.post("/rate", data=form | {"task": "x" * MOST_BODY_BYTES}).status_code == 413

    def pieces():  # type: ignore[no-untyped-def]
        for _ in range(100):
            yield b"x" * 1000

    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/rate", content=pieces(), headers=kind).status_code == 413  # no length is told
    assert client.post("/rate", content=b"", headers=kind | {"content-length": "many"}).status_code == 400
    assert client.post("/rate", content=b"", headers=kind | {"content-length": "9" * 30}).status_code == 413


def test_files_and_json_are_no_forms(base: Study) -> None:
    client = enter(base, invite(base)[0])
    assert client.post("/rate", files={"task": ("x", b"y")}).status_code == 400
    assert client.post("/rate", json={"task": "x"}).status_code == 403
    assert client.post("/rate", data={f"f{n}": "x" for n in range(50)}).status_code in (400, 403)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(base: Study, method: str) -> None:
    assert client_of(base).request(method, "/rate").status_code in (401, 405)


def test_guessing_links_is_slowed_down_and_locks_nobody_out(base: Study) -> None:
    hosting = Hosting(limits=Limits(wrong_links=(0.001, 5)))
    client = client_of(base, hosting)
    statuses = [client.get(f"/enter/{secrets.token_urlsafe(24)}").status_code for _ in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert client.get(f"/enter/{invite(base)[0]}").status_code == 303


def test_a_flood_is_refused_and_others_go_on(base: Study) -> None:
    hosting = Hosting(limits=Limits(session=(0.001, 30)))
    client = client_of(base, hosting)
    client.get(f"/enter/{invite(base)[0]}")
    statuses = [client.get("/rate").status_code for _ in range(50)]
    assert statuses == [200] * 30 + [429] * 20
    assert client.get("/rate").headers["retry-after"] == "5"
    client.cookies.clear()
    assert client.get(f"/enter/{invite(base)[0]}").status_code == 303
    assert client.get("/rate").status_code == 200


def test_a_flood_without_a_cookie_is_refused_by_address(base: Study) -> None:
    client = client_of(base, Hosting(limits=Limits(address=(0.001, 20))))
    assert [client.get("/").status_code for _ in range(30)] == [401] * 20 + [429] * 10


def test_buckets_fill_again_and_forget_the_oldest() -> None:
    moment = [0.0]
    buckets = Buckets(1.0, 2, most=3, clock=lambda: moment[0])
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    moment[0] = 1.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for name in "bcde":
        assert buckets.take(name)
    assert len(buckets._levels) == 3  # memory is bounded whatever names come


def test_an_ipv6_network_is_one_caller() -> None:
    assert address_of({"client": ("2001:db8::1", 1)}) == address_of({"client": ("2001:db8::ffff:2", 1)})
    assert address_of({"client": ("2001:db8::1", 1)}) != address_of({"client": ("2001:db8:0:1::1", 1)})
    assert address_of({"client": ("::ffff:192.0.2.1", 1)}) != address_of({"client": ("::ffff:192.0.2.2", 1)})
    assert address_of({"client": None}) == ""


@pytest.mark.parametrize("path", ["/", "/rate", "/results", "/study.css", "/nothing"])
def test_every_reply_carries_the_security_headers(base: Study, path: str) -> None:
    headers = enter(base, invite(base)[0]).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("private, max-age=300" if path == "/study.css" else "no-store")


def test_refusals_carry_the_security_headers_too(base: Study) -> None:
    reply = client_of(base).get("/", headers={"host": "evil.example"})
    assert reply.status_code == 421  # a rebound name
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_known(base: Study, host: str) -> None:
    assert client_of(base).get("/", headers={"host": host}).status_code == 401


def test_behind_https_the_cookie_never_travels_in_the_open(base: Study) -> None:
    hosting = Hosting(frozenset({"127.0.0.1"}), secure=True)
    cookie = client_of(base, hosting).get(f"/enter/{invite(base)[0]}").headers["set-cookie"]
    assert cookie.startswith("__Host-study=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


def test_sessions_of_a_link_are_bounded_and_the_newest_stay(base: Study) -> None:
    (token,) = invite(base)
    clients = [enter(base, token, Hosting(limits=Limits(address=(1000, 1000)))) for _ in range(MOST_SESSIONS + 5)]
    assert clients[-1].get("/rate").status_code == 200
    assert sum(client.get("/rate").status_code == 200 for client in clients) == MOST_SESSIONS


def test_a_session_opened_again_does_not_take_over_the_cookie_given(base: Study) -> None:
    # Fixation: a cookie that somebody planted is never made valid.
    client = client_of(base)
    reply = client.get(f"/enter/{invite(base)[0]}", headers={"cookie": "study=" + "p" * 32})
    assert re.search(r"study=(\S{32});", reply.headers["set-cookie"])
    assert "p" * 32 not in reply.headers["set-cookie"]
    assert client_of(base).get("/rate", headers={"cookie": "study=" + "p" * 32}).status_code == 401


def test_an_organisers_link_gives_no_rater(base: Study) -> None:
    boss = enter(base, organiser(base))
    assert boss.post("/rate", data={"task": "x"}).status_code == 401
