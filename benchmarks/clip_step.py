"""A training step of CLIP, ours against open_clip's own model and loss: the same weights, pictures and captions in one process.

    python benchmarks/clip_step.py --batch 32 --pairs 8

open_clip's text tower computes all 77 slots; captions fill about a fifth of them, and what is left out is exact.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import open_clip
import torch
from common import Comparison, Contender, captions, compare, peak_memory, report_peak, show

from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Pixels, Text
from mmpretrain.weights import clip as names
from mmpretrain.weights import clip_config

TINY = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "layers": 2, "heads": 2},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def add_tiny() -> str:
    """Make a configuration of two narrow layers known to open_clip; its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.json")
        path.write_text(json.dumps(TINY), encoding="utf-8")
        open_clip.add_model_config(path)
    return "tiny"


class Inputs:
    """One batch, as both sides take it."""

    def __init__(self, model: str, batch: int) -> None:
        texts, self.source = captions(batch)
        self.padded_BT = open_clip.get_tokenizer(model)(texts)
        lengths = tuple(int(row.argmax()) + 1 for row in self.padded_BT)  # the end of text has the largest id
        self.fill = sum(lengths) / self.padded_BT.numel()
        size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        text = Text(self.padded_BT[:, : Layout(lengths).max_len].contiguous(), lengths)
        image = Pixels(pixels, ((size, size),) * batch, MEAN, STD)
        self.batch = Batch(tuple(str(i) for i in range(batch)), torch.arange(batch), text, image)
        self.floats = image.floats()


def build_theirs(model: str, inputs: Inputs) -> tuple[Contender, torch.nn.Module]:
    torch.manual_seed(0)
    network = open_clip.create_model(model)
    loss = open_clip.ClipLoss()

    def forward() -> torch.Tensor:
        image, text, scale = network(inputs.floats, inputs.padded_BT)[:3]
        return loss(image, text, scale)

    decayed = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    return Contender("open_clip", forward, torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)), network


def build_ours(model: str, inputs: Inputs, state: dict | None = None) -> Contender:
    system = clip_config.build(clip_config.system_from_open_clip(open_clip.get_model_config(model)))
    root = Pretraining(system, {"itc": Contrastive()})
    root.bind(None)
    if state is not None:
        system.load_state_dict(names.from_open_clip(state))

    def forward() -> torch.Tensor:
        score = root(inputs.batch)["itc"]
        return score.sum / score.count

    optimizer = Optimizer(lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, decay="clip").build(root)
    return Contender("mmpretrain", forward, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="a configuration of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=8, help="steps of each side that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["ours", "theirs"], help="train one side alone and print its peak memory")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers in place of --model, to see whether everything runs")
    args = parser.parse_args()
    if args.tiny:
        args.model = add_tiny()
    torch.set_num_threads(args.threads)
    inputs = Inputs(args.model, args.batch)
    if args.only:
        side = build_ours(args.model, inputs) if args.only == "ours" else build_theirs(args.model, inputs)[0]
        for _ in range(3):
            side.step()
        report_peak()
        return
    theirs, network = build_theirs(args.model, inputs)
    ours = build_ours(args.model, inputs, network.state_dict())
    with torch.no_grad():
        a, b = ours.forward(), theirs.forward()
    difference = float((a - b).abs() / b.abs())
    flops = ours.flops(), theirs.flops()
    result: Comparison = compare(ours, theirs, args.pairs)
    arguments = ["--tiny"] if args.tiny else ["--model", args.model]
    arguments += ["--batch", str(args.batch), "--threads", str(args.threads)]
    memory = peak_memory(__file__, arguments, "ours"), peak_memory(__file__, arguments, "theirs")
    title = f"{args.model}, batch {args.batch}, captions of {inputs.source} fill {inputs.fill:.0%} of the slots, {args.threads} threads"
    show(title, args.batch, result, flops, difference, memory)


if __name__ == "__main__":
    main()
