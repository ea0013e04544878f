"""Which checkpoint ``last`` is, what a checkpoint may decide, and what a refused resumption leaves as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import checkpoint

from mmpretrain.cli.errors import UserError
from mmpretrain.cli.layering import layer
from mmpretrain.cli.main import main
from mmpretrain.cli.resume import NothingSaved, find_checkpoint, trusted
from mmpretrain.cli.train import prepare
from mmpretrain.train import run_dir

pytestmark = pytest.mark.usefixtures("alone")
TINY = ["--config", "vilt.yaml", "--config", "debug.yaml", "--data.batch_size", "4", "--data.workers", "0", "--data.text.vocab_size", "120"]
SPELLINGS = [{"data": {"allow_pipe": True}}, {"data.allow_pipe": True}, {"config": ["{data: {allow_pipe: true}}"]}]
QUICK = ["--loggers", "[]", "--final.measure", "false", "--measure.only", "[]", "--trainer.enable_progress_bar", "false"]


def saved(name: str, when: int, *links: str) -> Path:
    """The folder of a run that has a checkpoint, last changed at ``when``."""
    folder = Path(name) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000002.ckpt").touch()
    for link in links:
        (folder / f"{link}.ckpt").symlink_to("step-00000002.ckpt")
    os.utime(folder, (when, when))
    return folder


def test_last_is_that_of_the_recipe() -> None:
    vilt, clip = saved("runs/vilt-20260101-120000", 100, "last"), saved("runs/clip-20260102-120000", 200, "last", "best")
    saved("runs/vilt-long-20260103-120000", 150, "last")
    assert find_checkpoint("last", recipe="vilt") == vilt / "last.ckpt"
    assert find_checkpoint("last") == find_checkpoint("last", recipe="clip") == clip / "last.ckpt"
    with pytest.raises(UserError, match=r"no run of vilt under .* has a checkpoint yet"):
        find_checkpoint("best", recipe="vilt")
    (vilt / "last.ckpt").unlink()  # killed before the link was made
    assert find_checkpoint("last", recipe="vilt") == vilt / "step-00000002.ckpt"


def test_last_of_a_named_run_is_never_that_of_another(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    saved("runs/vilt-20260101-120000", 100, "last", "best")
    monkeypatch.setenv(run_dir.VARIABLE, "mine")
    with pytest.raises(NothingSaved, match="mine, which MMPRETRAIN_RUN_DIR names, has no such checkpoint yet"):
        find_checkpoint("last", recipe="vilt")
    for words in (["validate", "--ckpt_path", "last"], ["fit", "--config", "vilt.yaml", "--ckpt_path", "best"]):
        assert main(words) == 2
        assert "mine, which MMPRETRAIN_RUN_DIR names" in capfd.readouterr().err
    mine = saved("mine", 50, "last")
    assert find_checkpoint("last", recipe="clip") == mine / "last.ckpt"


def test_a_job_script_starts_and_goes_on_and_a_refusal_changes_nothing(
    eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same command at the first start and after it was queued again."""
    monkeypatch.setenv(run_dir.VARIABLE, "job")
    saved("runs/vilt-20260101-120000", 100, "last")  # of somebody else
    script = ["fit", *TINY, *QUICK, "--data.train", str(eight), "--data.val", "{}", "--ckpt_path", "last", "--trainer.max_steps"]
    assert main([*script, "1"]) == 0
    assert capfd.readouterr().err.count("has no such checkpoint yet; the run starts at the beginning\n") == 1
    run = Path("job")
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "environment.json")}
    assert main([*script, "2", "--seed_everything", "7"]) == 2
    assert "was trained with data.seed=0, not 7" in capfd.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert main([*script, "2"]) == 0
    assert "starts at the beginning" not in capfd.readouterr().err
    assert (run / "config.yaml").read_bytes() != before["config.yaml"]
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*.ckpt"))] == ["step-00000001.ckpt", "step-00000002.ckpt"]


