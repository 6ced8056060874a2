"""A judge for tests: a local server that speaks OpenAI's chat protocol and does as it is told, errors included."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef"
MODEL = "stub-judge"
# status, body: a text is the judge's answer, anything else the JSON of the response as it stands
Reply = tuple[int, Any]


@dataclass
class Stub:
    """The server's behaviour and what it has seen.

    Args:
        reply: prompt, temperature -> what comes back.
        url: base of the endpoint.
        asked: every prompt but the probe's, with its temperature.
        requests: how many came, the probe's and refused ones among them.
    """

    reply: Callable[[str, float], Reply]
    url: str = ""
    asked: list[tuple[str, float]] = field(default_factory=list)
    requests: int = 0
    delay: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def stub_judge(reply: Callable[[str, float], Reply | str]) -> Iterator[Stub]:
    """Serve until the block ends; the probe is always answered, unless `reply` says otherwise for it."""

    def full(prompt: str, temperature: float) -> Reply:
        found = reply(prompt, temperature)
        return (200, found) if isinstance(found, str) else found

    stub = Stub(full)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, temperature = body["messages"][-1]["content"], body["temperature"]
            with stub.lock:
                stub.requests += 1
            time.sleep(stub.delay)
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                given = self.headers.get("Authorization", "")
                self._send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            elif body["model"] != MODEL:
                self._send(404, {"error": {"message": f"The model {body['model']} does not exist"}})
            else:
                if "ready" not in prompt:
                    with stub.lock:
                        stub.asked.append((prompt, temperature))
                self._send(*stub.reply(prompt, temperature))

        def _send(self, status: int, content: Any) -> None:
            if isinstance(content, str):
                content = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": MODEL,
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                    ],
                }
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")  # as OpenAI does; else the client waits for seconds
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
