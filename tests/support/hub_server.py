"""A hub of our own on 127.0.0.1 that speaks the few endpoints huggingface_hub uses, and fails on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["COMMIT", "Hub", "Request", "serve_hub"]

COMMIT = "c0ffee" + "0" * 33 + "1"
TOKEN = "hf_good"
LARGE_BYTES = 10_000
"""As on the real hub, larger files lie elsewhere and are marked by their SHA-256."""


@dataclass(frozen=True)
class Request:
    """What was asked: method, path and the bytes wanted."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """What the hub holds and how it misbehaves.

    Attributes:
        files: the content of each file of each repository.
        gated, private: repositories that want a token; a gated one says so.
        status: answer everything with this.
        breaks: break off so many transfers of large files, each after `break_bytes`.
        ignore_ranges: send whole files whatever is asked.
        damage: send other bytes than announced.
        requests: all that was asked.
        endpoint, elsewhere: where it answers, under the name of the hub and under that of the place for large files.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    status: int | None = None
    breaks: int = 0
    break_bytes: int = 0
    ignore_ranges: bool = False
    damage: bool = False
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    elsewhere: str = ""

    def fetched(self, repo: str) -> set[str]:
        """The files whose content was asked for."""
        prefix = f"/{repo}/resolve/{COMMIT}/"
        return {
            asked.path.removeprefix(prefix)
            for asked in self.requests
            if asked.method == "GET" and asked.path.startswith(prefix)
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        if self.hub.status is not None:
            return self._send(self.hub.status, b"no")
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._content(parts[1])
        if parts[:2] == ["api", "models"]:
            return self._about("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", token)
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), token)
        return self._send(404, b"")

    def _refused(self, repo: str, token: str | None, *, content: bool) -> bool:
        if repo not in self.hub.files or (repo in self.hub.private and token != TOKEN):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return True
        if content and repo in self.hub.gated and token != TOKEN:
            self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            return True
        return False

    def _about(self, repo: str, revision: str, token: str | None) -> None:
        if self._refused(repo, token, content=False):
            return
        if revision not in ("main", "v1", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.hub.files[repo].items()]
        about = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str, token: str | None) -> None:
        if self._refused(repo, token, content=True):
            return
        content = self.hub.files[repo].get(name)
        about = {"X-Repo-Commit": COMMIT}
        if content is None or revision != COMMIT:
            self._send(404, b"", {**about, "X-Error-Code": "EntryNotFound"})
        elif len(content) > LARGE_BYTES:
            mark = hashlib.sha256(content).hexdigest()
            about |= {"X-Linked-Etag": f'"{mark}"', "X-Linked-Size": str(len(content))}
            self._send(302, b"", {**about, "Location": f"{self.hub.elsewhere}/cdn/{mark}"})
        else:
            mark = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._ranged(content, {**about, "ETag": f'"{mark}"'})

    def _content(self, mark: str) -> None:
        contents = (content for files in self.hub.files.values() for content in files.values())
        content = next(one for one in contents if hashlib.sha256(one).hexdigest() == mark)
        self._ranged(content[:-1] + b"?" if self.hub.damage else content, {})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        asked = self.headers.get("Range")
        if asked is None or self.hub.ignore_ranges:
            return self._send(200, content, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        if start >= len(content):
            return self._send(416, b"")
        headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self._send(206, content[start : end + 1], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.breaks > 0 and status in (200, 206) and self.path.startswith("/cdn/"):
            self.hub.breaks -= 1
            self.wfile.write(body[: self.hub.break_bytes])
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that answers until the block is left."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        hub.elsewhere = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
