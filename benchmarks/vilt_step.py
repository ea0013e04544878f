"""A training step of ViLT-B/32 (MLM + ITM), ours against transformers' ViLT: the same weights, pictures, captions and masks in one process.

    python benchmarks/vilt_step.py --batch 8 --pairs 6

transformers pads captions to 40 slots and pictures to the largest of the batch, and scores the vocabulary for every slot; ours computes
real words, real patches and masked slots. Both carry out two forwards, as ViLT's code does. Captions are cut at words and punctuation:
a word piece tokenizer gives the same number of tokens or a few more.
"""

from __future__ import annotations

import argparse
import re
import zlib

import torch
import torch.nn.functional as F
import transformers
from common import Comparison, Contender, captions, compare, peak_memory, report_peak, show
from torch import nn

from mmpretrain.objectives.itm import ITM, Swaps
from mmpretrain.objectives.mlm import MLM
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Pixels, Text, Vocabulary
from mmpretrain.weights import vilt as names

SLOTS, WORDS = 40, 30522
# of photographs at 384, aspect kept
SIZES = ((384, 512), (384, 576), (512, 384), (384, 384), (384, 512), (576, 384), (384, 512), (384, 544))
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
VOCABULARY = Vocabulary(WORDS, 0, 103, 101, 102, (0, 100, 101, 102, 103))


def tokens(text: str) -> list[int]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())[: SLOTS - 2]
    return [101, *(1000 + zlib.crc32(word.encode()) % (WORDS - 1000) for word in words), 102]


class Inputs:
    """One batch and its two views, corrupted once, as both sides take them."""

    def __init__(self, batch: int, root: Pretraining) -> None:
        texts, self.source = captions(batch)
        ids = [tokens(text) for text in texts]
        lengths = tuple(len(row) for row in ids)
        self.fill = sum(lengths) / (SLOTS * batch)
        ids_BT = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in ids])
        sizes = tuple(SIZES[i % len(SIZES)] for i in range(batch))
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        self.mask_BHW = torch.zeros(batch, height, width, dtype=torch.int64)
        for mask, (h, w) in zip(self.mask_BHW, sizes, strict=True):
            mask[:h, :w] = 1
        pixels = pixels * self.mask_BHW[:, None]
        rows = tuple(range(1, batch, 2))  # every second picture is another one
        kinds_B = torch.tensor([2 if i in rows else 0 for i in range(batch)])
        other = [(i + 1) % batch for i in rows]
        swaps = Swaps(kinds_B, rows, Pixels(pixels[other], tuple(sizes[i] for i in other)))
        keys = tuple(str(i) for i in range(batch))
        matched_B = torch.ones(batch, dtype=torch.bool)
        clean = Batch(keys, torch.arange(batch), Text(ids_BT, lengths), Pixels(pixels, sizes), matched_B, {"itm": swaps})
        self.views = root.corrupt(clean)
        self.count = batch

    def theirs(self, view: str) -> dict[str, torch.Tensor]:
        """A view as transformers takes it: 40 slots, masks."""
        batch = self.views[view]
        ids_BT = F.pad(batch.text.ids_BT, (0, SLOTS - batch.text.ids_BT.shape[1]))
        attention_BT = (torch.arange(SLOTS)[None, :] < torch.tensor(batch.text.lengths)[:, None]).long()
        image = batch.image
        mask = torch.zeros(image.pixels_BCHW.shape[0], *image.pixels_BCHW.shape[2:], dtype=torch.int64)
        for row, (h, w) in zip(mask, image.sizes, strict=True):
            row[:h, :w] = 1
        return {"input_ids": ids_BT, "attention_mask": attention_BT, "pixel_values": image.pixels_BCHW, "pixel_mask": mask}

    def labels(self) -> torch.Tensor:
        """(B, 40): the masked words, -100 elsewhere."""
        batch = self.views["mlm"]
        target = batch.targets["mlm"]
        flat = torch.full((sum(batch.text.lengths),), -100)
        flat[target.rows_R] = target.labels_R
        labels = torch.full((self.count, SLOTS), -100)
        start = 0
        for i, n in enumerate(batch.text.lengths):
            labels[i, :n] = flat[start : start + n]
            start += n
        return labels


def build_root(config: dict[str, int]) -> Pretraining:
    torch.manual_seed(0)
    root = Pretraining(names.build(config), {"mlm": MLM(view="mlm", tied=True), "itm": ITM()})
    root.bind(VOCABULARY)
    return root


def build_ours(root: Pretraining, inputs: Inputs) -> Contender:
    def forward() -> torch.Tensor:
        scores = root(inputs.views)
        return sum(score.sum / score.count for score in scores.values())

    return Contender("mmpretrain", forward, Optimizer(lr=1e-5).build(root))


def build_theirs(root: Pretraining, inputs: Inputs, config: dict[str, int]) -> Contender:
    network = transformers.ViltForMaskedLM(transformers.ViltConfig(**config))
    objectives = root.objectives
    state = names.to_transformers(root.model.state_dict(), objectives["mlm"].head.state_dict())
    network.load_state_dict(state)  # the decoder is tied on both sides
    head = nn.Linear(network.config.hidden_size, 2)
    head.load_state_dict(objectives["itm"].head.state_dict())
    mlm, itm, labels = inputs.theirs("mlm"), inputs.theirs("itm"), inputs.labels()
    matched_B = inputs.views["itm"].matched_B.long()

    def forward() -> torch.Tensor:
        masked = network(**mlm, labels=labels).loss
        pooled_BD = network.vilt(**itm).pooler_output
        return masked + F.cross_entropy(head(pooled_BD), matched_B)

    parameters = [*network.parameters(), *head.parameters()]
    return Contender("transformers", forward, torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.98)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=6, help="steps of each side that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["ours", "theirs"], help="train one side alone and print its peak memory")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to see whether everything runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = TINY if args.tiny else {}
    root = build_root(config)
    inputs = Inputs(args.batch, root)
    if args.only:
        side = build_ours(root, inputs) if args.only == "ours" else build_theirs(root, inputs, config)
        if args.only == "theirs":
            del root
        for _ in range(3):
            side.step()
        report_peak()
        return
    ours, theirs = build_ours(root, inputs), build_theirs(root, inputs, config)
    with torch.no_grad():
        a, b = ours.forward(), theirs.forward()
    difference = float((a - b).abs() / b.abs())
    flops = ours.flops(), theirs.flops()
    result: Comparison = compare(ours, theirs, args.pairs)
    arguments = ["--tiny"] if args.tiny else []
    arguments += ["--batch", str(args.batch), "--threads", str(args.threads)]
    memory = peak_memory(__file__, arguments, "ours"), peak_memory(__file__, arguments, "theirs")
    name = "A tiny ViLT" if args.tiny else "ViLT-B/32"
    title = f"{name}, MLM + ITM, batch {args.batch}, captions of {inputs.source} fill {inputs.fill:.0%} of {SLOTS} slots"
    title += f", {args.threads} threads"
    show(title, args.batch, result, flops, difference, memory)


if __name__ == "__main__":
    main()
