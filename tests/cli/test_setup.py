"""Before the first step: one seed gives one set of weights under every strategy, and a set-up that fails leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import scene_regions
from train.fakes import FakeData
from train.runs import build, trainer

from mmpretrain.cli.main import main
from mmpretrain.cli.train import prepare
from mmpretrain.train import run_dir

pytestmark = pytest.mark.usefixtures("alone")
TINY = ["--config", "vilt.yaml", "--config", "debug.yaml", "--data.batch_size", "8", "--data.workers", "0", "--data.text.vocab_size", "120"]


def drawn(eight: Path, strategy: str) -> dict[str, torch.Tensor]:
    """What the command line draws, the heads included, before any sharding."""
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    words = [*TINY, "--data.train", str(eight), "--loggers", "[]", "--trainer.strategy", strategy, "--seed_everything", "3"]
    module = prepare("fit", words).model
    module.vocabulary = FakeData().vocabulary
    module.configure_model()
    return module.root.state_dict()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_the_same_seed_draws_the_same_weights_under_every_strategy(eight: Path, strategy: str) -> None:
    one, other = drawn(eight, "auto"), drawn(eight, strategy)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wrong", [["--data.train", "no/such/folder"], ["--model.objectives.itm.init_args.negatives", "{pictures: 1.0}"]])
def test_a_failed_set_up_leaves_no_folder(wrong: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TINY, *wrong]) == 2
    assert "error" in capfd.readouterr().err and list(Path("runs").glob("*")) == []
    assert "MMPRETRAIN_RUN_DIR" not in os.environ


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--data.image.size", "60", "--data.image.multiple", "12"], "no multiples of patch_size=8: set data.image.multiple=8 (mode vilt)"),
        (["--data.max_tokens", "70", "--data.text", "{tokenizer: byte_bpe, vocab_size: 261}"], "fit 64 positions: lower data.max_tokens"),
    ],
)
def test_data_that_do_not_fit_the_model_are_one_line(wrong: list[str], says: str, eight: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sets = ["--data.train", str(eight), "--data.val", f"{{scenes: {eight}}}", "--loggers", "[]"]
    assert main(["fit", *TINY, *sets, *wrong]) == 2
    error = capfd.readouterr().err
    assert "mmpretrain: error: " in error and says in error and "Traceback" not in error
    assert list(Path("runs").glob("*")) == []


ITM = "itm: {class_path: mmpretrain.objectives.itm.ITM, init_args: {view: main}}"
MLM = "mlm: {class_path: mmpretrain.objectives.mlm.MLM}"
MRC = "mrc: {class_path: mmpretrain.objectives.mrc.MRC, init_args: {target: kl}}"
MRFR = "mrfr: {class_path: mmpretrain.objectives.mrfr.MRFR, init_args: {tied: false, masker: {prob: 0.3}}}"


@pytest.mark.parametrize(
    ("objectives", "says"),
    [
        ((MLM, ITM), "itm: the text is masked already; name it before the objectives of its view that mask text"),
        ((MRC, ITM), "put ITM before"),
        ((MRC, MRFR), "mrfr: "),
    ],
)
def test_objectives_that_do_not_fit_each_other_are_one_line(
    objectives: tuple[str, ...], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scene_regions.write(tmp_path / "few", 8)
    few = tmp_path / "few" / "regions"
    (tmp_path / "mine.yaml").write_text(f"model: {{objectives: {{{', '.join(objectives)}}}}}\ndata: {{val: {{few: {few}}}}}\n")
    words = ["--config", "vilbert.yaml", *TINY[2:], "--config", str(tmp_path / "mine.yaml"), "--data.train", str(few), "--loggers", "[]"]
    assert main(["fit", *words]) == 2
    error = capfd.readouterr().err
    assert "mmpretrain: error: " in error and says in error and "Traceback" not in error
    assert list(Path("runs").glob("*")) == []


def test_a_folder_with_results_is_never_discarded(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    for folder in (kept, gone):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "wandb").mkdir()
        for name in ("config.yaml", "environment.json", "wandb/run.wandb"):
            (folder / name).write_text("x")
    (kept / "checkpoints" / "step-00000001.ckpt").write_text("x")
    run_dir.discard(kept)
    run_dir.discard(gone)
    assert kept.is_dir() and not gone.exists()


def test_an_error_in_set_up_is_not_hidden_by_parameters_on_meta() -> None:
    with torch.device("meta"):
        module = build()

    class NoData(FakeData):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError(2, "No such file", "shards")

    with pytest.raises(FileNotFoundError, match="shards"):
        trainer(1).fit(module, datamodule=NoData())
