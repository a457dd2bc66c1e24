"""An MJPEG stream over HTTP, as network cameras and mjpg-streamer send it: JPEG files, one after another, without end.

A thread reads; only the newest file is kept, and decoded when it is looked at. Connects again by itself.
"""

from __future__ import annotations

import base64
import http.client
import threading
import urllib.error
import urllib.request
from email.message import Message
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_vla.robot.cameras.newest import Newest
from edge_vla.robot.cameras.pictures import decoded
from edge_vla.robot.faces import CameraError

TIMEOUT_S: Final = 5.0  # of connecting, and without a byte
AGAIN_S: Final = (0.1, 0.5)  # between two attempts: at first, at most
MOST: Final = 16 << 20  # bytes of a picture
LONGEST_HEAD: Final = 8192
EXPECTED: Final = "multipart/x-mixed-replace"


class Parts:
    """A multipart body in pieces of any size. ValueError for what is none, or a part over `MOST`."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"--" + boundary.removeprefix(b"--")  # some cameras count the dashes to the boundary
        self._kept = bytearray()
        self._length: int | None = None
        self._inside = False

    def feed(self, data: bytes) -> list[bytes]:
        """The parts that these bytes complete."""
        self._kept += data
        found = []
        while (part := self._body() if self._inside else self._head()) is not None:
            if part:
                found.append(part)
        return found

    def _head(self) -> bytes | None:
        """Up to the blank line after a boundary: empty bytes; None while it is not there yet."""
        start = self._kept.find(self._mark)
        end = -1 if start < 0 else self._kept.find(b"\r\n\r\n", start)
        if end < 0:
            if len(self._kept) > LONGEST_HEAD:
                raise ValueError("no boundary, or a part's header without an end")
            return None
        head = http.client.HTTPMessage()
        for line in bytes(self._kept[start:end]).decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            head[name.strip()] = value.strip()
        length = head.get("Content-Length")
        self._length = int(length) if length is not None and length.isdigit() else None
        del self._kept[: end + 4]
        self._inside = True
        return b""

    def _body(self) -> bytes | None:
        size = self._length if self._length is not None else self._kept.find(b"\r\n" + self._mark)
        if max(size, len(self._kept) if size < 0 else 0) > MOST:
            raise ValueError(f"a picture of more than {MOST >> 20} MiB")
        if size < 0 or len(self._kept) < size:
            return None
        part = bytes(self._kept[:size])
        del self._kept[:size]
        self._inside = False
        return part


class MjpegCamera(Newest):
    """A camera at `http://` or `https://`, with `user:password@` where it asks for one."""

    def __init__(self, address: str) -> None:
        self._address, self._headers = without_password(address)
        super().__init__(self._address, lambda data: decoded(data, self.name))
        self._closed = threading.Event()
        self._response: http.client.HTTPResponse | None = None
        self._thread = threading.Thread(target=self._run, name=f"camera {self._address}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        response = self._response
        if response is not None:
            response.close()
        self._thread.join(1.0)

    def _run(self) -> None:
        pause = AGAIN_S[0]
        while not self._closed.is_set():
            before = self.number
            try:
                self._stream()
                why = "the stream ended"
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {error.reason}: check the address, and user:password@ in it"
            except urllib.error.URLError as error:
                why = f"{error.reason}: check its power, its cable and --camera"
            except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
                why = str(error) or type(error).__name__  # AttributeError: closed while it was read
            self.fail(CameraError("unplugged", f"{self.name}: {why}"))
            pause = AGAIN_S[0] if self.number > before else min(2 * pause, AGAIN_S[1])
            self._closed.wait(pause)

    def _stream(self) -> None:
        request = urllib.request.Request(self._address, headers=self._headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a robot's camera is behind no proxy
        with opener.open(request, timeout=TIMEOUT_S) as response:
            self._response = response
            parts = Parts(boundary(response.headers))
            while not self._closed.is_set() and (data := response.read1(65536)):
                if found := parts.feed(data):
                    self.put(found[-1])


def boundary(headers: Message) -> bytes:
    """What separates the parts of a stream. ValueError for a page, or a single picture."""
    mark = headers.get_param("boundary")
    if headers.get_content_type() != EXPECTED or not isinstance(mark, str):
        raise ValueError(
            f"it sends {headers.get_content_type()}, expected {EXPECTED}: use the address of its MJPEG stream"
        )
    return mark.encode("latin-1")


def without_password(address: str) -> tuple[str, dict[str, str]]:
    """The address as it may be shown, and the header for a password in it."""
    parts = urlsplit(address)
    if parts.username is None:
        return address, {}
    shown = parts.netloc.rpartition("@")[2]
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    header = {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
    return urlunsplit(parts._replace(netloc=shown)), header
