"""A local HTTP server that serves given bytes and misbehaves as told.

    with FaultyServer({"/a.zip": data}) as server:
        server.faults["/a.zip"] = [Fault(status=503), Fault(drop_after=1000)]
        url = server.url("/a.zip")

Each GET takes the next fault of its path and answers properly when none is left; a fault with
``forever`` stays.  HEAD is always answered properly but for what a fault that stays says of the
file itself (its ETag, whether ranges are served).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_numbers = itertools.count()
BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One wrong answer."""

    status: int | None = None  # answer with this code and no file
    drop_after: int | None = None  # close the connection after so many bytes of the body
    no_length: bool = False  # no Content-Length and no parts: the body ends with the connection
    claim_more: int = 0  # bytes that Content-Length promises and the body lacks
    ignore_range: bool = False  # answer 200 and the whole file
    fickle_etag: bool = False  # another ETag than in any answer before
    body: bytes | None = None  # other content
    content_type: str = "application/octet-stream"
    pause: float = 0.0  # seconds between blocks of 64 KiB
    forever: bool = False


@dataclass
class FaultyServer:
    """``files``: path -> content.  ``requests`` lists (method, path, Range) of every request."""

    files: dict[str, bytes]
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # of the answers of a path
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> FaultyServer:
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, path: str) -> str:
        return self.base + path

    def next_fault(self, method: str, path: str) -> Fault:
        queue = self.faults.get(path, [])
        if not queue:
            return Fault()
        if queue[0].forever:
            return queue[0]
        return queue.pop(0) if method == "GET" else Fault()


class _Handler(BaseHTTPRequestHandler):
    server_state: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        state = self.server_state
        path = self.path.partition("?")[0]
        asked = self.headers.get("Range")
        state.requests.append((method, path, asked))
        fault = state.next_fault(method, path)
        content = fault.body if fault.body is not None else state.files.get(path)
        self.close_connection = True
        if fault.status is not None or content is None:
            self._head(fault.status or 404, {"Content-Length": "0"})
            return
        etag = hashlib.sha256(content).hexdigest()[:16]
        if fault.fickle_etag:
            etag += f"-{next(_numbers)}"
        headers = {
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": fault.content_type,
        }
        headers |= state.headers.get(path, {})
        status, body = 200, content
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if fault.no_length:
            del headers["Accept-Ranges"]
        elif span and not fault.ignore_range:
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            if first >= len(content):
                self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"})
                return
            status, body = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content) + fault.claim_more}"
        if not fault.no_length:
            headers["Content-Length"] = str(len(body) + fault.claim_more)
        self._head(status, headers)
        if method == "GET":
            body = body if fault.drop_after is None else body[: fault.drop_after]
            # a client that has seen enough of the headers closes the connection
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for start in range(0, len(body), BLOCK):
                    self.wfile.write(body[start : start + BLOCK])
                    time.sleep(fault.pause)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
