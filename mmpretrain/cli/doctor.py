"""``mmpretrain doctor``: what is wrong with this machine or this installation, each finding with its remedy.

Libraries that can break an interpreter (torch, torchvision) are tried in a subprocess. Exit code 1 where something must be mended.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmpretrain.cli.commands import OneLine
from mmpretrain.report.wandb import has_key

LEVELS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "red"}


class Finding(NamedTuple):
    """One line of the report. ``level``: ok, note (for information), warn (works, but), fail (must be mended)."""

    level: str
    subject: str
    text: str
    remedy: str = ""


PROBE = """
import json, sys
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["threads"] = torch.get_num_threads()
    found["devices"] = [
        {"name": torch.cuda.get_device_name(i), "gib": torch.cuda.get_device_properties(i).total_memory / 2**30}
        for i in range(torch.cuda.device_count())
    ]
    found["mps"] = bool(torch.backends.mps.is_available())
    found["built_for"] = torch.version.cuda or torch.version.hip or "cpu"
    found["gloo"] = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    import torchvision
    found["torchvision"] = torchvision.__version__
    found["nms"] = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5).tolist()
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("PROBE" + json.dumps(found))
"""

PAIR_REMEDY = (
    "install a matching pair from one index, for example: pip install --force-reinstall torch torchvision "
    "--index-url https://download.pytorch.org/whl/cpu (or the CUDA index of your machine)"
)


def probe(timeout: float = 120) -> dict:
    """What torch and torchvision say of themselves in a process of their own; ``error`` where they do not import."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch took longer than {timeout:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("PROBE"):
            return json.loads(line.removeprefix("PROBE"))
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return {"error": f"the process ended with code {done.returncode}: {last[0]}"}


def pair() -> str | None:
    """What torchvision's metadata ask of torch, where the installed one differs."""
    from packaging.requirements import Requirement

    have = importlib.metadata.version("torch")
    for text in importlib.metadata.requires("torchvision") or []:
        requirement = Requirement(text)
        if requirement.name == "torch" and not requirement.specifier.contains(have, prereleases=True):
            return str(requirement)
    return None


def check_torch(found: dict) -> list[Finding]:
    """torch and torchvision import and fit each other; which accelerator there is."""
    if "error" in found:
        remedy = PAIR_REMEDY if "torch" in found else "pip install 'torch>=2.11' torchvision"
        have = f"torch {found['torch']}, torchvision" if "torch" in found else "torch"
        return [Finding("fail", "torch", f"{have} does not import: {found['error']}", remedy)]
    findings = [Finding("ok", "torch", f"torch {found['torch']} and torchvision {found['torchvision']} fit each other")]
    wanted = pair()
    if wanted is not None:
        findings = [Finding("fail", "torch", f"torchvision {found['torchvision']} wants {wanted}, this is {found['torch']}", PAIR_REMEDY)]
    if found["devices"]:
        text = ", ".join(f"{device['name']} ({device['gib']:.0f} GiB)" for device in found["devices"])
        findings.append(Finding("ok", "accelerator", text))
    elif found["mps"]:
        findings.append(Finding("note", "accelerator", "Apple MPS is there but not tested with this suite", "--trainer.accelerator cpu"))
    else:
        nvidia = shutil.which("nvidia-smi")
        if nvidia and found["built_for"] == "cpu":
            findings.append(Finding("warn", "accelerator", "there is an NVIDIA driver, but torch is built for the CPU only", PAIR_REMEDY))
        else:
            findings.append(Finding("note", "accelerator", f"none: training runs on the CPU with {found['threads']} threads"))
    if not found["gloo"]:
        findings.append(Finding("warn", "gloo", "torch has no gloo backend: several processes on the CPU do not work", PAIR_REMEDY))
    return findings


def check_clash() -> list[Finding]:
    """OpenMMLab's package of the same import name."""
    import mmpretrain_cli_entry

    problem = mmpretrain_cli_entry.clash()
    if problem:
        text, _, remedy = problem.partition(" Remedy: ")
        return [Finding("fail", "installation", text, remedy)]
    ours = importlib.metadata.packages_distributions().get("mmpretrain", [])
    others = sorted(set(ours) - {"mmpretrain-vl"})
    if others:
        return [Finding("fail", "installation", f"{others[0]} also provides 'mmpretrain'", f"pip uninstall {others[0]}")]
    return [Finding("ok", "installation", "no other package provides 'mmpretrain'")]


