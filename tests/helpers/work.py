"""Functions for the engine of the data tools; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import write_atomic
from mmpretrain.data.errors import DataError


def square(item: dict[str, Any]) -> dict[str, Any]:
    """Writes a file, counts its calls in a folder, and may fail or wait as the item says."""
    print("this goes to stderr")
    if item.get("calls"):
        Path(item["calls"], f"{item['n']}-{time.monotonic_ns()}").touch()
    if item.get("fail") == "data":
        raise DataError("the picture is upside down")
    if item.get("fail") == "file":
        Path("/nowhere/at/all").read_bytes()
    if item.get("fail") == "bug":
        return {"result": 1 // 0}
    if item.get("fail") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item.get("wait"):
        time.sleep(item["wait"])
    if item.get("out"):
        write_atomic(Path(item["out"]), f"{item['n'] ** 2}\n".encode())
    return {"n": item["n"], "square": item["n"] ** 2, "pair": (1, 2)}
