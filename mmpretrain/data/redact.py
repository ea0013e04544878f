"""Credentials leave the program in no message, log or saved configuration: addresses are shown without them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REMOVED = "***"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_USER = re.compile(r"(?<=://)[^/?#@]*@")
_VALUE = re.compile(r"(?<=[?&])([^=&#]+)=([^&#]+)")
_HARMLESS = re.compile(r"true|false|\d{1,6}")
_SECRET = r"[\w-]*(?:token|password|passwd|secret|signature|api-?key|access-?key)[\w-]*"
_NAMED = re.compile(rf"(?i)\b(bearer\s+|{_SECRET}\s*[=:]\s*)([^\s'\"&]+)")


def redact(text: str) -> str:
    """``text`` with the user, the password and the values of the query of every address in it replaced by ``***``.

    Numbers and true/false stay, since they choose a file and open none. ``token=...``, ``Bearer ...`` and the like go too.
    """
    return _NAMED.sub(rf"\1{REMOVED}", _ADDRESS.sub(lambda found: _address(found[0]), text))


def _address(url: str) -> str:
    url = _USER.sub(f"{REMOVED}@", url, count=1)
    return _VALUE.sub(lambda found: found[0] if _HARMLESS.fullmatch(found[2]) else f"{found[1]}={REMOVED}", url)


def redacted(value: Any) -> Any:
    """The same for every address in a configuration; anything else is left as it is."""
    if isinstance(value, str):
        return redact(value) if "://" in value or value.startswith("pipe:") else value
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(inner) for inner in value) if type(value) in (list, tuple) else value
    return value
