"""The pages as a rater and an organiser use them, and that no page tells a method."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import threading
from pathlib import Path

import pytest

from eval.study.database import Study
from tests.eval.study.world import METHODS, answer, client_of, enter, fields, invite, make_study, organiser, send, votes


def test_a_link_leads_to_the_study_and_out_of_the_address_bar(study: Study) -> None:
    (token,) = invite(study)
    client = client_of(study)
    reply = client.get(f"/enter/{token}")
    assert (reply.status_code, reply.headers["location"]) == (303, "/welcome")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert token not in cookie
    assert "6 pairs of pictures" in client.get("/welcome").text


def test_a_rater_answers_everything_in_order_and_is_thanked(study: Study) -> None:
    client = enter(study, invite(study)[0])
    for number in range(1, 7):
        assert f"Pair {number} of 6" in client.get("/rate").text
        assert answer(client) == 303
    assert client.get("/rate").headers["location"] == "/thanks"
    assert "All 6 pairs" in client.get("/thanks").text
    assert len(votes(study)) == 12


def test_no_page_picture_or_header_tells_a_method(study: Study) -> None:
    client = enter(study, invite(study)[0])
    seen: list[str] = []
    for _ in range(6):
        page = client.get("/rate")
        replies = [page, *(client.get(path) for path in re.findall(r'src="(/picture/\w+)"', page.text))]
        assert len(replies) == 1 + 3 + 2
        for reply in replies:
            seen += [f"{reply.headers} {reply.url}", reply.content.decode("latin-1")]
            assert "etag" not in reply.headers
            assert "last-modified" not in reply.headers
        left, right = replies[-2:]
        assert left.headers["content-length"] == right.headers["content-length"]
        answer(client)
    seen += [client.get(path).text for path in ("/welcome", "/thanks", "/last")]
    for word in (*METHODS, "adapter", "secret", "veiled", "ikat", "dog6"):
        assert not any(word.lower() in text.lower() for text in seen), word


def test_first_and_second_method_stand_on_either_side_and_votes_go_to_the_method(study: Study) -> None:
    client = enter(study, invite(study)[0])
    for _ in range(6):
        answer(client, "left", "right")
    with study.reading() as db:
        rows = db.execute("SELECT swapped, question, result FROM votes JOIN tasks USING (rater, pair)").fetchall()
    assert sorted(row["swapped"] for row in rows) == [0] * 6 + [1] * 6
    for row in rows:
        chose_left = row["question"] == "subject_similarity"
        assert row["result"] == ("first" if chose_left != bool(row["swapped"]) else "second")


def test_what_is_on_the_left_is_the_picture_that_the_vote_counts_for(study: Study) -> None:
    client = enter(study, invite(study)[0])
    for _ in range(6):
        page = client.get("/rate").text
        left = re.findall(r'<figure>\s*<a href="/picture/(\w+)"', page)[0]
        task = fields(page)["task"]
        answer(client, "left", "tie")
        with study.reading() as db:
            row = db.execute(
                "SELECT result, first_picture, second_picture FROM votes JOIN tasks USING (rater, pair) "
                "JOIN pairs ON pairs.id = votes.pair WHERE tasks.id = ? AND question = 'subject_similarity'",
                (task,),
            ).fetchone()
        assert row[f"{row['result']}_picture"] == left


def test_a_rater_resumes_where_they_stopped_on_another_device(study: Study) -> None:
    (token,) = invite(study)
    client = enter(study, token)
    for _ in range(4):
        answer(client)
    other = enter(study, token)
    assert "Go on with pair 5 of 6" in other.get("/welcome").text
    assert fields(other.get("/rate").text)["task"] == fields(client.get("/rate").text)["task"]


def test_the_last_answer_can_be_changed_and_counts_once(study: Study) -> None:
    client = enter(study, invite(study)[0])
    answer(client, "left", "left")
    answer(client, "left", "left")
    before = votes(study)
    page = client.get("/last").text
    assert "changing your answer" in page
    assert page.count("checked") == 2
    assert send(client, fields(page), "tie", "left") == 303
    after = votes(study)
    assert len(after) == len(before) == 4
    assert sorted(after) != sorted(before)
    assert "Pair 3 of 6" in client.get("/rate").text


def test_an_answer_that_was_changed_at_the_very_end_counts(study: Study) -> None:
    client = enter(study, invite(study)[0])
    for _ in range(6):
        answer(client, "left", "left")
    assert send(client, fields(client.get("/last").text), "tie", "tie") == 303
    assert [result for _, result in votes(study)].count("tie") == 2


def test_a_pair_needs_all_answers_and_keeps_the_one_given(study: Study) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)
    reply = client.post("/rate", data=form | {"subject_similarity": "right"})
    assert reply.status_code == 422
    assert "Please answer both questions" in reply.text
    assert re.findall(r'value="(\w+)" required data-key="\d"\s+checked', reply.text) == ["right"]
    assert not votes(study)


def test_the_same_form_twice_counts_once(study: Study) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)
    assert [send(client, form) for _ in range(3)] == [303, 303, 303]
    assert len(votes(study)) == 2
    assert "Pair 2 of 6" in client.get("/rate").text


def test_a_second_window_does_not_overwrite_the_first(study: Study) -> None:
    client = enter(study, invite(study)[0])
    first, second = fields(client.get("/rate").text), fields(client.get("/rate").text)
    assert send(client, first, "left", "left") == 303
    before = votes(study)
    assert send(client, second, "right", "right") == 409
    assert votes(study) == before


def test_thirty_threads_with_one_form_count_once(study: Study) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda side=side: statuses.append(send(client, form, side, side)))
        for side in ("left", "tie", "right") * 10
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One side came first; the nine others with the same side are the same answer again.
    assert sorted(statuses) == [303] * 10 + [409] * 20
    assert len(votes(study)) == 2
    with study.reading() as db:
        assert {row["revision"] for row in db.execute("SELECT revision FROM votes")} == {1}


def test_raters_do_not_wait_for_each_others_answers(study: Study) -> None:
    tokens = invite(study, 8)

    def rate(token: str) -> None:
        client = enter(study, token)
        for _ in range(6):
            assert answer(client) == 303

    threads = [threading.Thread(target=rate, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(votes(study)) == 8 * 6 * 2


def test_an_answer_that_cannot_be_written_is_not_said_to_be_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    client = enter(study, invite(study)[0])
    form = fields(client.get("/rate").text)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("eval.study.rating.record", full)
    reply = client.post("/rate", data=form | {"subject_similarity": "tie", "prompt_consistency": "tie"})
    assert reply.status_code == 503
    assert "was not kept" in reply.text


def test_the_organiser_sees_live_results_and_files(study: Study) -> None:
    rater, boss = enter(study, invite(study)[0]), enter(study, organiser(study))
    assert "Nobody has voted yet" in boss.get("/results").text
    for _ in range(6):
        answer(rater, "tie", "left")
    page = boss.get("/results").text
    assert f"{METHODS[0]} against {METHODS[1]}: subject similarity" in page
    assert "100.0" in page
    content = json.loads(boss.get("/results.json").text)
    assert content["metrics"]["subject_similarity/tie"] == 1.0
    lines = list(csv.DictReader(io.StringIO(boss.get("/votes.csv").text)))
    assert len(lines) == 12
    assert {line["rater"] for line in lines} == {"rater 01"}


def test_raters_do_not_see_results_and_organisers_do_not_vote(study: Study) -> None:
    rater, boss = enter(study, invite(study)[0]), enter(study, organiser(study))
    for path in ("/results", "/results.json", "/votes.csv"):
        assert rater.get(path).status_code == 401
        assert client_of(study).get(path).status_code == 401
    for path in ("/rate", "/last", "/welcome", "/thanks"):
        assert boss.get(path).status_code == 401
    assert boss.get("/").headers["location"] == "/results"


def test_pages_are_labelled_for_those_who_do_not_see_them(study: Study) -> None:
    page = enter(study, invite(study)[0]).get("/rate").text
    assert '<html lang="en">' in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 5
    assert all(re.search(r'alt="\w[^"]+"', image) for image in images)
    assert page.count("<legend>") == page.count("<fieldset") == 2
    assert page.count('type="radio"') == page.count("<label>") == 6
    assert not re.search(r"<script>|<style>|\son\w+=|\sstyle=", page)  # the content policy allows none of them


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    study, _ = make_study(tmp_path, methods=(evil.replace("/", "|"), "b"))
    page = enter(study, organiser(study)).get("/results").text
    assert "<script>" not in page
