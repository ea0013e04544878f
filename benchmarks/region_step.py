"""A training step over regions (MLM + the matching head), ours against transformers': the same weights, texts, regions and masks.

    python benchmarks/region_step.py --system visualbert --batch 8 --pairs 3
    python benchmarks/region_step.py --system uniter --batch 8 --pairs 3
    python benchmarks/region_step.py --system lxmert --batch 8 --pairs 3

VisualBERT (pairs of captions) and UNITER (one caption): texts have up to 60 words in 60 slots, pictures 10 to 100 regions in 100 slots,
so many that 58 % of all slots are padding. LXMERT: 20 slots and 36 regions for each picture, as in its paper. transformers computes every
slot, and the vocabulary for every slot, once with these slots and once with those of the longest text and picture of the batch; ours
computes words, regions and masked words. transformers has no UNITER: it is its VisualBERT with UNITER's embedding of regions.
Both sides drop alike in training and update with torch's fused AdamW; outputs are compared without dropout.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import region_models
import torch
from common import Contender, captions, compare, peak_memory, report_peak, show
from region_models import POSITIONS, WORDS, Size
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmpretrain.nn.boxes import box_code
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.objectives.text_contrast import Contrasted
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, RegionBatch, Text, Vocabulary

PADDING = 0.58  # share of the slots of texts and regions
VOCABULARY = Vocabulary(WORDS, 0, 103, 101, 102, (0, 100, 101, 102, 103))
TINY = Size(64, 2, 2, 32)
NAMES = {"visualbert": "VisualBERT", "uniter": "UNITER", "lxmert": "LXMERT"}


class Slots(NamedTuple):
    """How many words and regions the padded side has room for, and the fewest regions of a picture."""

    text: int
    regions: int
    fewest: int


SLOTS = {"visualbert": Slots(60, 100, 10), "uniter": Slots(60, 100, 10), "lxmert": Slots(20, 36, 36)}


def words(text: str) -> list[int]:
    return [1000 + zlib.crc32(word.encode()) % (WORDS - 1000) for word in re.findall(r"\w+|[^\w\s]", text.lower())]


def counts(batch: int, slots: Slots, text: float) -> tuple[int, ...]:
    """Regions of each picture, spread over the whole range, with the mean that leaves ``PADDING`` of the slots empty."""
    mean = (1 - PADDING) * (slots.text + slots.regions) - text
    span = slots.regions - slots.fewest
    if not span:
        return (slots.regions,) * batch
    power = span / min(max(mean - slots.fewest, 1.0), span - 1.0) - 1  # the mean of u ** power over [0, 1] is 1 / (power + 1)
    spread = ((np.arange(batch) + 0.5) / batch) ** power
    found = np.rint(slots.fewest + span * spread).astype(int)
    return tuple(int(n) for n in np.random.default_rng(0).permutation(found))


class Inputs:
    """One batch, corrupted once, as both sides take it."""

    def __init__(self, system: str, batch: int, size: Size, slots: Slots, root: Pretraining) -> None:
        second = system == "visualbert"
        texts, self.source = captions(2 * batch if second else batch)
        rows, segments = [], []
        for i in range(batch):
            first = [101, *words(texts[i])[: slots.text - 2], 102]
            other = [*words(texts[-1 - i]), 102] if second else []
            rows.append(torch.tensor((first + other)[: slots.text]))
            segments.append(torch.tensor(([0] * len(first) + [1] * len(other))[: slots.text]))
        lengths = tuple(len(row) for row in rows)
        regions = counts(batch, slots, sum(lengths) / batch)
        self.slots, self.fill = slots, (sum(lengths) + sum(regions)) / (batch * (slots.text + slots.regions))
        generator, total = torch.Generator().manual_seed(0), sum(regions)
        corners = torch.rand(total, 2, 2, generator=generator).sort(1).values.flatten(1) * torch.tensor([640.0, 480.0] * 2)
        packed = RegionBatch(torch.randn(total, size.features, generator=generator).abs(), corners, regions, ((480, 640),) * batch)
        text = Text(pad_sequence(rows, True), lengths, segments_BT=pad_sequence(segments, True))
        kinds_B = torch.arange(batch) % 2
        swaps = Contrasted(tuple(range(batch)), kinds_B, Swaps(kinds_B)) if second else Swaps(2 * (1 - kinds_B))
        clean = Batch(tuple(map(str, range(batch))), torch.arange(batch), text, regions=packed, targets={"match": swaps})
        self.views = root.corrupt(clean)
        (self.batch,) = self.views.values()
        self.matches_B = kinds_B

    def theirs(self, system: str, fixed: bool) -> dict[str, Tensor]:
        """As transformers takes it: padded to the slots or to the longest of the batch."""
        text, regions = self.batch.text, self.batch.regions
        width = self.slots.text if fixed else text.ids_BT.shape[1]
        height = self.slots.regions if fixed else max(regions.lengths)
        room = lambda x, slots: nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, slots - x.shape[1]))
        grid = lambda x: room(pad_sequence(x.split(regions.lengths), True), height)
        mask = lambda lengths, slots: (torch.arange(slots)[None] < torch.tensor(lengths)[:, None]).long()
        target = self.batch.targets["mlm"]
        flat = torch.full((sum(text.lengths),), -100).index_copy(0, target.rows_R, target.labels_R)
        labels = pad_sequence(flat.split(text.lengths), True, -100)
        labels = nn.functional.pad(labels, (0, width - labels.shape[1]), value=-100)
        found = {"input_ids": room(text.ids_BT, width), "token_type_ids": room(text.segments_BT, width)}
        found |= {"attention_mask": mask(text.lengths, width), "visual_attention_mask": mask(regions.lengths, height)}
        if system == "lxmert":
            found |= {"visual_feats": grid(regions.features_NF), "visual_pos": grid(box_code(regions, "xyxy"))}
            return found | {"labels": labels, "matched_label": self.matches_B}
        features = regions.features_NF
        if system == "uniter":
            features = torch.cat([features, box_code(regions, "xyxywha")], 1)
        types = torch.full((len(self.batch.keys), height), int(system == "uniter"))
        found |= {"visual_embeds": grid(features), "visual_token_type_ids": types, "sentence_image_labels": self.matches_B}
        return found | {"labels": nn.functional.pad(labels, (0, height), value=-100)}


def build_root(system: str, size: Size) -> Pretraining:
    torch.manual_seed(0)
    matching = SIP() if system == "visualbert" else ITM(view="main")
    root = Pretraining(region_models.ours(system, size), {"match": matching, "mlm": MLM(only_if_matched=False, at_least_one=True)})
    root.bind(VOCABULARY)
    return root


class Side(NamedTuple):
    """One of the two: to be timed, and what it says of masked words and pairs."""

    contender: Contender
    network: nn.Module
    outputs: Callable[[], tuple[Tensor, Tensor, Tensor]]  # logits of masked words, of matching, loss


def our_side(root: Pretraining, inputs: Inputs) -> Side:
    def forward() -> Tensor:
        return sum(score.sum / score.count for score in root(inputs.views).values())

    def outputs() -> tuple[Tensor, Tensor, Tensor]:
        hidden, objectives = root.model(inputs.batch), root.objectives
        return objectives["mlm"].logits(hidden, inputs.batch), objectives["match"].logits(hidden, inputs.batch), forward()

    return Side(Contender("mmpretrain", forward, Optimizer(lr=1e-5, fused=True).build(root)), root, outputs)


def their_side(system: str, size: Size, root: Pretraining, inputs: Inputs, fixed: bool) -> Side:
    network, arguments = region_models.theirs(system, size, root), inputs.theirs(system, fixed)
    match = "cross_relationship_score" if system == "lxmert" else "seq_relationship_logits"

    def outputs() -> tuple[Tensor, Tensor, Tensor]:
        out = network(**arguments)
        return out.prediction_logits[arguments["labels"] >= 0], out[match], out.loss

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, betas=(0.9, 0.98), fused=True)
    return Side(Contender("transformers", lambda: network(**arguments).loss, optimizer), network, outputs)


def difference(one: Side, other: Side) -> float:
    """Largest difference of logits and loss without dropout, of the largest reference value of each."""
    for side in (one, other):
        side.network.eval()
    with torch.no_grad():
        pairs = list(zip(one.outputs(), other.outputs(), strict=True))
    for side in (one, other):
        side.network.train()
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=tuple(SLOTS), default="visualbert")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=4, help="steps of each side that are counted")
    parser.add_argument("--depth", type=int, default=12, help="blocks that see each token; LXMERT's layers are 3/4, 5/12 and 5/12 of it")
    parser.add_argument("--dropout", type=float, default=0.1, help="of states and attention probabilities, on both sides")
    parser.add_argument("--slots", type=int, nargs=2, metavar=("TEXT", "REGIONS"), help="default: as the text above says")
    parser.add_argument("--padding", choices=("fixed", "longest"), nargs="+", default=("fixed", "longest"), help="of transformers' side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["ours", "theirs"], help="train one side alone and print its peak memory")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to see whether everything runs")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    size = TINY if args.tiny else Size(depth=args.depth, dropout=args.dropout)
    slots = SLOTS[args.system]
    if args.slots:
        slots = Slots(min(args.slots[0], POSITIONS), args.slots[1], min(SLOTS["uniter"].fewest, args.slots[1]))
    root = build_root(args.system, size)
    inputs = Inputs(args.system, args.batch, size, slots, root)
    if args.only:
        fixed = args.padding[0] == "fixed"
        side = our_side(root, inputs) if args.only == "ours" else their_side(args.system, size, root, inputs, fixed)
        if args.only == "theirs":
            del root
        for _ in range(3):
            side.contender.step()
        report_peak()
        return
    for padding in args.padding:
        mine, other = our_side(root, inputs), their_side(args.system, size, root, inputs, padding == "fixed")
        apart = difference(mine, other)
        flops = mine.contender.flops(), other.contender.flops()
        result = compare(mine.contender, other.contender, args.pairs)
        words_ = ["--tiny"] if args.tiny else ["--depth", str(args.depth), "--dropout", str(args.dropout)]
        words_ += ["--system", args.system, "--batch", str(args.batch), "--threads", str(args.threads), "--padding", padding]
        words_ += ["--slots", *map(str, args.slots)] if args.slots else []
        memory = peak_memory(__file__, words_, "ours"), peak_memory(__file__, words_, "theirs")
        name = f"A tiny {NAMES[args.system]}" if args.tiny else f"{NAMES[args.system]}, width {size.width}, depth {size.depth}"
        shape = f"{slots.text} + {slots.regions} slots" if padding == "fixed" else "the longest of the batch"
        filled = f"{inputs.fill:.0%} of {slots.text} + {slots.regions} slots filled"
        title = f"{name}, MLM + matching, batch {args.batch}, captions of {inputs.source}, {filled}"
        show(f"{title}, theirs padded to {shape}, {args.threads} threads", args.batch, result, flops, apart, memory)
        del mine, other
        root = build_root(args.system, size)  # as at the start


if __name__ == "__main__":
    main()
