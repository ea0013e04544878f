"""What ``mmpretrain doctor`` finds, with versions and probes of the tests' making: level, remedy and exit code of each finding."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mmpretrain_cli_entry
from mmpretrain.cli import doctor
from mmpretrain.cli.doctor import Finding
from mmpretrain.cli.main import main

FINE: dict[str, Any] = {
    "torch": "2.15.0",
    "torchvision": "0.30.0",
    "threads": 2,
    "devices": [],
    "mps": False,
    "built_for": "cpu",
    "gloo": True,
}
PARTS = ("check_clash", "check_versions", "check_memory", "check_disk", "check_cache", "check_wandb")


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which nothing is wrong: each test takes one part of it back."""
    for name in PARTS:
        monkeypatch.setattr(doctor, name, lambda: [Finding("ok", "part", "sound")])
    monkeypatch.setattr(doctor, "probe", lambda: FINE)
    monkeypatch.setattr(doctor, "pair", lambda: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    return monkeypatch


def versions(monkeypatch: pytest.MonkeyPatch, **have: str | None) -> None:
    """Other versions of some distributions (``_`` for ``-``); None: not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = have.get(name.replace("-", "_"), "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def only(findings: list[Finding], subject: str) -> Finding:
    (found,) = [one for one in findings if one.subject == subject]
    return found


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Finding]]:
    """Exit code and findings of the command."""
    code = main(["doctor", "--json"])
    return code, [Finding(**one) for one in json.loads(capsys.readouterr().out)]


def test_a_sound_machine(sound: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = report(capsys)
    assert code == 0 and {one.level for one in findings} == {"ok", "note"}
    assert only(findings, "accelerator").text == "none: training runs on the CPU with 2 threads"


def test_each_line_is_shown_as_soon_as_it_is_known(sound: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def probe() -> dict[str, Any]:
        seen.append(capsys.readouterr().out)
        return FINE

    sound.setattr(doctor, "probe", probe)
    assert main(["doctor"]) == 0
    assert seen[0].startswith("   ok  python: 3.") and seen[0].count("   ok  part: sound\n") == 2
    assert capsys.readouterr().out.startswith("   ok  torch: ")


@pytest.mark.parametrize("level, code", [("note", 0), ("warn", 0), ("fail", 1)])
def test_what_must_be_mended_decides_the_exit_code(sound, capsys: pytest.CaptureFixture[str], level: str, code: int) -> None:
    sound.setattr(doctor, "check_disk", lambda: [Finding(level, "TMPDIR", "[bold]/x[/] cannot be written", "set it elsewhere")])
    assert main(["doctor"]) == code
    said = capsys.readouterr().out
    assert f"{level}  TMPDIR: [bold]/x[/] cannot be written\n       remedy: set it elsewhere" in said


def test_torch_and_torchvision_that_do_not_fit(sound, capsys: pytest.CaptureFixture[str]) -> None:
    sound.undo()
    versions(sound, torch="2.14.1")
    sound.setattr(importlib.metadata, "requires", lambda name: ["numpy", "torch==2.15.0", "gdown; extra == 'gdown'"])
    sound.setattr(doctor, "probe", lambda: FINE | {"torch": "2.14.1"})
    found = only(doctor.check_torch(doctor.probe()), "torch")
    assert found == Finding("fail", "torch", "torchvision 0.30.0 wants torch==2.15.0, this is 2.14.1", doctor.PAIR_REMEDY)
    assert "pip install --force-reinstall torch torchvision --index-url" in found.remedy
    code, findings = report(capsys)
    assert code == 1 and found in findings
    versions(sound, torch="2.15.0")
    assert doctor.pair() is None


@pytest.mark.parametrize(
    "found, text, remedy",
    [
        (
            {"torch": "2.15.0", "error": "RuntimeError: operator torchvision::nms does not exist"},
            "torch 2.15.0, torchvision does not import: RuntimeError: operator torchvision::nms does not exist",
            doctor.PAIR_REMEDY,
        ),
        (
            {"error": "the process ended with code -4: no output"},
            "torch does not import: the process ended",
            "pip install 'torch>=2.11' torchvision",
        ),
    ],
)
def test_torch_that_does_not_import(sound, capsys: pytest.CaptureFixture[str], found: dict[str, Any], text: str, remedy: str) -> None:
    sound.setattr(doctor, "probe", lambda: found)
    code, findings = report(capsys)
    one = only(findings, "torch")
    assert code == 1 and one.level == "fail" and one.text.startswith(text) and one.remedy == remedy


def test_a_probe_that_dies_or_hangs_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", "import os, sys; sys.stderr.write('x\\nillegal instruction\\n'); sys.stderr.flush(); os._exit(7)")
    assert doctor.probe() == {"error": "the process ended with code 7: illegal instruction"}

    def hang(*args: Any, **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired("python", kwargs["timeout"])

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor.probe(timeout=5) == {"error": "importing torch took longer than 5 s"}


def test_accelerators(sound: pytest.MonkeyPatch) -> None:
    of = lambda **found: only(doctor.check_torch(FINE | found), "accelerator")
    assert of(devices=[{"name": "H100", "gib": 79.6}]) == Finding("ok", "accelerator", "H100 (80 GiB)")
    assert of(mps=True).remedy == "--trainer.accelerator cpu"
    sound.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    unused = of()
    assert unused.level == "warn" and "torch is built for the CPU only" in unused.text and unused.remedy == doctor.PAIR_REMEDY
    assert only(doctor.check_torch(FINE | {"gloo": False}), "gloo").level == "warn"


def test_openmmlabs_package_beside_ours(sound, capsys: pytest.CaptureFixture[str]) -> None:
    sound.undo()
    versions(sound, mmpretrain="1.2.0")
    sound.setattr(doctor, "probe", lambda: FINE)
    code, findings = report(capsys)
    found = only(findings, "installation")
    assert code == 1 and found.level == "fail" and "OpenMMLab's 'mmpretrain' 1.2.0 is installed in this environment" in found.text
    assert found.remedy.startswith("pip uninstall -y mmpretrain mmpretrain-vl && pip install mmpretrain-vl")


def test_files_that_openmmlabs_package_left_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, mmpretrain=None)
    monkeypatch.setattr(mmpretrain_cli_entry.importlib.util, "find_spec", lambda name: None)
    (found,) = doctor.check_clash()
    assert (
        found.level == "fail"
        and "damaged" in found.text
        and found.remedy.startswith("pip install --force-reinstall --no-deps mmpretrain-vl")
    )


def test_another_distribution_with_our_import_name(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, mmpretrain=None)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"mmpretrain": ["mmpretrain-vl", "mmpretrain-fork"]})
    assert doctor.check_clash() == [
        Finding("fail", "installation", "mmpretrain-fork also provides 'mmpretrain'", "pip uninstall mmpretrain-fork")
    ]


@pytest.mark.parametrize(
    "available, limit, used, gib, level",
    [(8, None, 0, "8.0", "ok"), (1.5, None, 0, "1.5", "warn"), (64, "max", 3, "64.0", "ok"), (64, 4, 3.25, "0.8", "warn")],
)
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: float, limit: Any, used: float, gib: str, level: str) -> None:
    """Of the machine, or what a container leaves of its limit."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable: {int(available * 2**20)} kB\n")
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit if limit == 'max' else limit * 2**30}\n")
        (group / "memory.current").write_text(f"{int(used * 2**30)}\n")
    monkeypatch.setattr(doctor, "Path", lambda name: tmp_path / name.lstrip("/"))
    (found,) = doctor.check_memory()
    assert (found.level, found.text) == (level, f"{gib} GiB free")
    assert ("--data.workers 0" in found.remedy) == (level == "warn")


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    versions(monkeypatch, wandb="0.22.0")


def test_a_wandb_key(no_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "wandb login, then wandb sync RUN/wandb/*"
    assert doctor.check_wandb() == [Finding("note", "W&B", "wandb 0.22.0, no key: runs are kept offline", remedy)]
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert doctor.check_wandb() == [Finding("ok", "W&B", "wandb 0.22.0, with a key")]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert doctor.check_wandb() == [Finding("note", "W&B", "wandb 0.22.0, WANDB_MODE=offline", "unset WANDB_MODE to upload")]
    (tmp_path / "netrc").unlink()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    (found,) = doctor.check_wandb()
    assert found.level == "ok" and "secret" not in found.text


def test_wandb_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, wandb=None)
    (found,) = doctor.check_wandb()
    assert found.level == "warn" and found.remedy == "pip install wandb"


def test_requirements_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["timm>=1.0.20", "rich>=13.9", "ray[train]>=2.50; extra == 'ray'"])
    versions(monkeypatch, timm="1.0.3", rich=None)
    assert doctor.check_versions() == [
        Finding("fail", "timm", "1.0.3 is too old", "pip install 'timm>=1.0.20'"),
        Finding("fail", "rich", "not installed", "pip install 'rich>=13.9'"),
    ]
