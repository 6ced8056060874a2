"""The judge's client against a local server that plays the judge over HTTP."""

from __future__ import annotations

import argparse
import builtins
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import read_json_lines
from eval.vlm.judge import ATTEMPTS, Judge, add_judge_options, judge_of, open_judge
from tests.eval.vlm.judge_server import KEY, MODEL, stub_judge


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def options_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_judge_options(parser)
    return parser.parse_args(words)


def opened(url: str, folder: Path, model: str = MODEL, **more: str) -> Judge | None:
    words = ["--judge-url", url, "--judge-model", model, "--judge-key-env", "STUB_KEY"]
    return judge_of(options_of(*words, *(word for pair in more.items() for word in pair)), folder)


def judge_at(url: str, folder: Path, workers: int = 4, timeout: float = 10) -> Judge:
    return open_judge(MODEL, url, folder / "judge.jsonl", "STUB_KEY", workers, timeout)


def as_text(text: str) -> str | None:
    return text or None


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def test_answers_come_back_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, temperature: f"to {prompt}") as stub:
        verdicts = judge_at(stub.url, tmp_path).ask([f"p{i}" for i in range(20)], as_text, label="x")
    assert [verdict.value for verdict in verdicts] == [f"to p{i}" for i in range(20)]
    assert {temperature for _, temperature in stub.asked} == {0.0}


def test_equal_prompts_are_asked_once(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, temperature: "1") as stub:
        verdicts = judge_at(stub.url, tmp_path).ask(["same"] * 5, as_number, label="x")
    assert [verdict.value for verdict in verdicts] == [1.0] * 5
    assert len(stub.asked) == 1


def test_a_judging_that_stopped_goes_on_without_asking_again(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(12)]
    with stub_judge(lambda prompt, _: (500, {}) if prompt == "p7" else prompt) as stub:
        with pytest.raises(UserError, match=r"failed.*kept in .*judge\.jsonl"):
            judge_at(stub.url, tmp_path, workers=1).ask(prompts, as_text, label="x")
        kept = len(read_json_lines(tmp_path / "judge.jsonl"))
        assert 7 <= kept < 12
        stub.reply = lambda prompt, _: (200, prompt)
        stub.asked.clear()
        verdicts = judge_at(stub.url, tmp_path).ask(prompts, as_text, label="x")
        assert [verdict.value for verdict in verdicts] == prompts
        assert len(stub.asked) == 12 - kept


def test_a_torn_line_of_the_cache_is_asked_again(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: prompt) as stub:
        judge_at(stub.url, tmp_path, workers=1).ask(["a", "b"], as_text, label="x")
        cache = tmp_path / "judge.jsonl"
        cache.write_bytes(cache.read_bytes()[:-9])
        stub.asked.clear()
        verdicts = judge_at(stub.url, tmp_path).ask(["a", "b"], as_text, label="x")
    assert [verdict.value for verdict in verdicts] == ["a", "b"]
    assert stub.asked == [("b", 0.0)]


def test_another_model_or_endpoint_never_gets_old_answers(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "old") as first, stub_judge(lambda prompt, _: "new") as second:
        judge_at(first.url, tmp_path).ask(["p"], as_text, label="x")
        assert judge_at(second.url, tmp_path).ask(["p"], as_text, label="x")[0].value == "new"


def test_busy_and_broken_moments_are_tried_again(tmp_path: Path) -> None:
    failures = iter([(429, {"error": {"message": "slow down"}}), (500, {}), (503, {})])
    with stub_judge(lambda prompt, _: next(failures, "fine") if "ready" not in prompt else "ready") as stub:
        verdicts = judge_at(stub.url, tmp_path, workers=1).ask(["p"], as_text, label="x")
    assert verdicts[0].value == "fine"


def test_an_answer_that_cannot_be_read_is_asked_again_hotter(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, temperature: "0.5" if temperature >= 1 else "about half") as stub:
        judge = judge_at(stub.url, tmp_path)
        verdicts = judge.ask(["p"], as_number, label="x")
        assert verdicts[0].value == 0.5
        assert stub.asked == [("p", 0.0), ("p", 0.5), ("p", 1.0)]
        stub.asked.clear()
        assert judge.ask(["p"], as_number, label="x") == verdicts
        assert stub.asked == []


