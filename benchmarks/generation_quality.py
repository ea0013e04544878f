"""What generated pictures show of their captions, with and without re-ranking, over seeds; reconstructions, real pictures, chance.

    python benchmarks/generation_quality.py --ckpt runs/dalle --dvae runs/dvae --rerank runs/clip --n 8 --seeds 0 1 2

Prompts are the captions of a set that name every thing of their scene with colour and shape (``scenes:val``). Every number of a row is the
mean over seeds with its standard deviation; ``gain`` is re-ranked less generated, seed by seed. Chance is the same measure with the
captions of other pictures. What the probe is worth on pictures that it was not trained on is printed first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import mmpretrain
from mmpretrain.evaluate.probe_training import trained
from mmpretrain.evaluate.result import Result, rows, shown
from mmpretrain.evaluate.samples import open_set
from mmpretrain.generate.choosing import Sampling
from mmpretrain.generate.generator import Generator
from mmpretrain.generate.measure import Judges, Task, measure
from mmpretrain.generate.rerank import ClipScorer

PICTURES = ("generated", "reranked", "reconstructed", "real")
Values = dict[str, dict[str, list[float]]]  # pictures -> measure -> one value for each seed


def gathered(results: Sequence[Sequence[Result]]) -> tuple[Values, dict[str, float], dict[str, int]]:
    """Values by pictures and measure, chance of the generated ones by measure (mean over seeds), and terms."""
    values: Values = defaultdict(lambda: defaultdict(list))
    chances: dict[str, list[float]] = defaultdict(list)
    terms: dict[str, int] = {}
    for found in results:
        for result in found:
            pictures, name = result.name.split("/")[-2:]
            values[pictures][name].append(result.value)
            if pictures == "generated":
                terms[name] = result.stamp.count
                if result.chance is not None:
                    chances[name].append(result.chance)
    return values, {name: statistics.mean(found) for name, found in chances.items()}, terms


def told(name: str, found: Sequence[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    if not found:
        return ""
    mean = shown(name, statistics.mean(found))
    return mean if len(found) < 2 else f"{mean} ± {shown(name, statistics.stdev(found)).removesuffix(' %')}"


def table(values: Values, chances: Mapping[str, float], terms: Mapping[str, int]) -> str:
    """A Markdown table, a row for each measure."""
    columns = [name for name in PICTURES if name in values]
    gain = "reranked" in columns
    head = [
        "measure",
        "terms",
        "chance",
        *columns[:1],
        *(["reranked", "gain"] if gain else []),
        *(c for c in columns[1:] if c != "reranked"),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in values["generated"]:
        cells = [name, f"{terms[name]:,}", shown(name, chances[name]) if name in chances else ""]
        for column in head[3:]:
            if column == "gain":
                pairs = zip(values["reranked"].get(name, ()), values["generated"][name])
                cells.append(told(name, [best - every for best, every in pairs]))
            else:
                cells.append(told(name, values[column].get(name, ())))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--ckpt", required=True, help="of the transformer: a checkpoint, or the folder of a run")
    add("--dvae", required=True, help="of the autoencoder")
    add("--rerank", help="of the CLIP that re-ranks")
    add("--judge", help="of another CLIP to measure by; default: the one that re-ranks")
    add("--data", default="scenes:val", help="a set whose objects are annotated")
    add("--probe", default="scenes:train", help="what the probe learns from")
    add("--real", default="scenes:train", help="the real pictures that distances are taken from")
    add("--n", type=int, default=8, help="pictures of each caption")
    add("--limit", type=int, help="at most so many captions")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--guidance", type=float, default=1.0)
    add("--batch", type=int, default=64)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, help="also all values")
    return made


def main(args: Sequence[str] | None = None) -> int:
    options = parser().parse_args(args)
    generator = Generator.load(options.ckpt, options.dvae, options.rerank, device=options.device)
    clip = getattr(generator.scorer, "pretrained", None)
    if options.judge is not None:
        clip = ClipScorer(mmpretrain.load(options.judge, device=options.device)).pretrained
    data, probe = open_set("val", options.data), trained(open_set("probe", options.probe))
    worth = probe.measured(data)
    print(f"probe of {options.probe} on {worth.pop('pictures'):.0f} real pictures of {options.data}: ", end="")
    print(", ".join(f"{name} {100 * value:.2f} %" for name, value in worth.items()), flush=True)
    judges = Judges(probe, clip, real=open_set("real", options.real))
    results = []
    for place, seed in enumerate(options.seeds):
        began = time.perf_counter()
        how = Sampling(options.temperature, options.top_k, options.top_p, options.guidance, seed)
        results.append(measure(generator, data, judges, Task(options.n, options.limit, how, options.batch, ceilings=place == 0)))
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{results[0][0].stamp.protocol.replace(f'seed {options.seeds[0]}', f'seeds {options.seeds}')}\n")
    print(table(*gathered(results)))
    if options.json is not None:
        kept = [{"seed": seed, "rows": rows(found)} for seed, found in zip(options.seeds, results)]
        options.json.write_text(json.dumps({"probe": worth, "seeds": kept}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
