"""The W&B dashboard: sections, offline without a key, and failures that never stop training."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

from mmpretrain.report.panels_schema import Guess, MaskedExample, MaskedPanel, Panel, RetrievalPanel, Word
from mmpretrain.report.wandb import mode
from mmpretrain.train import dashboard
from mmpretrain.train.dashboard import WandbDashboard, best, make_logger, masked_rows, section

METRICS = {"train/loss": 2.0, "train/mlm/loss": 1.5, "speed/samples_per_s": 80.0, "val/retrieval/coco/i2t_R@1": 0.5}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))  # without one W&B speaks of its log


class Recorder:
    """Stands for a W&B run."""

    def __init__(self, fails: bool = False) -> None:
        self.logged: list[dict] = []
        self.defined: dict[str, dict] = {}
        self.fails = fails

    def log(self, record: dict) -> None:
        if self.fails:
            raise BrokenPipeError("the service is gone")
        self.logged.append(record)

    def define_metric(self, name: str, **how) -> None:
        self.defined[name] = how


def _logger(tmp_path: Path, run: Recorder) -> WandbDashboard:
    logger = make_logger(tmp_path / "vilt-20260101-120000", "vilt", {"a": 1}, ["tiny"])
    assert logger is not None
    logger._experiment = run
    return logger


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("train/loss", "loss/train"),
        ("val/loss", "loss/val"),
        ("train/grad_norm", "loss/grad_norm"),
        ("train/lr/head", "loss/lr_head"),
        ("val/itm/accuracy", "objectives/itm_accuracy_val"),
        ("val/retrieval/coco/i2t_R@1", "validation/retrieval_coco_i2t_R@1"),
        ("memory/rss_gib", "speed/memory_rss_gib"),
        ("speed/tokens_per_s", None),
        ("data/wait_share", None),
        ("epoch", None),
    ],
)
def test_every_metric_has_its_section(name: str, place: str | None) -> None:
    assert section(name) == place
    assert (place or name).split("/")[0] in (*dashboard.SECTIONS, "epoch")


def test_metrics_keep_their_names_and_appear_in_their_section(tmp_path: Path) -> None:
    run = Recorder()
    _logger(tmp_path, run).log_metrics(METRICS, 7)
    sent = run.logged[0]
    assert METRICS.items() <= sent.items() and sent["trainer/global_step"] == 7
    assert sent["loss/train"] == 2.0 and sent["objectives/mlm_loss"] == 1.5 and sent["validation/retrieval_coco_i2t_R@1"] == 0.5
    assert run.defined["loss/train"]["summary"] == "min" and run.defined["validation/retrieval_coco_i2t_R@1"]["summary"] == "max"
    assert best("speed/samples_per_s") == "last"


def test_the_first_failure_is_one_warning_and_then_silence(tmp_path: Path) -> None:
    logger = _logger(tmp_path, Recorder(fails=True))
    with pytest.warns(UserWarning, match="W&B failed .*BrokenPipeError: the service is gone"):
        logger.log_metrics(METRICS, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics(METRICS, 2)
        logger.log_hyperparams({"a": 1})
        logger.show(Panel("retrieval", 2, RetrievalPanel((), (), 0, 0, "itm")), [Image.new("RGB", (4, 4))])
        logger.finalize("success")
        logger.finish()
    assert logger.location() is None


def test_the_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled" and make_logger(tmp_path) is None
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"


def test_masked_words_as_a_table() -> None:
    words = (Word("a"), Word("red", (Guess("blue", 0.6), Guess("red", 0.3))), Word("dish", (), True))
    assert masked_rows(MaskedPanel((MaskedExample(words),))) == [["a [MASK]dish", "red", "blue", 0.6, False, "red"]]


def test_a_real_run_without_a_key_is_offline_and_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = make_logger(tmp_path / "vilt-20260101-120000", "vilt", {"model": {"width": 4}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics(METRICS, 1)
        logger.show(Panel("retrieval", 1, RetrievalPanel((), (), 0, 0, "itm")), [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 5))])
        logger.show(Panel("masked", 1, MaskedPanel((MaskedExample((Word("a", (Guess("b", 0.5),)),)),))), [])
        where = Path(logger.location())
        logger.finalize("success")
        logger.finish()
    assert where.is_relative_to(tmp_path / "vilt-20260101-120000" / "wandb") and list(where.glob("*.wandb"))
    assert list(where.glob("files/media/images/pictures/*.png")) and list(where.glob("files/media/table/pictures/*.json"))
    assert capfd.readouterr() == ("", "")
