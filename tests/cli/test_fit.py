"""``fit`` from a recipe to the table, resuming it, and the commands on what it left: in one process, on a few generated scenes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from helpers import scene_regions

from mmpretrain.cli.main import main
from mmpretrain.cli.systems import recipes
from mmpretrain.data.decode import decode_image
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data_tools import scenes

pytestmark = pytest.mark.usefixtures("alone")
TINY = ["--data.batch_size", "8", "--data.workers", "0", "--data.val_batch_size", "8", "--data.text.vocab_size", "300"]
FEW = ["--loggers", "[csv]", "--trainer.log_every_n_steps", "1", "--final.samples", "4", "--measure.samples", "4", "--panels.samples", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write(folder / "train", 24, 0, "train", shard_size=12, progress=False)
    scenes.write(folder / "val", 8, 0, "val", shard_size=8, progress=False)
    return folder


def sources(shards: Path) -> list[str]:
    return ["--data.train", str(shards / "train"), "--data.val", json.dumps({"few": str(shards / "val")})]


def fit(shards: Path, *words: str) -> Path:
    """Run ``fit`` and return the folder of the newest run."""
    assert main(["fit", *words, *sources(shards), *TINY, *FEW]) == 0
    return max(Path("runs").iterdir(), key=lambda path: path.stat().st_mtime)


def test_a_run_its_resumption_and_what_it_left(shards, capfd):
    run = fit(shards, "--config", "vilt.yaml", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    shown = capfd.readouterr()
    assert run.name.startswith("vilt-")
    for text in ("retrieval/few/i2t_R@1", "retrieval/few/t2i_R@10", "mlm/few/accuracy", "matching/few/random/accuracy", "samples/s"):
        assert text in shown.out
    for text in ("share of time waiting for data", "checkpoint", "report.html"):
        assert text in shown.out
    assert "Traceback" not in shown.err

    result = json.loads((run / "result.json").read_text())
    names = {row["name"] for row in result["rows"]}
    assert {"retrieval/few/i2t_R@1", "mlm/few/accuracy", "speed/samples_per_s", "data/wait_share"} <= names
    assert Path(result["checkpoint"]).exists() and Path(result["best"]).name == "best.ckpt"
    assert (run / "report.html").stat().st_size > 10_000
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 2

    inside = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["mmpretrain"]["config"]
    assert inside == yaml.safe_load((run / "config.yaml").read_text())
    made_by = json.loads((run / "environment.json").read_text())["pictures"]
    assert made_by["decoder"] == inside["data"]["image"]["decoder"] != "auto" and made_by["difference_to_pil"]["mean"] < 1

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    again = ["--ckpt_path", str(run), "--trainer.max_steps", "3", "--model.optimizer.lr", "1e-5", "--model.optimizer.matrix_lr", "1e-5"]
    assert main(["fit", *again]) == 0  # everything else comes from the checkpoint
    shown = capfd.readouterr()
    assert "trainer.max_steps: 3 here, 2 in the checkpoint; 3 is used" in shown.err
    lr = inside["model"]["optimizer"]["init_args"]["lr"]
    assert f"model.optimizer.init_args.lr: 1e-05 here, {lr} in the checkpoint" in shown.err
    assert shown.err.count(" in the checkpoint") == 3
    assert [path.name for path in Path("runs").iterdir()] == [run.name]  # continued in its folder
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3 and steps == sorted(steps)
    rates = [json.loads(line).get("train/lr") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [rate for rate in rates if rate is not None][-1] <= 1e-5  # what was typed wins over the optimiser's state

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert fit(shards, "--config", "vilt.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4") == run  # the recipe over the checkpoint
    assert f"model.optimizer.init_args.lr: {lr} here, 1e-05 in the checkpoint" in capfd.readouterr().err

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert main(["validate", "--ckpt_path", "last"]) == 0
    assert main(["predict", "--ckpt_path", "last"]) == 0
    said = capfd.readouterr().out
    assert said.count("/i2t_median_rank ") == 1  # whole names of metrics, each once
    assert "(8 rows)" in said and (run / "predictions" / "step-00000004.parquet").exists()
    assert main(["evaluate", str(run), "--only", "mlm", "--limit", "4", "--out", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text())["rows"]
    Path("classes.txt").write_text("circle\nsquare\n")
    evaluate = ["evaluate", str(run), "--data", str(shards / "val"), "--only", "zeroshot", "--limit", "4", "--classes", "classes.txt"]
    assert main(evaluate) == 2 and "no sample has the key 'label'" in capfd.readouterr().err
    assert main(["embed", str(run), "--data", str(shards / "val"), "--out", "vectors.npz"]) == 0
    assert Path("vectors.npz").exists()
    assert main(["report", str(run), "--out", "page.html"]) == 0 and Path("page.html").exists()
    assert main(["data", "index", str(shards / "train")]) == 0
    assert "24 samples in 2 shards" in capfd.readouterr().out


@pytest.mark.fault(46)
def test_last_that_is_torn_and_other_shards(shards, capfd):
    """A torn ``last`` is passed over; other shards keep the tokenizer of the checkpoint; typed folders and seeds count."""
    root = ["--trainer.default_root_dir", "elsewhere"]
    quick = ["--final.measure", "false", "--measure.only", "[]"]
    words = ["fit", "--config", "vilt.yaml", *sources(shards), *TINY, *FEW, *quick, *root, "--checkpoints.every_n_steps", "1"]
    assert main([*words, "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]) == 0
    (run,) = Path("elsewhere").iterdir()
    with (run / "checkpoints" / "step-00000002.ckpt").open("r+b") as file:
        file.truncate(1000)
    os.environ.pop("MMPRETRAIN_RUN_DIR")
    assert main([*words, "--ckpt_path", "last", "--trainer.max_steps", "3"]) == 0
    assert list(Path("elsewhere").iterdir()) == [run] and "trying the checkpoint before it" in capfd.readouterr().out

    os.environ.pop("MMPRETRAIN_RUN_DIR")
    other = ["--data.train", str(shards / "val"), "--data.allow_data_change", "true"]
    assert main([*words, "--ckpt_path", str(run), "--trainer.max_steps", "4", *other]) == 0
    texts = [torch.load(run / "checkpoints" / f"step-0000000{n}.ckpt", weights_only=True)["mmpretrain"]["tokenizer"] for n in (3, 4)]
    assert texts[0] == texts[1]

    third = ["--ckpt_path", str(run / "checkpoints" / "step-00000003.ckpt"), "--trainer.max_steps", "4"]
    assert main([*words, *third, "--data.text.vocab_size", "150"]) == 2
    assert "trained with another tokenizer" in capfd.readouterr().err
    assert main([*words, *third, "--seed_everything", "7"]) == 2
    assert "was trained with data.seed=0, not 7" in capfd.readouterr().err


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    """Scenes with and without regions."""
    folder = tmp_path_factory.mktemp("regions")
    for split, n in (("train", 24), ("val", 8)):
        scene_regions.write(folder / split, n, split)
    return folder


@pytest.mark.parametrize("recipe", [r.recipe for r in recipes() if "/" not in r.recipe])
def test_every_recipe_takes_two_steps(regions, recipe):
    words = ["--config", recipe, "--config", "debug.yaml", "--trainer.max_steps", "2", "--final.measure", "false"]
    assert main(["fit", *words, *scene_regions.sources(recipe, regions / "train", regions / "val"), *TINY, *FEW]) == 0
    (run,) = Path("runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    most = 100 if recipe == "lxmert.yaml" else 20  # its sums over objects are divided by 0.15
    assert len(losses) == 2 and all(0 < loss < most for loss in losses)


def test_accumulation_and_clipping_are_the_engines(shards):
    run = fit(shards, "--config", "clip.yaml", "--trainer.max_steps", "1", "--trainer.accumulate_grad_batches", "2",
              "--trainer.gradient_clip_val", "0.5", "--model.backward", "cached", "--final.measure", "false")  # fmt: skip
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["accumulate_grad_batches"] == 2 and config["trainer"]["gradient_clip_val"] == 0.5


def test_generated_scenes_by_command(tmp_path, capfd):
    assert main(["data", "scenes", "--out", "made", "--n", "6", "--seed", "3", "--shard-size", "4"]) == 0
    assert len(list(Path("made").rglob("*.tar"))) == 2
    more = ["--split", "pairs", "--size", "48", "--workers", "1"]
    assert main(["data", "scenes", "--out", "pairs", "--n", "2", *more]) == 0
    made = ShardReader(expand("pairs")).read(0)
    assert [decode_image(data).size for data in made.images] == [(48, 48)] * 2
    assert main(["data", "scenes", "--out", "none", "--n", "0"]) == 2
