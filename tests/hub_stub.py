"""A Hub on this machine: the few addresses that huggingface_hub asks for, over HTTP, with repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

URL = "/{repo_id}/resolve/{revision}/{filename}"
SHA = "0" * 39 + "1"


@dataclass
class Hub:
    """`files` by repository and name. `status` answers whatever is asked of a repository, with the Hub's error code."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub ask this Hub, with a token, and keep what it fetches in `cache`."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + URL)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_nobody")


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.removeprefix("/api/models").strip("/").split("/")
            name = "/".join(parts[:2])
            if name in hub.status:
                self.refuse(*hub.status[name])
            elif name not in hub.files:
                self.refuse(404, "RepoNotFound")
            elif path.startswith("/api/models"):
                self.about(name, parts[2:])
            elif "/".join(parts[4:]) in hub.files[name]:
                self.content(hub.files[name]["/".join(parts[4:])])
            else:
                self.refuse(404, "EntryNotFound")

        def about(self, name: str, rest: list[str]) -> None:
            if rest[:1] == ["revision"] and rest[1] not in ("main", SHA):
                self.refuse(404, "RevisionNotFound")
            elif rest[:1] == ["tree"]:
                self.json([self.entry(file, data) for file, data in hub.files[name].items()])
            else:
                self.json({"id": name, "sha": SHA, "siblings": [{"rfilename": file} for file in hub.files[name]]})

        def entry(self, file: str, data: bytes) -> dict[str, object]:
            return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"POST {path}")
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if path == "/api/repos/create":
                raw = json.loads(body)
                name = f"{raw['organization']}/{raw['name']}"
                if name in hub.status:
                    self.refuse(*hub.status[name])
                    return
                hub.files.setdefault(name, {})
                self.json({"url": f"{hub.address}/{name}"})
            elif path == "/api/validate-yaml":  # of a model card
                self.json({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
                self.json({"files": files})
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{hub.address}/{name}/commit/{SHA}"
                self.json({"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})

        def json(self, content: object) -> None:
            self.content(json.dumps(content).encode())

        def content(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
