"""A proxy before an S3 server that misbehaves on purpose: the same way for the same seed and the same requests.

    with FaultProxy("http://127.0.0.1:5000", Faults(seed=1, slow_down=0.1, reset=0.05)) as proxy:
        storage = {"endpoint_url": proxy.url, "key": "k", "secret": "s"}
        ...
    assert proxy.injected["slow_down"]

What happens to a request depends on the seed, on what it asks for, and on how often that was asked for before; not on
threads or time. With rates that sum to less than 1, whoever tries again gets through.
"""

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TRICKLE_BYTES_PER_SECOND = 1024
RESET_SECONDS = 0.02
"""For the client to read what came before the reset, which takes with it what is still on the way."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'


@dataclass(frozen=True)
class Faults:
    """What goes wrong: the share of requests, where it can.

    Attributes:
        seed: of the choices.
        slow_down: 503 SlowDown, before the server hears of the request.
        internal: 500 InternalError, likewise.
        denied: 403 AccessDenied, for the first request of its kind only.
        reset: a GET's connection is reset in the middle of its body.
        trickle: a GET's body comes at 1 KB/s.
        lost_reply: a PUT or POST is done, but its connection is reset before the reply.
        stale_list: a LIST is answered as it was the last time.
        only: a pattern that the path with its query must match.
    """

    seed: int = 0
    slow_down: float = 0.0
    internal: float = 0.0
    denied: float = 0.0
    reset: float = 0.0
    trickle: float = 0.0
    lost_reply: float = 0.0
    stale_list: float = 0.0
    only: str = ""

    def choose(self, method: str, target: str, times: int) -> str | None:
        """The fault of the request `target`, asked for `times` times before."""
        if not re.search(self.only, target):
            return None
        listing = method == "GET" and "list-type" in parse_qs(urlsplit(target).query)
        possible = {"slow_down": True, "internal": True, "denied": not times, "stale_list": listing and times > 0}
        possible |= {"reset": method == "GET" and not listing, "trickle": method == "GET" and not listing}
        possible |= {"lost_reply": method in ("PUT", "POST")}
        draw = random.Random(f"{self.seed} {method} {target} {times}").random()
        for field in fields(self):
            if field.name in possible:
                draw -= getattr(self, field.name) if possible[field.name] else 0.0
                if draw < 0:
                    return field.name
        return None


class FaultProxy:
    """A context manager; listens on a free port of 127.0.0.1.

    Attributes:
        faults: may be replaced at any time.
        injected: how many faults there were, by name.
        requests: how many requests there were, by method.
    """

    def __init__(self, upstream: str, faults: Faults = Faults()) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname
        assert parts.port
        self.upstream = (parts.hostname, parts.port)
        self.faults = faults
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """What clients use as `endpoint_url`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def choose(self, method: str, target: str) -> str | None:
        """Counts a request and decides about it."""
        with self._lock:
            times = self._asked[method, target]
            self._asked[method, target] += 1
            self.requests[method] += 1
            fault = self.faults.choose(method, target, times)
            if fault == "stale_list" and target not in self._listings:
                fault = None
            if fault:
                self.injected[fault] += 1
            return fault

    def listing(self, target: str, answer: Any = None) -> Any:
        """Remembers the answer to a LIST, or gives the one that is remembered."""
        with self._lock:
            if answer is not None:
                self._listings[target] = answer
            return self._listings.get(target)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self._body()
            fault = proxy.choose(self.command, self.path)
            if fault == "slow_down":
                self._refuse(503, "SlowDown", "Please reduce your request rate.")
            elif fault == "internal":
                self._refuse(500, "InternalError", "We encountered an internal error. Please try again.")
            elif fault == "denied":
                self._refuse(403, "AccessDenied", "Access Denied")
            elif fault == "stale_list":
                self._answer(*proxy.listing(self.path))
            else:
                answer = self._forward(body)
                if fault == "lost_reply":
                    self._break()
                    return
                if "list-type" in self.path:
                    proxy.listing(self.path, answer)
                self._answer(*answer, fault=fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = bytearray()
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return bytes(data)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            headers["Content-Length"] = str(len(body))
            connection = http.client.HTTPConnection(*proxy.upstream, timeout=60)
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
            return answer.status, kept, content

        def _answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "reset":
                self.wfile.write(content[: (len(content) + 1) // 2])
                self.wfile.flush()
                time.sleep(RESET_SECONDS)
                self._break()
            elif fault == "trickle":
                self._trickle(content)
            else:
                self.wfile.write(content)

        def _trickle(self, content: bytes) -> None:
            step = TRICKLE_BYTES_PER_SECOND // 8
            for start in range(0, len(content), step):
                try:
                    self.wfile.write(content[start : start + step])
                    self.wfile.flush()
                except OSError:  # the client has had enough
                    self.close_connection = True
                    return
                time.sleep(1 / 8)

        def _refuse(self, status: int, code: str, message: str) -> None:
            content = _ERROR.format(code=code, message=message).encode()
            self._answer(status, [("Content-Type", "application/xml"), ("Content-Length", "0")], content)

        def _break(self) -> None:
            """Closes the connection with a reset."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client went away, or `_break` did it
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    return Handler
