"""A function in a forked process of its own: limits, kills and exits do not touch the tests, and nothing is imported again."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How the process ended: its exit code, negative for a signal, and what it wrote to stdout and stderr."""

    code: int
    output: str


def few_descriptors(free: int, more: int = 0) -> int:
    """Let this process open ``free`` files beside those that it has from the tests before, and ``more`` where it raises its limit itself.
    Returns the highest limit."""
    limit = free
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd", name).is_symlink()):
        limit += number < limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit + more))
    return limit + more


def child(function: Callable[[], object]) -> Ended:
    """Run ``function`` in a fork and wait for its end."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                function()
                code = 0
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else 1
            except BaseException:  # noqa: BLE001 - whatever it is goes to the parent
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), file.read().decode(errors="replace"))