def canary(path: Path, **spelling: Any) -> Path:
    """A checkpoint from elsewhere whose training set is a command that makes the file ``canary``, allowed by itself."""
    content = torch.load(checkpoint(path), weights_only=True)
    config = layer(["vilt.yaml"]).config
    source = f"pipe:{sys.executable} -c \"open('canary', 'w')\""
    data = {**config["data"], "train": source, "val": {"a": source}, "workers": 0, **spelling.pop("data", {})}
    content["mmpretrain"]["config"] = {**config, "data": data, **spelling}
    torch.save(content, path)
    return path


@pytest.mark.fault(51)
@pytest.mark.parametrize("spelling", SPELLINGS, ids=["nested", "dotted", "a further file"])
@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_checkpoint_does_not_allow_its_own_commands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, spelling: dict[str, Any]
) -> None:
    path = canary(tmp_path / "foreign.ckpt", **spelling)
    assert main([command, "--ckpt_path", str(path), *(QUICK if command == "fit" else [])]) == 2
    assert "it would run a command; data.allow_pipe=true allows it" in capfd.readouterr().err
    assert not Path("canary").exists()


PARTS = ("system", "schedule", "optimizer", "transforms", "objectives")
NAMED = ["trainer.strategy", "trainer.callbacks", *(f"model.{part}" for part in PARTS)]
RUNS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}  # would make a file


@pytest.mark.fault(51)
@pytest.mark.parametrize("key", NAMED)
def test_a_checkpoint_names_no_class_of_another_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str) -> None:
    """What may be named is a model, an objective, a callback and so on, never any callable."""
    path = canary(tmp_path / "foreign.ckpt")
    content = torch.load(path, weights_only=True)
    section, _, name = key.partition(".")
    named: Any = {"mlm": RUNS} if name == "objectives" else [RUNS] if name in ("transforms", "callbacks") else RUNS
    content["mmpretrain"]["config"].setdefault(section, {})[name] = named
    content["mmpretrain"]["config"]["data"].pop("train", None)
    torch.save(content, path)
    assert main(["fit", "--ckpt_path", str(path), *QUICK]) == 2
    error = capfd.readouterr().err
    assert "subprocess.Popen" in error and "Traceback" not in error and not Path("canary").exists()


def test_commands_are_allowed_by_what_is_typed_or_in_a_file_that_is_named(tmp_path: Path) -> None:
    words = ["--ckpt_path", str(canary(tmp_path / "own.ckpt", data={"allow_pipe": True}))]
    (tmp_path / "mine.yaml").write_text("data: {allow_pipe: true}\n")
    allowed = [prepare("validate", [*words, *more]).resolved["data"]["allow_pipe"] for more in ([], ["--data.allow_pipe", "true"])]
    assert allowed == [False, True]
    assert prepare("validate", [*words, "--config", "mine.yaml"]).resolved["data"]["allow_pipe"] is True


def test_a_section_as_one_text_is_refused(tmp_path: Path) -> None:
    kept = trusted({"data": {"allow_pipe": True, "train": "x"}, "model": {"a.b": 1}, "data.allow_pipe": True, "ckpt_path": "x"})
    assert kept == {"data": {"train": "x"}, "model": {"a.b": 1}}
    path = canary(tmp_path / "foreign.ckpt")
    content = torch.load(path, weights_only=True)
    content["mmpretrain"]["config"]["data"] = "{allow_pipe: true}"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"foreign.ckpt: the configuration inside is no mapping"):
        prepare("validate", ["--ckpt_path", str(path)])


def test_a_logger_that_is_not_installed_is_one_line(
    eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lightning.fabric.loggers import tensorboard

    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    assert main(["fit", *TINY, "--data.train", str(eight), "--loggers", "[tensorboard]"]) == 2
    error = capfd.readouterr().err
    assert "tensorboard is not installed; pip install 'mmpretrain-vl[tensorboard]'" in error and "Traceback" not in error
    assert list(Path("runs").glob("*")) == []
