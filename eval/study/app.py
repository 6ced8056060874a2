"""The study's web application: raters answer, the organiser watches.

Every page is made here out of the templates in `pages/` and works without JavaScript. A personal link
`/enter/TOKEN` sets a cookie and leads away from itself, so that the token stays in no address bar and reaches no
other site. What a request names (a task, a picture) is looked up in the database, never in a folder.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from eval.study import rating
from eval.study.database import Study, fact
from eval.study.export import results_json, votes_csv
from eval.study.questions import SIDES, Side
from eval.study.results import count
from eval.study.security import (
    PICTURE_POLICY,
    SESSION_DAYS,
    Buckets,
    Guard,
    Hosting,
    Person,
    address_of,
    is_from_here,
    is_invited,
    open_session,
    person_of,
)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,64}")
_PICTURE = re.compile(r"[0-9a-f]{32}")
_LOG = logging.getLogger("mosgoat.study")
# status: heading and advice; others get those of 400
_EXPLAINED = {
    400: ("This cannot be read", "The request was not complete. Go back and try again."),
    401: ("Please open your personal link", "You were sent a link of your own. It opens the study where you stopped."),
    403: (
        "This page is out of date",
        "It belongs to another visit. Nothing was changed; open your personal link again.",
    ),
    404: ("There is nothing here", "Check the address, or open your personal link again."),
    409: (
        "This pair has an answer already",
        "It was given in another window, or the pair lies further back than the last one. Nothing was changed.",
    ),
    429: ("A moment, please", "Too many wrong links came from your address. Try again in a minute."),
    503: ("Your answer was not kept", "The study could not write it down. Go back and send it again in a moment."),
}


def create_app(study: Study, hosting: Hosting | None = None) -> Guard:
    """The application for an ASGI server.

    Args:
        study: whose pictures and answers.
        hosting: how it is reached; by default on this machine alone.
    """
    hosting = hosting or Hosting()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    desk = Desk(study, hosting)
    pages: dict[str, Callable[..., Response]] = {
        "/": desk.front,
        "/enter/{token}": desk.enter,
        "/welcome": desk.welcome,
        "/rate": desk.ask,
        "/last": desk.ask_again,
        "/thanks": desk.thanks,
        "/picture/{identifier}": desk.picture,
        "/results": desk.results,
        "/results.json": desk.results_as_json,
        "/votes.csv": desk.votes_as_csv,
        "/study.css": style_sheet,
        "/study.js": script,
        "/icon.svg": icon,
        "/favicon.ico": icon,
    }
    for path, page in pages.items():
        app.add_api_route(path, page, methods=["GET"], response_model=None)
    app.add_api_route("/rate", desk.answer, methods=["POST"], response_model=None)
    app.add_exception_handler(AnyHTTPException, desk.explain)
    app.add_exception_handler(sqlite3.OperationalError, desk.explain)
    return Guard(app, hosting.hosts, hosting.limits, hosting.cookie)


def style_sheet() -> Response:
    """How the pages look."""
    return _shipped("study.css", "text/css; charset=utf-8")


def script() -> Response:
    """Keyboard and preloading; the pages work without."""
    return _shipped("study.js", "text/javascript; charset=utf-8")


def icon() -> Response:
    """The tab's picture."""
    return _shipped("icon.svg", "image/svg+xml")


def _shipped(name: str, kind: str) -> Response:
    content = (files("eval.study") / "pages" / name).read_bytes()
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=300"})


async def form_fields(request: Request) -> dict[str, str]:
    """The fields of a form; files are refused."""
    form = await request.form(max_files=0, max_fields=16)
    return {name: value for name, value in form.items() if isinstance(value, str)}


