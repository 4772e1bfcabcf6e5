"""The page while runs go on: a server that reads run folders, writes nothing, and answers two addresses.

It listens on this machine alone unless told otherwise; elsewhere a random token in the address keeps others out.
"""

import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Lock

from labelemb.errors import InputError
from labelemb.report.page.document import document
from labelemb.report.recipes import read_recipes
from labelemb.report.write import page

WATCHED = ("config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "label_embedding.safetensors")


class LivePage:
    """The page of some folders, made again when a file of a run has changed.

    Args:
        folders: what is shown; they may be empty still.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._version, self._content = "", b""
        self._lock = Lock()

    @property
    def version(self) -> str:
        """A sum over names, sizes and times of all files that a page is made from."""
        state = sorted(_state(folder) for folder in self._folders)
        return hashlib.sha256(repr(state).encode()).hexdigest()[:16]

    def content(self) -> bytes:
        """The page as it is now."""
        with self._lock:
            version = self.version
            if version != self._version:
                self._content = self._made(version)
                self._version = version
            return self._content

    def _made(self, version: str) -> bytes:
        try:
            return page(read_recipes(self._folders), version=version)
        except (InputError, OSError) as error:  # no runs yet, or a file that is being written
            return document("labelemb", [], [], messages=[f"Nothing to show yet: {error}"], version=version)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            if name in WATCHED:
                try:
                    stat = os.stat(os.path.join(top, name))
                except OSError:  # renamed meanwhile
                    continue
                found.append((os.path.join(top, name), stat.st_mtime_ns, stat.st_size))
    return sorted(found)


def make_server(live: LivePage, bind: str, port: int) -> tuple[ThreadingHTTPServer, str]:
    """A server that is ready to serve, and its address.

    Args:
        live: what it shows.
        bind: the address to listen on. Any but this machine's own gets a random token in its path.
        port: 0 takes a free one.

    Raises:
        InputError: the address or port cannot be listened on.
    """
    is_local = _is_local(bind)
    token = "" if is_local else secrets.token_urlsafe(24)
    try:
        server = (_Server6 if ":" in bind else ThreadingHTTPServer)(
            (bind, port), _handler(live, token, is_local=is_local)
        )
    except (OSError, OverflowError) as error:
        raise InputError(f"--bind {bind} --port {port}: cannot listen there: {error}") from None
    path, host = f"/{token}/" if token else "/", f"[{bind}]" if ":" in bind else bind
    return server, f"http://{host}:{server.server_port}{path}"


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _handler(live: LivePage, token: str, *, is_local: bool) -> type[BaseHTTPRequestHandler]:
    """Answers GET of the page and of its version, and refuses everything else."""
    root = f"/{token}/" if token else "/"
    answers: dict[str, tuple[str, Callable[[], bytes]]] = {
        root: ("text/html; charset=utf-8", live.content),
        f"{root}version": ("text/plain; charset=utf-8", lambda: live.version.encode()),
    }

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "labelemb", ""

        def do_GET(self) -> None:
            kind, content = next((each for path, each in answers.items() if _same(path, self.path)), ("", None))
            if content is None or (is_local and not _names_this_machine(self.headers.get("Host", ""))):
                self._answer(404, "text/plain; charset=utf-8", b"not found\n")
            else:
                self._answer(200, kind, content())

        def _refuse(self) -> None:
            self._answer(405, "text/plain; charset=utf-8", b"only GET\n")

        do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

        def _answer(self, code: int, kind: str, content: bytes) -> None:
            self.send_response(code)
            headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
            headers |= {
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "X-Frame-Options": "DENY",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: an address may hold the token."""

    return Handler


def _same(path: str, asked: str) -> bool:
    """Compared in a time that says nothing of how much was guessed right."""
    return secrets.compare_digest(path.encode(), asked.encode("utf-8", errors="replace"))


def _names_this_machine(host: str) -> bool:
    """Whether a request was addressed to this machine: a page elsewhere may have made its own name lead here."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return _is_local(name.strip("[]"))