def test_an_answer_that_is_never_readable_has_no_value(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "hard to say") as stub:
        verdict = judge_at(stub.url, tmp_path).ask(["p"], as_number, label="x")[0]
        assert verdict.value is None
        assert verdict.text == "hard to say"
        assert len(stub.asked) == ATTEMPTS


def test_one_refused_question_does_not_end_the_judging_and_is_not_kept(tmp_path: Path) -> None:
    def reply(prompt: str, _: float) -> Any:
        return (400, {"error": {"message": "content filter"}}) if prompt == "bad" else prompt

    with stub_judge(reply) as stub:
        good, bad = judge_at(stub.url, tmp_path).ask(["good", "bad"], as_text, label="x")
    assert good.value == "good"
    assert bad.value is None
    assert "content filter" in bad.text
    assert len(read_json_lines(tmp_path / "judge.jsonl")) == 1


@pytest.mark.parametrize(
    "body", [b"<html>proxy</html>", {"hello": 1}, {"choices": []}, {"choices": [{"message": None}]}, [], "", None]
)
def test_what_is_no_chat_completion_is_refused_at_the_probe(body: Any, tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: (200, body)) as stub, pytest.raises(UserError, match="the judge stub-judge at"):
        judge_at(stub.url, tmp_path)


def test_a_wrong_key_is_told_at_once_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-wrong-secret")
    with stub_judge(lambda prompt, _: "ready") as stub, pytest.raises(UserError) as told:
        opened(stub.url, tmp_path)
    assert "refuses the key in $STUB_KEY" in str(told.value)
    assert "sk-wrong-secret" not in str(told.value)
    assert "\n" not in str(told.value)
    assert stub.requests == 1


def test_an_unknown_model_is_told_at_once(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "ready") as stub, pytest.raises(UserError, match=r"check --judge-model"):
        opened(stub.url, tmp_path, model="stub-jugde")


def test_an_endpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="cannot be reached"):
        opened(url, tmp_path)


def test_a_judge_that_does_not_answer_in_time_is_told(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "ready") as stub:
        stub.delay = 0.3
        with pytest.raises(UserError, match="did not answer in time"):
            judge_at(stub.url, tmp_path, timeout=0.05)


def test_what_a_judge_thinks_aloud_is_left_out(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "<think>maybe 0.3?</think>\n\n0.5") as stub:
        assert judge_at(stub.url, tmp_path).ask(["p"], as_number, label="x")[0].value == 0.5


def test_a_slow_judge_is_waited_for(tmp_path: Path) -> None:
    with stub_judge(lambda prompt, _: "fine") as stub:
        stub.delay = 0.2
        assert judge_at(stub.url, tmp_path).ask(["p"], as_text, label="x")[0].value == "fine"


def test_no_option_means_no_judge(tmp_path: Path) -> None:
    assert judge_of(options_of(), tmp_path) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge-url", "http://user:secret@host:1/v1?key=secret"], "needs --judge-model"),
        (["--judge-model", "m", "--judge-url", "https://user:secret@host/v1"], "put the key into"),
        (["--judge-model", "m"], r"\$OPENAI_API_KEY is not set"),
        (["--judge-model", "m", "--judge-url", "localhost:80/v1"], "must begin with http"),
        (["--judge-model", "m", "--judge-workers", "0"], "--judge-workers=0 must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_told(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as error:
        judge_of(options_of(*words), tmp_path)
    assert "secret" not in str(error.value)


def test_without_the_package_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openai":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install -e '\.\[judge\]'"):
        judge_of(options_of("--judge-model", "m"), tmp_path)


def test_the_key_is_in_no_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with stub_judge(lambda prompt, _: "fine") as stub:
        judge = judge_at(stub.url, tmp_path)
        said += [repr(judge), str(judge.description)]
        judge.ask(["p"], as_text, label="x")
        # a server that quotes the key, in an error that ends the judging
        stub.reply = lambda prompt, _: (403, {"error": {"message": f"the key {KEY} is out of money"}})
        with pytest.raises(UserError) as told:
            judge.ask(["q"], as_text, label="x")
        said.append(str(told.value))
        assert told.value.__cause__ is None
        stub.reply = lambda prompt, _: (400, {"error": {"message": f"{KEY} may not ask this"}})
        said.append(str(judge.ask(["r"], as_text, label="x")))
    output = capfd.readouterr()
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    for text in (*said, output.out, output.err, *files, caplog.text):
        assert KEY not in text
    assert "out of money" in said[2]
