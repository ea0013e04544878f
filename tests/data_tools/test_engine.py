"""The engine of the data tools: equal results whatever runs them, restartable, errors that name the item."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.work import square

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.engine import WorkerError, reference, run, worker_count

QUIET = {"progress": False}


def items(folder: Path | None = None, n: int = 5, **more):
    return {f"item {i}": {"n": i, "out": str(folder / f"{i}.txt") if folder else None, **more} for i in range(n)}


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_results_and_files_do_not_depend_on_the_number_of_processes(tmp_path):
    alone = run(square, items(tmp_path / "a"), workers=1, **QUIET)
    together = run(square, items(tmp_path / "b"), workers=3, **QUIET)
    assert alone == together and list(alone) == list(together) == [f"item {i}" for i in range(5)]
    assert alone["item 3"] == {"n": 3, "square": 9, "pair": [1, 2]}  # JSON types, also in this process
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b") == {f"{i}.txt": f"{i * i}\n".encode() for i in range(5)}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_writes_the_same_bytes(tmp_path):
    alone = run(square, items(tmp_path / "a"), workers=1, **QUIET)
    assert run(square, items(tmp_path / "b"), engine="ray", workers=2, **QUIET) == alone
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    with pytest.raises(DataError, match="item 0: the picture is upside down"):
        run(square, items(n=1, fail="data"), engine="ray", workers=1, **QUIET)


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'mmpretrain-vl\[ray\]'"):
        run(square, items(), engine="ray", **QUIET)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_the_item(workers):
    todo = items(n=2)
    for fail, kind, text in (
        ("data", DataError, "item 1: the picture is upside down"),
        ("file", DataError, "item 1: No such file or directory: /nowhere/at/all"),
        ("bug", WorkerError, "item 1: ZeroDivisionError"),
    ):
        todo["item 1"]["fail"] = fail
        with pytest.raises(kind, match=text) as caught:
            run(square, todo, workers=workers, **QUIET)
        assert fail != "bug" or "helpers/work.py" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_names_the_file(workers, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    (tmp_path / "sitecustomize.py").write_text("import os\ndef full(file):\n    raise OSError(28, os.strerror(28))\nos.fsync = full\n")
    monkeypatch.syspath_prepend(tmp_path)  # of the processes of the pool
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/out/\d.txt'") as caught:
            run(square, items(tmp_path / "out", n=2), workers=workers, **QUIET)
    assert caught.value.errno == 28 and not list((tmp_path / "out").iterdir())


def test_a_killed_process_names_its_item(tmp_path):
    todo = items(n=3)
    todo["item 2"]["fail"] = "kill"
    with pytest.raises(DataError, match=r"item 2: the process that worked on it ended with signal SIGKILL; out of memory\?"):
        run(square, todo, workers=2, **QUIET)


def test_a_second_run_does_only_the_rest(tmp_path, capfd):
    calls = tmp_path / "calls"
    calls.mkdir()
    todo = items(tmp_path / "out", calls=str(calls))
    todo["item 3"]["fail"] = "data"
    with pytest.raises(DataError):
        run(square, todo, workers=1, state=tmp_path / "state", **QUIET)
    del todo["item 3"]["fail"]
    (tmp_path / "state" / ".half-written").touch()
    first = run(square, todo, workers=1, state=tmp_path / "state", title="squares")
    assert "squares: 3 of 5 were finished before" in capfd.readouterr().err
    assert sorted(path.name[0] for path in calls.iterdir()) == list("012334")  # item 3 failed once
    assert run(square, todo, workers=1, state=tmp_path / "state", **QUIET) == first
    (tmp_path / "out" / "2.txt").unlink()
    again = run(square, todo, workers=1, state=tmp_path / "state", valid=lambda name, _: Path(todo[name]["out"]).exists(), **QUIET)
    assert again == first and (tmp_path / "out" / "2.txt").exists()
    assert len(list(calls.iterdir())) == 7
    assert not list((tmp_path / "state").glob(".*"))


PROGRAM = """
import sys
from helpers.work import square
from mmpretrain.data_tools.engine import run
from pathlib import Path
out = Path(sys.argv[1])
items = {f"item {i}": {"n": i, "out": str(out / f"{i}.txt"), "wait": 0 if i < 2 else 60} for i in range(6)}
run(square, items, workers=2, state=out / "state", progress=False)  # no __main__ guard: the script is not imported again
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_kill_leave_no_process_and_no_half_file(tmp_path, sent):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with (tmp_path / "stderr").open("w") as shown:
        process = subprocess.Popen(command, env=environment, stderr=shown)
    until = time.monotonic() + 300
    while len(list(tmp_path.glob("state/*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(sent)
    assert process.wait(120) != 0 and len(workers) == 2
    assert sent != signal.SIGINT or "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
    if sent == signal.SIGINT:  # killed workers end with their item: their input has ended
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    else:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):  # it had no item yet
                os.kill(int(pid), signal.SIGKILL)
    assert set(outputs(tmp_path)) == {"0.txt", "1.txt", "program.py", "stderr"}
    assert len(list(tmp_path.glob("state/*.json"))) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_line_of_progress_is_always_shown(workers, capfd):
    run(square, items(), workers=workers, title="squares")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("squares")]
    assert lines == ["squares: 5/5"]


def test_only_importable_functions():
    with pytest.raises(ValueError, match="top level"):
        reference(lambda item: item)
    assert reference(square) == "helpers.work:square"


def test_number_of_processes():
    assert worker_count(8, 3) == 3 and worker_count(1, 0) == 1
    with pytest.raises(DataError, match="--workers 0"):
        worker_count(0, 3)
    with pytest.raises(DataError, match="not one of local, ray"):
        run(square, {}, engine="spark")
