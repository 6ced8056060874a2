"""What stands between the network and the study: hosts, rates, sizes, headers, sessions and the proof of a form."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eval.study.database import now
from eval.study.inviting import token_hash

# Everything a page needs comes from here; no script or style stands in a page itself.
CONTENT_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# A picture alone in a window: the browser's own viewer styles it from within.
PICTURE_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex, nofollow",
}
# The longest form has three short fields; what is larger is no form of ours.
MOST_BODY_BYTES = 4096
# A browser forgets the cookie at its end, and the database the session at the next opening.
SESSION_DAYS = 60
# Each opening of a link is a session (another device, a link preview); the oldest end first.
MOST_SESSIONS = 20


@dataclass(frozen=True)
class Limits:
    """How much one caller may ask for: requests a second in the long run, and at once.

    A rater needs about ten requests a pair. Many raters may share one address (an office, an SSH tunnel), hence its
    larger numbers.

    Args:
        session: (a second, at once) for one cookie.
        address: the same for one IPv4 address or IPv6 /64 network.
        wrong_links: the same for links that do not exist, by address.
    """

    session: tuple[float, int] = (20.0, 120)
    address: tuple[float, int] = (100.0, 600)
    wrong_links: tuple[float, int] = (0.2, 10)


@dataclass(frozen=True)
class Hosting:
    """How the study is reached.

    Args:
        hosts: names under which it may be asked for; None: any.
        secure: it is reached by https, so that the cookie never travels in the open.
        limits: see `Limits`.
    """

    hosts: frozenset[str] | None = frozenset({"localhost", "127.0.0.1", "::1"})
    secure: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def cookie(self) -> str:
        """The session cookie's name; with the prefix no other host and no unencrypted page can set it."""
        return "__Host-study" if self.secure else "study"


@dataclass
class Buckets:
    """Token buckets by caller, the least recently seen forgotten beyond a number.

    Args:
        rate: what a bucket gains in a second.
        size: what it holds.
        most: callers to remember.
        clock: seconds, monotonic.
    """

    rate: float
    size: int
    most: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, caller: str) -> bool:
        """Whether the caller may go on."""
        moment = self.clock()
        level, seen = self._levels.pop(caller, (float(self.size), moment))
        level = min(float(self.size), level + (moment - seen) * self.rate)
        allowed = level >= 1
        self._levels[caller] = (level - allowed, moment)
        while len(self._levels) > self.most:
            self._levels.popitem(last=False)
        return allowed


def address_of(scope: Scope) -> str:
    """The caller's address; of IPv6 the network, in which one caller has 2⁶⁴ addresses."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address) or address.ipv4_mapped is not None:
        return str(getattr(address, "ipv4_mapped", None) or address)
    return str(ipaddress.ip_network((address, 64), strict=False))


@dataclass
class Guard:
    """The outermost layer of the application.

    Args:
        app: what it guards.
        hosts: names under which the study may be asked for; None: any (a rebound name gets no further than the token).
        limits: see `Limits`.
        cookie: name of the session's cookie.
    """

    app: ASGIApp
    hosts: frozenset[str] | None
    limits: Limits
    cookie: str

    def __post_init__(self) -> None:
        self._addresses = Buckets(*self.limits.address)
        self._sessions = Buckets(*self.limits.session)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            assert scope["type"] == "lifespan", scope["type"]  # there are no web sockets
            await self.app(scope, receive, send)
            return
        guarded = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is None:
            await self._answer(scope, receive, guarded)
        else:
            await refusal(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and _host_name(headers.get("host", "")) not in self.hosts:
            return PlainTextResponse("This server is not known under that name.", 421)
        session = _cookie(headers.get("cookie", ""), self.cookie)
        allowed = self._addresses.take(address_of(scope))
        # The hash, so that a bucket's name is short whatever is sent.
        if allowed and session:
            allowed = self._sessions.take(token_hash(session))
        if not allowed:
            return PlainTextResponse("Too many requests; please wait a moment.", 429, {"Retry-After": "5"})
        if not headers.get("content-length", "0").isdecimal():
            return PlainTextResponse("The length of the request is no number.", 400)
        if int(headers.get("content-length", "0")[:12]) > MOST_BODY_BYTES:
            return PlainTextResponse("The request is too large.", 413)
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        if body is None:
            await PlainTextResponse("The request is too large.", 413)(scope, receive, send)
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None if it is larger than a form, whatever its header said."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def _host_name(host: str) -> str:
    """`example.org:8000` -> `example.org`, `[::1]:8000` -> `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _cookie(header: str, name: str) -> str:
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


@dataclass(frozen=True)
class Person:
    """Somebody who came by a personal link.

    Args:
        id: number in the database.
        name: such as `rater 03`.
        role: `rater` or `organiser`.
        secret: of the session, from the cookie.
    """

    id: int
    name: str
    role: str
    secret: str

    @property
    def proof(self) -> str:
        """What a form of this session holds and no other site can know."""
        return hmac.new(self.secret.encode(), b"form", "sha256").hexdigest()

    def has_proof(self, given: str) -> bool:
        """Whether a form is of this session."""
        return hmac.compare_digest(self.proof.encode(), given.encode())


def is_invited(db: sqlite3.Connection, token: str) -> bool:
    """Whether a link is valid; a guess costs a look-up and never the lock that answers need."""
    row = db.execute(
        "SELECT 1 FROM people WHERE token_hash = ? AND revoked_at IS NULL", (token_hash(token),)
    ).fetchone()
    return row is not None


def open_session(db: sqlite3.Connection, token: str) -> Person | None:
    """Exchange a link's token for a session; None for a token that is not valid (any more)."""
    row = db.execute(
        "SELECT id, name, role FROM people WHERE token_hash = ? AND revoked_at IS NULL", (token_hash(token),)
    ).fetchone()
    if row is None:
        return None
    secret = secrets.token_urlsafe(24)
    db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (token_hash(secret), row["id"], now()))
    db.execute("DELETE FROM sessions WHERE datetime(opened_at) < datetime('now', ?)", (f"-{SESSION_DAYS} days",))
    db.execute(
        "DELETE FROM sessions WHERE person = ? AND secret_hash NOT IN (SELECT secret_hash FROM sessions "
        "WHERE person = ? ORDER BY opened_at DESC, secret_hash = ? DESC LIMIT ?)",
        (row["id"], row["id"], token_hash(secret), MOST_SESSIONS),
    )
    return Person(row["id"], row["name"], row["role"], secret)


def person_of(db: sqlite3.Connection, secret: str) -> Person | None:
    """Whose session this is; None if it has ended or never began."""
    row = db.execute(
        "SELECT people.id, name, role FROM sessions JOIN people ON people.id = person "
        "WHERE secret_hash = ? AND revoked_at IS NULL",
        (token_hash(secret),),
    ).fetchone()
    return None if row is None else Person(row["id"], row["name"], row["role"], secret)


def is_from_here(headers: Headers) -> bool:
    """Whether nothing in a request says that another site's page has sent it.

    `Origin` says nothing here: with `Referrer-Policy: no-referrer` it is `null` for our own forms too. `Sec-Fetch-Site`
    is what browsers say since 2023; the proof in the form does not depend on it.
    """
    return headers.get("sec-fetch-site", "same-origin") == "same-origin"
