"""An HTTP server of a folder that knows Range requests, counts them, and fails when told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Storage:
    """What a test sees of the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.requests: list[tuple[str, int]] = []
        """(name, bytes) of each GET of a file."""
        self.failures: list[str] = []
        """What happens to the next GETs of files: "503", "404" or "drop"; each is used once."""
        self.knows_ranges = True


@contextmanager
def serve(folder: Path) -> Iterator[Storage]:
    storage = Storage(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = folder / self.path.strip("/")
            if path.is_dir():
                links = "".join(f'<a href="{self.path.rstrip("/")}/{file.name}">x</a>' for file in path.iterdir())
                return self._send(200, links.encode(), with_body, {"Content-Type": "text/html"})
            if not path.is_file():
                return self._send(404, b"", with_body, {})
            if with_body and storage.failures:
                failure = storage.failures.pop(0)
                if failure == "drop":
                    self.close_connection = True
                    return self.connection.close()
                return self._send(int(failure), b"", with_body, {})
            data, status = path.read_bytes(), 200
            headers = {"ETag": f'"{path.stat().st_mtime_ns:x}"', "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted and storage.knows_ranges:
                start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
                data, status = data[start:stop], 206
            if with_body:
                storage.requests.append((path.name, len(data)))
            return self._send(status, data, with_body, headers)

        def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    storage.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
