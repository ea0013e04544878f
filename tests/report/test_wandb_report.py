"""The definition of a W&B report, without W&B."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpretrain.report.run import NoRunError
from mmpretrain.report.wandb import DEFINITION, write_definition

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import write_run


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_the_definition_names_every_section_and_metric(tmp_path: Path) -> None:
    run = write_run(tmp_path / "vilt-20260101-120000", steps=8, panels=(8,))
    (run / "wandb" / "offline-run-20260101_120001-abc123").mkdir(parents=True)
    told = write_definition(run)
    assert "no W&B key" in told and told.startswith(str(run / DEFINITION))
    described = json.loads((run / DEFINITION).read_text())
    assert [section["name"] for section in described["sections"]] == ["Loss", "Objectives", "Validation", "Speed", "Data", "Pictures"]
    drawn = {name for section in described["sections"] for panel in section["panels"] for name in panel.get("y", panel.get("keys"))}
    assert {"train/loss", "val/mlm/loss", "val/retrieval/scenes/i2t_R@1", "data/wait_share", "pictures/masked"} <= drawn
    assert described["run"] == "vilt-20260101-120000" and described["run_id"] == "abc123" and described["project"] == "mmpretrain"


def test_another_file_and_an_offline_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", steps=4, panels=())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE is offline" in write_definition(run, tmp_path / "deep" / "w.json")
    for empty in ("", "online", "run"):  # as for a run
        monkeypatch.setenv("WANDB_MODE", empty)
        assert "WANDB_MODE" not in write_definition(run, tmp_path / "deep" / "w.json")
    assert (tmp_path / "deep" / "w.json").is_file() and not (run / DEFINITION).exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRunError):
        write_definition(tmp_path)


class _Reports(SimpleNamespace):
    """Stands for wandb_workspaces.reports.v2: every class keeps its arguments."""

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: SimpleNamespace(kind=name, args=args, url="https://example.invalid/r", save=lambda: None, **kwargs)


def test_with_a_key_it_is_sent_and_a_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", steps=4, panels=(4,))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    reports = _Reports()
    parent = SimpleNamespace(v2=reports)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", SimpleNamespace(reports=parent))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", parent)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", reports)
    assert write_definition(run).splitlines()[-1] == "https://example.invalid/r"

    def refuse(**kwargs):
        raise Exception("no network\nand more")

    reports.Report = refuse
    assert write_definition(run).splitlines()[-1] == "not sent: no network"
