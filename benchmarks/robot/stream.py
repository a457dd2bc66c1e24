"""A network camera of our own: MJPEG over HTTP of what a function draws, with the faults that cameras have.

Knows no world and no policy.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
State = Literal["well", "frozen", "black", "silent", "unplugged", "damaged"]

BOUNDARY: Final = "picture"
QUALITY: Final = 95


class Stream:
    """Serves `draw()` at `fps` to whoever connects. `state` may be set at any time, by any thread."""

    def __init__(self, draw: Callable[[], Pixels], fps: float, port: int = 0) -> None:
        self.state: State = "well"
        self._draw, self._fps = draw, fps
        self._last = b""
        self.sent = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self._serve(handler)

            def log_message(handler, format: str, *arguments: object) -> None:  # noqa: N805
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/stream"

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state = "unplugged"
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        if self._gone():
            handler.send_error(503, "unplugged")
            return
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        handler.end_headers()
        due = time.monotonic()
        try:
            while not self._gone():
                if self.state != "silent":
                    data = self._picture()
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    handler.wfile.write(head.encode() + data + b"\r\n")
                    self.sent += 1
                due = max(due + 1 / self._fps, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            return  # whoever looked is gone

    def _gone(self) -> bool:
        return self.state == "unplugged"

    def _picture(self) -> bytes:
        """As the state has it: drawn now, the last one again, or nothing that can be seen."""
        if self.state == "frozen" and self._last:
            return self._last
        if self.state == "black":
            return jpeg(np.random.default_rng(self.sent).integers(0, 3, (112, 112, 3), dtype=np.uint8))
        self._last = jpeg(self._draw())
        return self._last[: len(self._last) // 2] if self.state == "damaged" else self._last


def jpeg(image: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
