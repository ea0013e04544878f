"""HTML from Python values, escaped by construction: text becomes ``Html`` only through ``tag`` and ``esc``."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_VOID = ("img", "input", "meta")


class Html(str):
    """Text that is already HTML."""


def esc(value: object) -> Html:
    """Any value as HTML text; ``Html`` passes unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Any, between: str = "") -> Html:
    """HTML of several parts."""
    return Html(between.join(esc(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. ``class_`` is ``class``, ``data_x`` is ``data-x``; True is a bare attribute, None and False leave it out."""
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{esc(value)}"')
    if name in _VOID:
        return Html(f"<{name}{''.join(written)}>")
    return Html(f"<{name}{''.join(written)}>{join(children)}</{name}>")


def asset(name: str) -> str:
    """A file of ``report/assets`` as text."""
    return resources.files("mmpretrain.report").joinpath("assets", name).read_text(encoding="utf-8")


def document(title: str, body: Html) -> str:
    """A whole page in one file: style inside, and a policy that forbids every request."""
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            Html('<link rel="icon" href="data:,">'),
            Html(f"<style>{asset('page.css')}</style>"),
        ]
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def script_json(identity: str, value: Any) -> Html:
    """Data for the page's script. ``<`` is written as an escape, so that no text can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{esc(identity)}">{text}</script>')


def number(value: float, percent: bool = False) -> str:
    """A number as people read it: 83.4 %, 1 234, 0.0513, 1e-05."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if percent:
        return f"{100 * value:.1f} %"
    if (value == int(value) and abs(value) < 1e9) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) < 1e12 else f"{value:.3g}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """12 s, 4 min 05 s, 3 h 20 min, 2 d 4 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min" if s < 86400 else f"{s // 86400} d {s % 86400 // 3600} h"


class Pictures:
    """The pictures of one page, each embedded once however often it is shown.

    Args:
        root: no picture outside this folder is read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.data: dict[str, str] = {}  # digest -> data URI
        self._seen: dict[Path, str | None] = {}
        self.warnings: list[str] = []

    def img(self, folder: Path, relative: str | None, alt: str) -> Html:
        """An ``<img>`` that the script fills, or a labelled gap where the file cannot be read."""
        digest = None if relative is None else self._digest(folder / relative)
        if digest is None:
            return tag("span", "picture missing", class_="gap", role="img", aria_label=alt)
        return tag("img", data_i=digest, alt=alt)

    def _digest(self, file: Path) -> str | None:
        file = file.resolve()
        if file not in self._seen:
            self._seen[file] = self._read(file)
        return self._seen[file]

    def _read(self, file: Path) -> str | None:
        if not file.is_relative_to(self.root) or file.suffix.lower() not in MIME:
            self.warnings.append(f"{file.name}: not a picture inside {self.root.name}/, left out")
            return None
        try:
            content = file.read_bytes()
        except OSError as error:
            self.warnings.append(f"{file.name}: {error.strerror}")
            return None
        digest = hashlib.sha256(content).hexdigest()[:12]
        self.data[digest] = f"data:{MIME[file.suffix.lower()]};base64,{base64.b64encode(content).decode()}"
        return digest
