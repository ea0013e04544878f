"""Training on a mixture: every step computes the objectives of its source, on any layout, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from train.mixtures import data, fit, module, write
from train.runs import largest
from train.spawn import ranks

from mmpretrain.data.errors import DataError

SCRIPT = Path(__file__).with_name("mixtures.py")
LAYOUTS = ("ddp:1", "ddp:2", "fsdp2:1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mixture"))


def test_steps_follow_their_sources(folder: Path, tmp_path: Path) -> None:
    found = fit(folder, 10, tmp_path)
    kinds = {"pairs": (True, True), "books": (True, False), "photos": (False, True)}
    assert all(kinds[source] == (text, image) for source, text, image in found["seen"])
    sources = [source for source, *_ in found["seen"]]
    assert sources[:4].count("pairs") == 2 and sources.count("photos") == 2  # one epoch of 16 pictures, then it leaves
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    for line, source in zip(steps, sources, strict=True):
        computed = {name for name in ("mlm", "itm", "bright") if f"train/{name}/loss" in line}
        assert computed == {"pairs": {"mlm", "itm"}, "books": {"mlm"}, "photos": {"bright"}}[source]
    assert {n: steps[-1][f"data/{n}/samples"] for n in kinds} == {n: 8.0 * sources.count(n) for n in kinds}
    assert steps[-1]["data/bad"] == 0
    assert {"val/mlm/loss", "val/itm/loss", "val/books/mlm/loss"} <= found["metrics"].keys()
    assert "val/books/itm/loss" not in found["metrics"]  # the set has the name of a source without pictures


@pytest.mark.fault(34)
def test_a_mixture_is_stopped_and_resumed(folder: Path, tmp_path: Path) -> None:
    whole = fit(folder, 9, limit_val_batches=0)
    first = fit(folder, 4, save=str(tmp_path / "a.ckpt"), limit_val_batches=0)
    rest = fit(folder, 9, ckpt=str(tmp_path / "a.ckpt"), limit_val_batches=0)
    assert first["losses"] + rest["losses"] == whole["losses"] and first["seen"] + rest["seen"] == whole["seen"]
    assert all(torch.equal(value, rest["parameters"][name]) for name, value in whole["parameters"].items())


@pytest.mark.slow
def test_ranks_take_equal_steps_of_a_mixture(folder: Path, tmp_path: Path) -> None:
    one = fit(folder)
    out = tmp_path / "found.pt"
    for rank, done in enumerate(ranks(SCRIPT, str(out), str(folder), *LAYOUTS)):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    for layout, two in torch.load(out, weights_only=True).items():
        assert two["seen"] == one["seen"] and largest(one["losses"], two["losses"]) < 1e-5, layout


def test_objectives_and_sources_that_do_not_fit_are_refused(folder: Path) -> None:
    everything, preparers = module().objective_sources, module().preparers()
    for sources, message in [
        ({**everything, "mlm": ("papers",)}, "objective 'mlm' reads the source 'papers'; data.train has pairs, books, photos"),
        ({"mlm": ("pairs", "books"), "itm": ("pairs",)}, "no objective reads the source 'photos'"),
    ]:
        with pytest.raises(DataError, match=message):
            data(folder).configure(sources=sources, preparers=preparers)
    with pytest.raises(DataError, match=r"reads some sources only; set data\.mix=batch"):
        data(folder, mix="sample").configure(sources=everything)
    with pytest.raises(DataError, match=r"pairs of 'pairs' and texts of 'books' .* into one batch; set data.mix=batch"):
        data(folder, mix="sample").setup("fit")
    made = data(folder)
    made.configure(preparers=preparers)  # nothing says that matching reads pairs alone
    made.setup("fit")
    with pytest.raises((DataError, ValueError), match="name the sources"):
        list(made.train_dataloader())
