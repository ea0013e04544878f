"""CLIP trained by ``mmpretrain fit`` against open_clip's own model, loss, tokenizer and schedule in a plain loop, on the emoji shards.

    MMPRETRAIN_REAL_SHARDS=/path/to/shards python benchmarks/clip_yardstick.py --seeds 3 --steps 200 --out yardstick.json

For every seed both start from the weights that open_clip draws and see the same pixels and captions in the same order (checked at every
step), with the same optimiser settings and steps. What follows ``--`` goes to ``fit`` and changes both sides. Retrieval on emoji_val is
measured alike, and the difference in R@10 (ours - theirs) gets a paired 95 % bootstrap interval: over all queries of all seeds, and,
wider where queries of one sample go together, over samples. The criterion is a lower end of at least -1 point. Speed is that of a step,
without the data, in samples per second of processor time, which other processes on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import open_clip
import torch
from open_clip_train.scheduler import cosine_lr
from paired import interval

from mmpretrain.cli import train as command
from mmpretrain.cli.errors import UserError, show
from mmpretrain.cli.quiet import quieten
from mmpretrain.data.decode import decode_image
from mmpretrain.data.module import ShardData
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.ranking import chance_recall, dense_standing
from mmpretrain.train.schedule import WarmupCosine
from mmpretrain.types import Batch, Pixels, Sample
from mmpretrain.weights import clip as names
from mmpretrain.weights import clip_config

VARIABLE = "MMPRETRAIN_REAL_SHARDS"
RECALLS, WAYS = (1, 5, 10), ("i2t", "t2i")
SLOTS, RESAMPLES = 77, 10_000
TIES = 1e-6  # cosines closer than this tie: rounding
LIMIT = -1.0  # points of R@10
TOWER = "--model.system.init_args.text.init_args"
FIT = [  # as a user types it; open_clip's vocabulary and context in place of the recipe's own
    "--config", "clip.yaml", "--config", "data/emoji.yaml", "--model.optimizer.lr", "5e-4", "--data.text.tokenizer", "clip",
    "--data.max_tokens", str(SLOTS), f"{TOWER}.vocab_size", "49408", f"{TOWER}.positions", str(SLOTS),
    "--trainer.accelerator", "cpu", "--trainer.devices", "1",
]  # fmt: skip


class Step(NamedTuple):
    """One optimiser step of one side."""

    keys: tuple[str, ...]
    pixels: int  # checksum
    loss: float
    cpu_s: float  # processor time of forward, backward and update
    wall_s: float


class Trained(NamedTuple):
    """One side after training: vectors of length 1 of the validation set, and its steps."""

    image_IE: torch.Tensor
    text_IE: torch.Tensor
    steps: list[Step]
    minutes: float  # of training and its data, validation included

    def hits(self, way: str, k: int) -> np.ndarray:
        """Recall at ``k`` of every query, float64 (I,)."""
        scores = self.image_IE @ self.text_IE.T if way == "i2t" else self.text_IE @ self.image_IE.T
        return dense_standing(scores, torch.eye(len(scores), dtype=torch.bool), TIES).recall(k)

    def recall(self) -> dict[str, float]:
        return {f"{way}_R@{k}": float(self.hits(way, k).mean()) for way in WAYS for k in RECALLS}

    def speed(self) -> dict[str, float]:
        """Samples per second of processor time and of wall time in the median step."""
        size = len(self.steps[0].keys)
        return {name: size / float(np.median([getattr(step, f"{name}_s") for step in self.steps])) for name in ("cpu", "wall")}


class Recorder(pl.Callback):
    """Notes the steps that ``fit`` takes."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        self.steps.append(Step(batch[0].keys, checksum(batch[0]), float(outputs["loss"]), cpu, wall))


def checksum(batch: Batch) -> int:
    return zlib.crc32(batch.image.pixels_BCHW.numpy().tobytes())


def captions(data: ShardData) -> dict[str, str]:
    """Key -> the caption of every training sample; an emoji has one."""
    return {sample.key: sample.captions[0] for sample in map(data.reader.read, range(len(data.reader)))}


def prepare(seed: int, args: argparse.Namespace, folder: Path) -> command.CLI:
    """The command ``fit`` just before its first step."""
    words = ["--trainer.max_steps", str(args.steps), "--trainer.val_check_interval", str(args.steps), "--data.workers", "0"]
    words += ["--data.batch_size", str(args.batch), "--loggers", "[]", "--seed_everything", str(seed)]
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    return command.prepare("fit", [*FIT, *words, "--trainer.default_root_dir", str(folder), *args.fit])


