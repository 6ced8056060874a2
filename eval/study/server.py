"""Running the study's web server: on this machine alone unless told otherwise, without a log of what is asked for."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from urllib.parse import urlsplit

import uvicorn

from common.errors import UserError
from eval.study.app import create_app
from eval.study.database import Study
from eval.study.security import Hosting

# More at once than a study has raters is an attack or a fault.
MOST_CONNECTIONS = 512
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(study: Study, host: str, port: int, public_url: str | None) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are answered first.

    Args:
        study: what to serve.
        host: address to bind to.
        port: 0 takes any that is free.
        public_url: address under which a reverse proxy on this machine publishes the server.

    Raises:
        UserError: the address cannot be bound to, or the public address is none.
    """
    hosting = hosting_of(host, public_url)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"the study is served at http://{shown}:{listening.getsockname()[1]}; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        create_app(study, hosting),
        log_level="warning",
        access_log=False,  # a line would hold the token of a personal link
        server_header=False,
        proxy_headers=public_url is not None,
        forwarded_allow_ips="127.0.0.1,::1",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )
    logging.getLogger("mosgoat.study").setLevel(logging.WARNING)
    # uvicorn ends in good order and then raises the signal again, which must not look like a crash.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()
    print("the study has ended; every answer is kept", flush=True)


def hosting_of(host: str, public_url: str | None) -> Hosting:
    """Under which names, and how safely, a server at `host` is reached; warns of what is open.

    Raises:
        UserError: `public_url` is no address of a site.
    """
    parts = urlsplit(public_url or "")
    if public_url is not None and (
        parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")
    ):
        raise UserError(f"--public-url={public_url} must be the address of a site, such as https://study.example.org")
    names = _LOCAL_NAMES | {host.lower()} | ({parts.hostname} if parts.hostname else set())
    if is_local(host):
        return Hosting(frozenset(names), parts.scheme == "https")
    print(
        f"warning: {host} can be reached from other machines, and without a proxy the links travel unencrypted; "
        "docs/study.md tells of safer ways",
        file=sys.stderr,
    )
    anywhere = host in ("0.0.0.0", "::") and public_url is None
    return Hosting(None if anywhere else frozenset(names), parts.scheme == "https")


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port} must be between 0 and 65535")  # else another one is taken in silence
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # from here on nobody is refused, though the application starts a moment later
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be served at: {getattr(error, 'strerror', None) or error}; choose "
            "another --port, or stop what uses this one"
        ) from None
    return listening
