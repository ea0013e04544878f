"""``mmpretrain generate``: pictures for prompts, drawn, re-ranked, written; with ``--measure`` their quality on the captions of a set."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpretrain.cli.commands import OneLine, checkpoint, guarded, named_sets
from mmpretrain.cli.errors import UserError

if TYPE_CHECKING:
    from mmpretrain.generate.choosing import Sampling
    from mmpretrain.generate.generator import Generated, Generator, Start
    from mmpretrain.generate.sampling import Progress

_EVERY = 15.0  # seconds between two lines where the output is not a terminal
_PROMPTS_MOST = 10_000


def _parser() -> OneLine:
    parser = OneLine(prog="mmpretrain generate", description="Draw pictures for prompts by a transformer over the codes of a dVAE.")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="RUN", help="of the transformer (dalle.yaml): a checkpoint, or the folder of a run")
    add("--dvae", required=True, metavar="RUN", help="of the discrete autoencoder whose codes it was trained on (dvae.yaml)")
    add("--rerank", metavar="RUN", help="a CLIP that orders the pictures of each prompt")
    add("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    add("--prompts", type=Path, metavar="FILE", help="one a line, after those of --prompt")
    add("--n", type=int, help="pictures of each prompt; default 32, with --measure 8")
    add("--out", type=Path, metavar="FILE.png", help="the sheet of all pictures, best first where they are re-ranked; default grid.png")
    add("--columns", type=int, default=8, help="of the sheet; default 8")
    add("--save-images", type=Path, metavar="DIR", help="also every picture alone: DIR/<prompt>-<picture>.png")
    add("--json", type=Path, metavar="FILE", help="also codes, scores and options; with --measure the results")
    add("--temperature", type=float, default=1.0, help="0: always the most probable code; default 1")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable codes")
    add("--top-p", type=float, metavar="P", help="draw from the fewest codes whose probabilities sum to P")
    add("--guidance", type=float, default=1.0, metavar="S", help="of classifier-free guidance; default 1: none")
    add("--seed", type=int, default=0, help="default 0")
    add("--batch", type=int, default=32, help="pictures drawn at a time, which changes speed and memory alone; default 32")
    add("--image", type=Path, metavar="FILE", help="a picture whose first rows of codes all pictures begin with")
    add("--keep-rows", type=int, metavar="N", help="of --image; default: half of them")
    add("--weights", choices=("auto", "raw", "ema"), default="auto", help="default: averages where there are some")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    add("--measure", metavar="[NAME=]SOURCE", help="measure pictures for the captions of a set, such as scenes:val, in place of prompts")
    add("--limit", type=int, metavar="N", help="with --measure: at most so many captions, evenly spread over the set")
    add("--judge", metavar="RUN", help="with --measure: a CLIP to measure by; default: that of --rerank")
    add("--probe", default="scenes:train", metavar="SOURCE", help="with --measure: labelled pictures that the probe learns from, or none")
    add("--real", metavar="SOURCE", help="with --measure: the real pictures that distances are taken from; default: those of the set")
    add("--inception", type=Path, metavar="FILE", help="with --measure: weights of FID's Inception, for FID and KID")
    add(
        "--features",
        type=Path,
        metavar="FILE",
        help="with --inception: features or moments of real pictures (.npz), for those of --real",
    )
    return parser


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv[1:])
    return guarded(_measure if options.measure else _generate, options)


# ---------------------------------------------------------------- what both do


def _sampling(options: argparse.Namespace) -> Sampling:
    from mmpretrain.generate.choosing import Sampling

    return Sampling(options.temperature, options.top_k, options.top_p, options.guidance, options.seed)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def _generator(options: argparse.Namespace) -> Generator:
    from mmpretrain.generate.generator import Generator

    rerank = None if options.rerank is None else checkpoint(options.rerank)
    return Generator.load(checkpoint(options.ckpt), checkpoint(options.dvae), rerank, options.weights, _device(options.device))


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on stderr; a line at times where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn(), TimeRemainingColumn())
    began = said = time.monotonic()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("draw", total=None, told="")

        def step(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            told = f"{done:,} of {total:,} codes, {done / max(now - began, 1e-6):,.0f} a second"
            bar.update(task, total=total, completed=done, told=told)
            if not console.is_terminal and now - said > _EVERY:
                said = now
                console.print(f"drawing: {told}", highlight=False)

        yield step


# ---------------------------------------------------------------- prompts


def _generate(options: argparse.Namespace) -> int:
    prompts, start = _prompts(options), _start(options)
    out = options.out or Path("grid.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a PNG file; name it {out.with_suffix('.png')}")
    if options.save_images is not None and options.save_images.exists() and not options.save_images.is_dir():
        raise UserError(f"--save-images {options.save_images}: there is a file of that name; name a folder")
    generator, sampling, n = _generator(options), _sampling(options), 32 if options.n is None else options.n
    began = time.monotonic()
    with _bar() as progress:
        found = generator(prompts, n, sampling, start, options.batch, progress)
    seconds = time.monotonic() - began
    _write(options, out, generator, sampling, found)
    _show(found, out, seconds, generator)
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    given = list(options.prompt)
    if options.prompts is not None:
        given += [line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not given:
        raise UserError("there is no prompt: give --prompt 'a red circle left of a blue square', or --prompts FILE with one a line")
    if len(given) > _PROMPTS_MOST:
        raise UserError(f"{len(given)} prompts are more than {_PROMPTS_MOST}; generate them in parts")
    return given


def _start(options: argparse.Namespace) -> Start | None:
    from mmpretrain.generate.generator import Start

    if options.image is None:
        if options.keep_rows is not None:
            raise UserError("--keep-rows says how much of a picture is kept: name the picture with --image")
        return None
    return Start(options.image, options.keep_rows)


def _facts(options: argparse.Namespace, generator: Generator, sampling: Sampling) -> dict[str, Any]:
    """Everything that the pictures are a function of."""
    import mmpretrain

    judge = getattr(generator.scorer, "pretrained", None)
    return {
        "version": mmpretrain.__version__,
        "transformer": generator.dalle.source,
        "dvae": generator.dvae.source,
        "rerank": None if judge is None else judge.source,
        "weights": options.weights,
        "sampling": sampling._asdict(),
        "image": None if options.image is None else str(options.image),
        "keep_rows": options.keep_rows,
    }


def _scores(found: Generated) -> list[float | None]:
    return [None] * len(found.codes_Nhw) if found.ranking is None else [round(score, 6) for score in found.ranking.scores_N.tolist()]


def _write(options: argparse.Namespace, out: Path, generator: Generator, sampling: Sampling, found: Sequence[Generated]) -> None:
    """All files, each whole or not at all."""
    from mmpretrain.data.cache import write_atomic
    from mmpretrain.generate.grid import Block, png, sheet

    facts = _facts(options, generator, sampling)
    blocks = []
    for one in found:
        scores = _scores(one)
        labels = ["" if scores[number] is None else f"{scores[number]:.3f}" for number in one.order]
        blocks.append(Block(one.prompt, one.images, labels, None if one.ranking is None else 0))
    told = [{"prompt": one.prompt, "order": one.order, "scores": _scores(one)} for one in found]
    write_atomic(out, png(sheet(blocks, options.columns), {**facts, "prompts": told}))
    for p, one in enumerate(found if options.save_images is not None else ()):
        for number, score in enumerate(_scores(one)):
            alone = {**facts, "prompt": one.prompt, "picture": number, "score": score}
            write_atomic(options.save_images / f"{p:03d}-{number:03d}.png", png(one.image(number), alone))
    if options.json is not None:
        rows = [{**row, "codes": one.codes_Nhw.tolist()} for row, one in zip(told, found, strict=True)]
        write_atomic(options.json, (json.dumps({**facts, "prompts": rows}) + "\n").encode("utf-8"))


def _show(found: Sequence[Generated], out: Path, seconds: float, generator: Generator) -> None:
    from rich.console import Console
    from rich.table import Table

    judge: Any = getattr(generator.scorer, "pretrained", None)
    ranked = judge is not None
    table = Table("prompt", "pictures", *(("best", "median", "worst") if ranked else ()), title="Generated")
    for one in found:
        scores = [] if one.ranking is None else [one.ranking.scores_N.max(), one.ranking.scores_N.median(), one.ranking.scores_N.min()]
        table.add_row(one.prompt, str(len(one.codes_Nhw)), *(f"{float(score):.3f}" for score in scores))
    console = Console()
    console.print(table)
    pictures = sum(len(one.codes_Nhw) for one in found)
    console.print(f"{pictures} pictures in {seconds:.1f} s: {out}", highlight=False, soft_wrap=True)
    if ranked:
        console.print(f"[dim]scores are cosines by {judge.source}, best first on the sheet[/dim]", soft_wrap=True)


# ---------------------------------------------------------------- measures


def _measure(options: argparse.Namespace) -> int:
    from mmpretrain.data.cache import write_atomic
    from mmpretrain.evaluate import suite
    from mmpretrain.evaluate.result import rows
    from mmpretrain.generate.measure import Task, measure

    if options.prompt or options.prompts or options.image or options.keep_rows or options.out or options.save_images:
        raise UserError("--measure takes its prompts from the captions of a set: leave out --prompt, --image, --out and the like")
    if options.features is not None and options.inception is None:
        raise UserError("--features holds features of real pictures by an Inception: name its weights with --inception")
    generator = _generator(options)
    (data,) = named_sets([options.measure], generator.dalle)
    judges = _judges(options, generator)
    task = Task(8 if options.n is None else options.n, options.limit, _sampling(options), options.batch)
    with _bar() as progress:
        results = measure(generator, data, judges, task, progress)
    suite.show(results, title="Generation")
    if options.json is not None:
        told = {**_facts(options, generator, task.sampling), "n": task.n, "rows": rows(results)}
        write_atomic(options.json, (json.dumps(told, indent=2) + "\n").encode("utf-8"))
    return 0


def _judges(options: argparse.Namespace, generator: Generator) -> Any:
    """What the options name to measure by."""
    import mmpretrain
    from mmpretrain.evaluate.distances import read_features
    from mmpretrain.evaluate.generation import Reference
    from mmpretrain.evaluate.inception import Inception
    from mmpretrain.evaluate.probe_training import trained
    from mmpretrain.evaluate.samples import open_set
    from mmpretrain.generate.measure import Judges
    from mmpretrain.generate.rerank import ClipScorer

    clip = getattr(generator.scorer, "pretrained", None)
    if options.judge is not None:
        clip = ClipScorer(mmpretrain.load(checkpoint(options.judge), options.weights, device=_device(options.device))).pretrained
    inception = None if options.inception is None else Inception.load(options.inception)
    features = None
    if options.features is not None and inception is not None:
        features = Reference("inception", inception.features, *read_features(options.features))
    real = None if options.real is None else open_set("real", options.real)
    probe = None if options.probe == "none" else trained(open_set("probe", options.probe))
    return Judges(probe, clip, inception, features, real)