def network_like(cli: command.CLI, seed: int) -> open_clip.CLIP:
    """open_clip's model of the size of ours, with its own initial weights, which ours gets too."""
    config = clip_config.open_clip_config(cli.model.root.model)["model_cfg"]
    torch.manual_seed(seed)
    network = open_clip.CLIP(**config)
    cli.model.root.model.load_state_dict(names.from_open_clip(network.state_dict()))
    return network


def train_ours(cli: command.CLI, samples: list[Sample]) -> Trained:
    """All that ``mmpretrain fit`` does: training, measurements, checkpoints, the table and the report."""
    recorder = Recorder()
    cli.trainer.callbacks.append(recorder)
    began = time.perf_counter()
    cli.execute()
    minutes = (time.perf_counter() - began) / 60
    data, root = cli.datamodule, cli.model.root
    made = Pretrained.from_parts(root.model, root.objectives, data.tokenizer, data.transform, data.vocabulary)
    vectors = made.encode_image([sample.images[0] for sample in samples]), made.encode_text([sample.captions[0] for sample in samples])
    return Trained(*vectors, recorder.steps, minutes)


def batches(like: ShardData, steps: int) -> Iterator[Batch]:
    """The first ``steps`` batches of a new data module with the options of ``like``, across epochs."""
    same = ("batch_size", "text", "max_tokens", "image", "captions", "text_from", "seed", "block")
    options = {name: getattr(like, name) for name in same}
    data = ShardData(train=like.train_sources, workers=0, **options)
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        for (batch,) in loader:
            if steps == 0:
                return
            steps -= 1
            yield batch
            data.advance()


