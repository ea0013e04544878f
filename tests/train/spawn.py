"""Start the ranks of a distributed test as subprocesses, as torchrun would."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a subprocess that sees the package and the tests."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def free_port() -> int:
    """A port nobody listens on, below those that the system gives to connections: one of these could take it before the ranks do."""
    for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("none of a hundred ports is free")


def ranks(script: Path, *arguments: str, world: int = 2, timeout: float = 900) -> list[subprocess.CompletedProcess[str]]:
    """Run ``script`` once per rank, in a folder that goes away, and wait; the output of every rank is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return _ranks(folder, script, arguments, world, timeout)


def _ranks(folder: str, script: Path, arguments: tuple[str, ...], world: int, timeout: float) -> list[subprocess.CompletedProcess[str]]:
    port = str(free_port())
    running = []
    for rank in range(world):
        env = environment(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test", TORCHELASTIC_RESTART_COUNT="0",
        )  # fmt: skip
        command = [sys.executable, str(script), *arguments]
        with open(f"{folder}/rank{rank}.out", "w") as output:  # a pipe that nobody reads yet would hold a rank up
            running.append(subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT))
    try:
        for process in running:
            process.wait(timeout)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = [Path(folder, f"rank{rank}.out").read_text(errors="replace") for rank in range(world)]
    return [subprocess.CompletedProcess(process.args, process.returncode, text) for process, text in zip(running, said, strict=True)]
