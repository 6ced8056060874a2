"""A language model that reads free answers: any endpoint that speaks OpenAI's chat protocol.

Questions go out from several threads. Every answer is kept at once in a file of JSON lines under the hash of all that
it depends on, so that a judging that was killed goes on where it stopped. The key comes from the environment, and is
in no message and no file: what a server says is cleared of it before it is shown.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from common.cache import fingerprint_of
from common.errors import UserError
from common.files import append_json_line, read_json_lines
from common.write_errors import writing_is_explained
from eval.vlm.benchmarks import Benchmark

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
NO_JUDGE = "no judge"
WORKERS = 8
# An answer that cannot be read is asked for again so often; each time hotter, as VLMEvalKit does: at 0 it comes again.
ATTEMPTS = 5
_HEAT = 0.5
_REQUEST_RETRIES = 6
_PROBE = "Reply with the single word: ready"
_LONGEST_MESSAGE = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """What the judge said to one prompt.

    Args:
        value: as it was read from the answer; None where none of the attempts could be read.
        text: the answer itself, or why there is none.
    """

    value: T | None
    text: str


class _RefusedError(Exception):
    """One question that the endpoint will not look at, such as one that its filter takes offence at."""


@dataclass(frozen=True)
class Judge:
    """A model behind an endpoint, probed and ready.

    Args:
        model: its name there.
        url: base of the endpoint without any credentials, for reports.
        cache: file of JSON lines that keeps every answer.
        workers: questions at once.
    """

    model: str
    url: str
    cache: Path
    workers: int
    _client: OpenAI = field(repr=False)

    @property
    def description(self) -> dict[str, str]:
        """What results say about who judged."""
        return {"model": self.model, "url": self.url}

    def ask(self, prompts: Sequence[str], read: Callable[[str], T | None], *, label: str) -> list[Verdict[T]]:
        """Put prompts to the judge, those whose answers are kept already left out.

        Args:
            prompts: one message each; equal ones are asked once.
            read: what an answer says; None: nothing that can be used, ask again.
            label: in front of the progress bar.

        Returns:
            For each prompt its verdict.

        Raises:
            UserError: the endpoint failed for good, or the cache cannot be written; what was answered so far is kept.
        """
        kept = {
            str(row["key"]): str(row["answer"]) for row in read_json_lines(self.cache) if {"key", "answer"} <= {*row}
        }
        with writing_is_explained(self.cache.parent):
            self.cache.parent.mkdir(parents=True, exist_ok=True)
        found: dict[str, Verdict[T]] = {}
        pool = ThreadPoolExecutor(self.workers)
        try:
            waiting: dict[Future[Verdict[T]], str] = {}
            for prompt in dict.fromkeys(prompts):
                waiting[pool.submit(self._verdict, prompt, read, kept)] = prompt
            bar = tqdm(as_completed(waiting), label, total=len(waiting), unit=" answers", disable=None)
            for done in bar:
                found[waiting[done]] = done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # a failure: what is under way is still kept
        return [found[prompt] for prompt in prompts]

    def _verdict(self, prompt: str, read: Callable[[str], T | None], kept: Mapping[str, str]) -> Verdict[T]:
        text = ""
        for attempt in range(ATTEMPTS):
            key = fingerprint_of("judge 1", self.url, self.model, prompt, attempt)
            answer = kept.get(key)
            if answer is None:
                try:
                    answer = self._answer(prompt, attempt * _HEAT)
                except _RefusedError as refusal:
                    return Verdict(None, f"the endpoint refused the question: {refusal}")
                with writing_is_explained(self.cache.parent):
                    append_json_line(self.cache, {"key": key, "answer": answer})
            text = answer.rpartition("</think>")[2].strip()  # what a model that thinks aloud has come to
            value = read(text)
            if value is not None:
                return Verdict(value, text)
        return Verdict(None, text)

    def _answer(self, prompt: str, temperature: float) -> str:
        import openai

        try:
            return _complete(self._client, self.model, prompt, temperature)
        except openai.BadRequestError as error:
            raise _RefusedError(_said(error, self._client.api_key)) from None
        except openai.OpenAIError as error:
            raise UserError(
                f"the judge {self.model} at {self.url} failed: {_said(error, self._client.api_key)}; "
                f"its answers so far are kept in {self.cache}: the same command goes on from there"
            ) from None  # a traceback could show the request's headers


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """What names a judge on a command line."""
    group = parser.add_argument_group("judge, for MathVista and MM-Vet")
    group.add_argument(
        "--judge-model", help="name of the model that reads free answers; without one they have no score"
    )
    group.add_argument("--judge-url", help="base of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    group.add_argument(
        "--judge-key-env", default=DEFAULT_KEY_ENV, metavar="NAME", help="environment variable that holds the key"
    )
    group.add_argument("--judge-workers", type=int, default=WORKERS, help="questions put to the judge at once")


def require_judged(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> None:
    """Refuse options of a judge that none of the benchmarks asks.

    Raises:
        UserError: one is given, and would have no effect.
    """
    if any(benchmark.family == "judged" for benchmark in benchmarks):
        return
    without = {"judge_model": None, "judge_url": None, "judge_key_env": DEFAULT_KEY_ENV, "judge_workers": WORKERS}
    for key, default in without.items():
        if getattr(options, key) != default:
            names = ", ".join(benchmark.name for benchmark in benchmarks)
            raise UserError(
                f"--{key.replace('_', '-')} has no effect on {names}: only MathVista_MINI and MMVet ask a judge; leave "
                "it out"
            )


def judge_of(options: argparse.Namespace, folder: Path) -> Judge | None:
    """Open the judge that the options name, and make sure that it answers.

    Args:
        options: parsed with `add_judge_options`.
        folder: where `judge.jsonl` keeps its answers.

    Returns:
        The judge; None where no option names one.

    Raises:
        UserError: the options contradict each other, or the judge cannot be reached, refuses the key, does not know
            the model or does not answer.
    """
    if options.judge_model is None:
        if options.judge_url is not None:
            raise UserError(f"--judge-url={_shown(options.judge_url)} needs --judge-model, the model's name there")
        return None
    if options.judge_workers < 1:
        raise UserError(f"--judge-workers={options.judge_workers} must be at least 1")
    return open_judge(
        options.judge_model, options.judge_url, folder / "judge.jsonl", options.judge_key_env, options.judge_workers
    )


def open_judge(
    model: str,
    url: str | None,
    cache: Path,
    key_env: str = DEFAULT_KEY_ENV,
    workers: int = WORKERS,
    timeout: float = 120.0,
) -> Judge:
    """Open a judge and ask it for one word.

    Args:
        model: its name at the endpoint.
        url: base of the endpoint; None: `$OPENAI_BASE_URL`, else OpenAI's own.
        cache: file that keeps its answers.
        key_env: environment variable with the key; a server of one's own may need none.
        workers: questions at once.
        timeout: seconds for one answer.

    Raises:
        UserError: as `judge_of`.
    """
    try:
        import openai
    except ImportError as error:
        raise UserError("a judge needs the package openai: pip install -e '.[judge]'") from error
    key = os.environ.get(key_env, "").strip()
    base = url or os.environ.get("OPENAI_BASE_URL") or None
    if not key and base is None:
        raise UserError(f"${key_env} is not set: put the judge's key there, or name another endpoint by --judge-url")
    if base is not None and urlsplit(base).scheme not in ("http", "https"):
        raise UserError(f"--judge-url={_shown(base)} must begin with http:// or https://")
    if base is not None and "@" in urlsplit(base).netloc:
        raise UserError(f"--judge-url={_shown(base)} was given with a user or password; put the key into ${key_env}")
    client = openai.OpenAI(
        api_key=key or "none", base_url=base, max_retries=_REQUEST_RETRIES, timeout=timeout, organization=None
    )
    judge = Judge(model, _shown(str(client.base_url)), cache, workers, client)
    _probe(judge, client, key_env)
    return judge


def _probe(judge: Judge, client: OpenAI, key_env: str) -> None:
    import openai

    place = f"the judge {judge.model} at {judge.url}"
    try:
        answer = _complete(client.with_options(max_retries=2), judge.model, _PROBE, 0.0)
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        reason = f"refuses the key in ${key_env} ({_said(error, client.api_key)}); export the right one"
    except openai.NotFoundError as error:
        reason = f"is not there ({_said(error, client.api_key)}); check --judge-model and --judge-url (often .../v1)"
    except openai.APITimeoutError:
        reason = "did not answer in time; check that the server is up"
    except openai.APIConnectionError:
        reason = "cannot be reached; check --judge-url, the network, and that the server is up"
    except openai.OpenAIError as error:
        reason = f"does not work: {_said(error, client.api_key)}"
    else:
        if answer.strip():
            return
        reason = "answers with nothing; it must be a chat model"
    raise UserError(f"{place} {reason}") from None


def _complete(client: OpenAI, model: str, prompt: str, temperature: float) -> str:
    import openai

    try:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], temperature=temperature
        )
        text = answer.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError, ValueError):
        text = None  # a page of a proxy, or JSON of another protocol, with status 200
    if not isinstance(text, str):
        raise openai.OpenAIError("what came back is no chat completion")
    return text


def _said(error: Exception, key: str) -> str:
    """The server's own words on one line, short, and without the key, which some servers quote."""
    text = " ".join(str(error).split())
    if key:
        text = text.replace(key, "***")
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _shown(url: str) -> str:
    """An address without user, password and query, where keys are sometimes put."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/") if host else parts.path