def groups_of(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """open_clip's two groups: gains, biases and the logit scale are not decayed."""
    named = list(network.named_parameters())
    free = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    kept = {id(p) for p in free}
    return [{"params": free, "weight_decay": 0.0}, {"params": [p for _, p in named if id(p) not in kept], "weight_decay": weight_decay}]


def train_theirs(network: open_clip.CLIP, ours: command.CLI, steps: int, samples: list[Sample]) -> Trained:
    """A plain loop with open_clip's model, loss, tokenizer, schedule and clamp, and the settings of our optimiser."""
    data, recipe, schedule = ours.datamodule, ours.model.optimizer, ours.model.schedule
    tokenizer, loss_of, words = open_clip.get_tokenizer("ViT-B-32"), open_clip.ClipLoss(), captions(data)
    if type(schedule) is not WarmupCosine or schedule.floor or recipe.kind != "adamw" or recipe.decay != "clip":
        raise UserError("open_clip's loop has AdamW with decay 'clip' and the schedule WarmupCosine with floor 0; use these")
    optimizer = torch.optim.AdamW(groups_of(network, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
    adjust = cosine_lr(optimizer, recipe.lr, schedule.warmup_steps(steps), steps)
    done: list[Step] = []
    network.train()
    started = time.perf_counter()
    for step, batch in enumerate(batches(data, steps)):
        text = tokenizer([words[key] for key in batch.keys], context_length=SLOTS)
        cpu, wall = time.process_time(), time.perf_counter()
        adjust(step)
        optimizer.zero_grad()
        image_BE, text_BE, scale = network(batch.image.floats(), text)[:3]
        loss = loss_of(image_BE, text_BE, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            network.logit_scale.clamp_(0, np.log(100))
        value = loss.item()
        done.append(Step(batch.keys, checksum(batch), value, time.process_time() - cpu, time.perf_counter() - wall))
    minutes = (time.perf_counter() - started) / 60
    network.eval()
    pixels = torch.stack([data.transform(decode_image(sample.images[0])) for sample in samples])
    size = tuple(pixels.shape[2:])
    image = Pixels(pixels, (size,) * len(pixels), data.transform.mean, data.transform.std).floats()
    with torch.no_grad():
        image_IE = network.encode_image(image, normalize=True)
        text_IE = network.encode_text(tokenizer([sample.captions[0] for sample in samples], context_length=SLOTS), normalize=True)
    return Trained(image_IE, text_IE, done, minutes)


def same_inputs(ours: Trained, theirs: Trained) -> None:
    """Raises RuntimeError where the two sides did not see the same samples and pixels at every step."""
    for number, (a, b) in enumerate(zip(ours.steps, theirs.steps, strict=True)):
        if a[:2] != b[:2]:
            raise RuntimeError(f"step {number}: the two sides saw different samples or pixels")


def show_table(rows: list[dict[str, Any]], chance: dict[int, float]) -> None:
    print(f"\n{'seed':<6}{'':<12}" + "".join(f"{way + ' R@' + str(k):>10}" for way in WAYS for k in RECALLS) + f"{'last loss':>11}")
    for row in rows:
        for side in ("ours", "open_clip"):
            values = "".join(f"{100 * row[side]['recall'][f'{way}_R@{k}']:>10.1f}" for way in WAYS for k in RECALLS)
            print(f"{row['seed']:<6}{side:<12}{values}{row[side]['last_loss']:>11.4f}")
    print(f"{'':<6}{'chance':<12}" + "".join(f"{100 * chance[k]:>10.1f}" for _ in WAYS for k in RECALLS))


def summary(trained: Trained) -> dict[str, Any]:
    losses = {"first_loss": trained.steps[0].loss, "last_loss": trained.steps[-1].loss}
    return {"recall": trained.recall(), "samples_per_second": trained.speed(), "minutes": trained.minutes, **losses}


def one_seed(seed: int, args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], np.ndarray, str]:
    """Train both sides; the row of the table, the differences in R@10 of each way and sample, and the fingerprint of the data."""
    cli = prepare(seed, args, folder)
    network = network_like(cli, seed)
    reader = cli.datamodule.val_reader("emoji_val")
    samples = [reader.read(i) for i in range(len(reader))]
    ours = train_ours(cli, samples)
    theirs = train_theirs(network, cli, args.steps, samples)
    same_inputs(ours, theirs)
    difference_WI = np.stack([ours.hits(way, 10) - theirs.hits(way, 10) for way in WAYS])
    losses = [(a.loss, b.loss) for a, b in zip(ours.steps, theirs.steps, strict=True)]
    row = {"seed": seed, "ours": summary(ours), "open_clip": summary(theirs), "run": str(cli.run)}
    row["largest_loss_difference"] = {n: max(abs(a - b) for a, b in losses[:n]) for n in (1, 10, 100, len(losses)) if n <= len(losses)}
    row["queries_that_differ"] = int((difference_WI != 0).sum())
    return row, difference_WI, cli.datamodule.fingerprint


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--runs", type=Path, help="keep the runs of fit in this folder")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("fit", nargs="*", help="after --: options of fit for both sides, such as --model.optimizer.lr 1e-3")
    return parser.parse_args()


def compare(args: argparse.Namespace, folder: Path) -> bool:
    """Run, print and save; whether the criterion is met."""
    rows, differences = [], []
    for seed in range(args.seeds):
        row, difference_WI, data = one_seed(seed, args, folder)
        rows.append(row)
        differences.append(difference_WI)
    difference_SWI = np.stack(differences)
    chance = {k: chance_recall([1], difference_SWI.shape[2], k) for k in RECALLS}
    show_table(rows, chance)
    units = {"queries": difference_SWI.ravel(), "samples": difference_SWI.mean(axis=(0, 1))}
    bounds = {unit: interval(100 * values, RESAMPLES) for unit, values in units.items()}
    mean = 100 * float(difference_SWI.mean())
    met = min(low for low, _ in bounds.values()) >= LIMIT
    print(f"\nours - open_clip in R@10, both ways, {args.seeds} seeds, {difference_SWI.size} queries: {mean:+.2f} points")
    for unit, (low, high) in bounds.items():
        print(f"  95 % interval over {unit}: {low:+.2f} to {high:+.2f} points ({RESAMPLES} resamples)")
    print(f"  criterion, lower end at least {LIMIT:+.0f} point: {'met' if met else 'NOT met'}")
    for side in ("ours", "open_clip"):
        speeds = [row[side]["samples_per_second"] for row in rows]
        cpu, wall = (float(np.median([speed[name] for speed in speeds])) for name in ("cpu", "wall"))
        print(f"  {side}: {cpu:.0f} samples per second of processor time, {wall:.0f} per second")
    if args.out:
        facts = {"steps": args.steps, "batch": args.batch, "fit": [*FIT, *args.fit], "data": data, "limit": LIMIT, "met": met}
        facts |= {"open_clip": open_clip.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        facts |= {"difference": mean, "intervals": bounds, "chance": {f"R@{k}": value for k, value in chance.items()}, "seeds": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"  written: {args.out}")
    return met


def main() -> int:
    args = parse()
    named = os.environ.get(VARIABLE)
    if not named or not all(Path(named, part).is_dir() for part in ("emoji_train", "emoji_val")):
        return show(f"{VARIABLE} must name the folder with the shards emoji_train and emoji_val; it is {named or 'not set'}")
    if args.seeds < 1 or args.steps < 1:
        return show(f"--seeds {args.seeds} and --steps {args.steps} must be at least 1")
    quieten()
    try:
        if args.runs:
            return 0 if compare(args, args.runs) else 1
        with tempfile.TemporaryDirectory() as folder:
            return 0 if compare(args, Path(folder)) else 1
    except (UserError, command.Refused) as error:
        return show(error)


if __name__ == "__main__":
    sys.exit(main())