def check_memory() -> list[Finding]:
    """Free memory, with the limit of a container where there is one."""
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return [Finding("note", "memory", "cannot be read on this system")]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    gib = free / 2**30
    if gib < 2:
        return [Finding("warn", "memory", f"{gib:.1f} GiB free", "close other programs, or use --data.workers 0 and a smaller batch")]
    return [Finding("ok", "memory", f"{gib:.1f} GiB free")]


def check_cache() -> list[Finding]:
    """The cache, and how much the copies of remote shards take."""
    from mmpretrain.data.cache import cache_root
    from mmpretrain.data.shard_cache import ShardCache

    copies, size = ShardCache(0).usage()
    return [Finding("note", "cache", f"{cache_root()} holds {copies} copies of remote shards, {size / 1e9:.1f} GB")] if copies else []


def check_disk() -> list[Finding]:
    """TMPDIR can be written and has room; checkpoints and TMPDIR on different file systems is a note."""
    findings = []
    for name, folder in (("TMPDIR", Path(tempfile.gettempdir())), ("current folder", Path.cwd())):
        if not os.access(folder, os.W_OK):
            findings.append(Finding("fail" if name == "TMPDIR" else "warn", name, f"{folder} cannot be written", f"set {name} elsewhere"))
            continue
        gib = shutil.disk_usage(folder).free / 2**30
        level, remedy = ("warn", "free some space or point it elsewhere") if gib < 2 else ("ok", "")
        findings.append(Finding(level, name, f"{folder}: {gib:.1f} GiB free", remedy))
    if Path(tempfile.gettempdir()).stat().st_dev != Path.cwd().stat().st_dev:
        text = "TMPDIR and the current folder are on different file systems; checkpoints are written beside their target, so this is safe"
        findings.append(Finding("note", "file systems", text))
    return findings


def check_wandb() -> list[Finding]:
    """Whether W&B is installed, has a key, and what a run will therefore do."""
    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return [Finding("warn", "W&B", "not installed: runs are logged to metrics.jsonl only", "pip install wandb")]
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        return [Finding("note", "W&B", f"wandb {version}, WANDB_MODE={mode}", "unset WANDB_MODE to upload")]
    if not has_key():
        return [Finding("note", "W&B", f"wandb {version}, no key: runs are kept offline", "wandb login, then wandb sync RUN/wandb/*")]
    return [Finding("ok", "W&B", f"wandb {version}, with a key")]


def check_versions() -> list[Finding]:
    """Every required distribution is there and new enough."""
    from packaging.requirements import Requirement

    try:
        required = importlib.metadata.requires("mmpretrain-vl") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("note", "requirements", "running from a source tree that is not installed", "pip install .")]
    findings = []
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("fail", requirement.name, "not installed", f"pip install '{text}'"))
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            findings.append(Finding("fail", requirement.name, f"{have} is too old", f"pip install '{text}'"))
    return findings or [Finding("ok", "requirements", "every required package is there and new enough")]


def examine(begin: Callable[[str], None] = lambda what: None) -> Iterator[Finding]:
    """All findings, in the order shown, each as soon as it is known. ``begin`` is told what is looked at next."""
    yield Finding("ok", "python", sys.version.split()[0])
    begin("the installation")
    yield from check_clash()
    yield from check_versions()
    begin("torch")
    yield from check_torch(probe())
    begin("memory and disk")
    yield from check_memory()
    yield from check_disk()
    yield from check_cache()
    yield from check_wandb()


def run(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain doctor", description="Check this machine and this installation, with remedies.")
    parser.add_argument("--json", action="store_true", help="as JSON, one object a finding")
    options = parser.parse_args(argv[1:])
    if options.json:
        findings = list(examine())
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
        return _code(findings)
    from rich.console import Console
    from rich.text import Text

    console, findings = Console(highlight=False), []
    with console.status("checking") as status:  # at a terminal alone; the console flushes each line
        for found in examine(lambda what: status.update(f"checking {what}")):
            findings.append(found)
            line = Text.assemble((f"{found.level:>5}", LEVELS[found.level]), "  ", (found.subject, "bold"), f": {found.text}")
            console.print(line.append(f"\n       remedy: {found.remedy}" if found.remedy else ""), soft_wrap=True)
    return _code(findings)


def _code(findings: Iterable[Finding]) -> int:
    return 1 if any(found.level == "fail" for found in findings) else 0