class Desk:
    """The pages.

    Endpoints are plain functions, which the server runs in threads, so that one who waits for the disk delays nobody.

    Args:
        study: whose pages.
        hosting: how it is reached.
    """

    def __init__(self, study: Study, hosting: Hosting) -> None:
        self._study, self._hosting = study, hosting
        self._wrong_links = Buckets(*hosting.limits.wrong_links)
        self._pages = Environment(
            loader=PackageLoader("eval.study", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        with study.reading() as db:
            self._pages.globals["title"] = fact(db, "title")

    def front(self, request: Request) -> Response:
        """Without a link there is nothing to see."""
        with self._study.reading() as db:
            person = self._person(db, request)
        if person is None:
            raise HTTPException(401)
        return RedirectResponse("/results" if person.role == "organiser" else "/welcome", 303)

    def enter(self, token: str, request: Request) -> Response:
        """A personal link: begin a session and lead on."""
        person = None
        with self._study.reading() as db:
            known = _TOKEN.fullmatch(token) and is_invited(db, token)
        if known:
            with self._study.writing() as db:
                person = open_session(db, token)
        if person is None:
            # A right link always opens: raters may share an address with somebody who guesses.
            raise HTTPException(401 if self._wrong_links.take(address_of(request.scope)) else 429)
        response = RedirectResponse("/results" if person.role == "organiser" else "/welcome", 303)
        # Lax: the link comes from a mail or a chat, and a strict cookie would not survive the way on.
        response.set_cookie(
            self._hosting.cookie,
            person.secret,
            max_age=SESSION_DAYS * 86400,
            secure=self._hosting.secure,
            httponly=True,
            samesite="lax",
        )
        return response

    def welcome(self, request: Request) -> Response:
        """What the study asks of a rater."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            state, asked = rating.progress(db, person.id), rating.questions(db)
        return self._page("welcome.html", progress=state, questions=asked)

    def ask(self, request: Request) -> Response:
        """The next pair."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            state = rating.progress(db, person.id)
            if state.is_done:
                return RedirectResponse("/thanks", 303)
            return self._rate_page(db, person, state, state.answered)

    def ask_again(self, request: Request) -> Response:
        """The pair that was answered last, to change the answer."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            state = rating.progress(db, person.id)
            if state.answered == 0:
                return RedirectResponse("/rate", 303)
            return self._rate_page(db, person, state, state.answered - 1)

    def answer(self, request: Request, fields: Annotated[dict[str, str], Depends(form_fields)]) -> Response:
        """A rater's form."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            asked = rating.questions(db)
        if not is_from_here(request.headers) or not person.has_proof(fields.get("proof", "")):
            raise HTTPException(403)
        given = {question.key: fields.get(question.key, "") for question in asked}
        if not re.fullmatch(r"\d{1,6}", fields.get("revision", "")) or set(given.values()) - {*SIDES, ""}:
            raise HTTPException(400)
        answers = {key: cast(Side, side) for key, side in given.items() if side}
        if len(answers) < len(asked):
            return self._incomplete(request, fields.get("task", ""), answers)
        try:
            with self._study.writing() as db:
                rating.record(db, person.id, fields.get("task", ""), answers, int(fields["revision"]))
                done = rating.progress(db, person.id).is_done
        except rating.UnknownTask:
            raise HTTPException(404) from None
        except rating.StaleAnswer:
            raise HTTPException(409) from None
        return RedirectResponse("/thanks" if done else "/rate", 303)

    def _incomplete(self, request: Request, task: str, answers: Mapping[str, Side]) -> Response:
        """The same pair again, with what was answered of it."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            state = rating.progress(db, person.id)
            for position in (state.answered, state.answered - 1):
                shown = rating.task_at(db, person.id, position)
                if shown is not None and shown.id == task:
                    return self._rate_page(db, person, state, position, answers)
        raise HTTPException(409)

    def thanks(self, request: Request) -> Response:
        """The end, if it is."""
        with self._study.reading() as db:
            person = self._rater(db, request)
            state = rating.progress(db, person.id)
        return self._page("thanks.html", progress=state) if state.is_done else RedirectResponse("/rate", 303)

    def picture(self, identifier: str, request: Request) -> Response:
        """A picture by its id, for whoever takes part."""
        with self._study.reading() as db:
            if self._person(db, request) is None:
                raise HTTPException(401)
            row = None
            if _PICTURE.fullmatch(identifier):
                row = db.execute("SELECT id, media_type FROM pictures WHERE id = ?", (identifier,)).fetchone()
        if row is None:
            raise HTTPException(404)
        content = self._study.picture_file(row["id"]).read_bytes()
        # Kept by the browser, so that the next pair is there at once; no date and no tag that could tell two apart.
        headers = {"Cache-Control": "private, max-age=86400", "Content-Security-Policy": PICTURE_POLICY}
        return Response(content, media_type=row["media_type"], headers=headers)

    def results(self, request: Request) -> Response:
        """The organiser's page."""
        with self._study.reading() as db:
            self._organiser(db, request)
            counted = count(db)
        return self._page("results.html", results=counted)

    def results_as_json(self, request: Request) -> Response:
        """`results.json`, as `mosgoat eval study results` writes it."""
        with self._study.reading() as db:
            self._organiser(db, request)
            content = results_json(count(db))
        return _download(content, "application/json", "results.json")

    def votes_as_csv(self, request: Request) -> Response:
        """Every vote, as `mosgoat eval study results` writes them."""
        with self._study.reading() as db:
            self._organiser(db, request)
            content = votes_csv(db)
        return _download(content, "text/csv; charset=utf-8", "votes.csv")

    def explain(self, request: Request, error: Exception) -> Response:
        """A refusal as a page."""
        status, headers = 503, None
        if isinstance(error, AnyHTTPException):
            status, headers = error.status_code, error.headers
        else:
            _LOG.error("the database cannot be used: %s", error)
        heading, advice = _EXPLAINED.get(404 if status == 405 else status, _EXPLAINED[400])
        response = self._page("message.html", status, heading=heading, advice=advice, code=status)
        response.headers.update(headers or {})
        return response

    def _person(self, db: sqlite3.Connection, request: Request) -> Person | None:
        secret = request.cookies.get(self._hosting.cookie, "")
        return person_of(db, secret) if _TOKEN.fullmatch(secret) else None

    def _rater(self, db: sqlite3.Connection, request: Request) -> Person:
        return self._must_be("rater", self._person(db, request))

    def _organiser(self, db: sqlite3.Connection, request: Request) -> Person:
        return self._must_be("organiser", self._person(db, request))

    def _must_be(self, role: str, person: Person | None) -> Person:
        if person is None or person.role != role:
            raise HTTPException(401)
        return person

    def _rate_page(
        self,
        db: sqlite3.Connection,
        person: Person,
        state: rating.Progress,
        position: int,
        chosen: Mapping[str, Side] | None = None,
    ) -> Response:
        task, following = rating.task_at(db, person.id, position), rating.task_at(db, person.id, position + 1)
        assert task is not None, position
        return self._page(
            "rate.html",
            200 if chosen is None else 422,
            task=task,
            ahead=[] if following is None else [following.left, following.right, *(r[0] for r in following.references)],
            progress=state,
            questions=rating.questions(db),
            chosen=task.answers if chosen is None else chosen,
            is_incomplete=chosen is not None,
            proof=person.proof,
        )

    def _page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._pages.get_template(template).render(**values), status)


def _download(content: str, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
