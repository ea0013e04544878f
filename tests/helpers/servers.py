"""Servers on loopback for tests of remote shards: HTTP with switches for every fault, and S3 by moto."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Http:
    """Serves the files of a folder. The switches may be changed at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True  # whether Range is obeyed
        self.sizes = True  # whether Content-Length is sent
        self.etags = True
        self.cuts = 0  # bodies still to be cut in the middle
        self.statuses: list[int] = []  # answers to the next requests in place of the file
        self.always: dict[str, int] = {}  # name -> status
        self.auth = ""  # the Authorization that is asked for
        self.seen: Counter[tuple[str, str]] = Counter()  # (method, name)
        self.sent: Counter[str] = Counter()  # name -> bytes of bodies
        self.hold = threading.Event()  # bodies wait for it
        self.hold.set()

    def url(self, name: str = "", user: str = "") -> str:
        return f"http://{user + '@' if user else ''}127.0.0.1:{self.port}/{name}"

    def gets(self, name: str) -> int:
        return self.seen["GET", name]


class _Handler(BaseHTTPRequestHandler):
    http: Http

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def status(self, name: str) -> int:
        if name in self.http.always:
            return self.http.always[name]
        if self.http.statuses:
            return self.http.statuses.pop(0)
        if self.http.auth and self.headers.get("Authorization") != self.http.auth:
            return 401
        return 200 if name.endswith("/") or not name or (self.http.folder / name).is_file() else 404

    def answer(self, body: bool) -> None:
        http, name = self.http, unquote(urlsplit(self.path).path).lstrip("/")
        http.seen[self.command, name] += 1
        if (status := self.status(name)) != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        folder = name.endswith("/") or not name
        data = self.listing(http.folder / name) if folder else (http.folder / name).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and http.ranges:
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            part = data[start:stop]
        else:
            self.send_response(200)
            part = data
        if folder:
            self.send_header("Content-Type", "text/html")
        if http.etags:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        if http.sizes:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.send(name, part)

    def send(self, name: str, data: bytes) -> None:
        self.http.hold.wait(30)
        if self.http.cuts > 0:
            self.http.cuts -= 1
            data = data[: len(data) // 2]
        self.http.sent[name] += len(data)
        self.wfile.write(data)

    def listing(self, folder: Path) -> bytes:
        return "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(folder.iterdir())).encode()


@contextmanager
def http_server(folder: Path) -> Iterator[Http]:
    """A running server."""
    http = Http(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"http": http}))
    server.daemon_threads = True
    http.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield http
    finally:
        http.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server(bucket: str, folder: Path) -> Iterator[str]:
    """An S3 server (moto) with the files of a folder in a bucket; sets the variables by which clients find it. Its address."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        address = "http://{}:{}".format(*server.get_host_and_port())
        names = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }
        for name, value in names.items():
            patch.setenv(name, value)
        patch.setattr("mmpretrain.data.remote._backends", {})  # a client keeps the address of its first server
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=bucket)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(Bucket=bucket, Key=str(path.relative_to(folder)), Body=path.read_bytes())
        try:
            yield address
        finally:
            server.stop()
