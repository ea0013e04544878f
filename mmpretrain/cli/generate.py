"""``mmpretrain generate``: pictures for prompts, drawn, re-ranked, written; with ``--measure`` their quality on the captions of a set."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpretrain.cli import generate_output as output
from mmpretrain.cli.commands import OneLine, at_least, check_file, check_folder, checkpoint, guarded, named_sets, text_of
from mmpretrain.cli.errors import UserError
from mmpretrain.report.printing import printer

if TYPE_CHECKING:
    from mmpretrain.generate.choosing import Sampling
    from mmpretrain.generate.generator import Generator, Start
    from mmpretrain.generate.sampling import Progress

_EVERY = 15.0  # seconds between two lines where the output is not a terminal
_PROMPTS_MOST = 10_000
_OF_PROMPTS = ("prompt", "prompts", "image", "keep_rows", "out", "save_images", "columns")
_OF_MEASURES = ("limit", "judge", "probe", "real", "inception", "features")


def _parser() -> OneLine:
    parser = OneLine(prog="mmpretrain generate", description="Draw pictures for prompts by a transformer over the codes of a dVAE.")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="RUN", help="of the transformer (dalle.yaml): a checkpoint, or the folder of a run")
    add("--dvae", required=True, metavar="RUN", help="of the discrete autoencoder whose codes it was trained on (dvae.yaml)")
    add("--rerank", metavar="RUN", help="a CLIP that orders the pictures of each prompt")
    add("--prompt", action="append", default=[], metavar="TEXT", help="may be repeated")
    add("--prompts", type=Path, metavar="FILE", help="one a line, after those of --prompt")
    add("--n", type=at_least(1), help="pictures of each prompt; default 32, with --measure 8")
    add("--out", type=Path, metavar="FILE.png", help="the sheet of all pictures, best first where they are re-ranked; default grid.png")
    add("--columns", type=at_least(1), help="of the sheet; default 8, or as many more as a sheet that would be too high needs")
    add("--save-images", type=Path, metavar="DIR", help="also every picture alone: DIR/<prompt>-<picture>.png")
    add("--json", type=Path, metavar="FILE", help="also codes, scores and options; with --measure the results")
    add("--temperature", type=float, default=1.0, help="0: always the most probable code; default 1")
    add("--top-k", type=int, metavar="K", help="draw from the K most probable codes")
    add("--top-p", type=float, metavar="P", help="draw from the fewest codes whose probabilities sum to P")
    add("--guidance", type=float, default=1.0, metavar="S", help="of classifier-free guidance; default 1: none")
    add("--seed", type=int, default=0, help="default 0")
    add("--batch", type=at_least(1), default=32, help="pictures drawn at a time: speed, memory and rounding; default 32")
    add("--image", type=Path, metavar="FILE", help="a picture whose first rows of codes all pictures begin with")
    add("--keep-rows", type=int, metavar="N", help="of --image; default: half of them")
    add("--weights", choices=("auto", "raw", "ema"), default="auto", help="of the transformer; default: averages where there are some")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    add("--measure", metavar="[NAME=]SOURCE", help="measure pictures for the captions of a set, such as scenes:val, in place of prompts")
    add("--limit", type=at_least(1), metavar="N", help="with --measure: at most so many captions, evenly spread over the set")
    add("--judge", metavar="RUN", help="with --measure: a CLIP to measure by; default: that of --rerank")
    add("--probe", metavar="SOURCE", help="with --measure: labelled pictures that the probe learns from, or none; default scenes:train")
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


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> str:
    """Those of the options that were given, as they are typed."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, []))


def place_of(text: str) -> Path:
    """What ``mmpretrain.load`` opens: a checkpoint, or the folder of a run; ``last`` and ``best`` are those of the newest run."""
    path = Path(text).expanduser()
    return checkpoint(text) if text in ("last", "best") and not path.exists() else path


def _generator(options: argparse.Namespace) -> Generator:
    from mmpretrain.data_tools.common import device_of
    from mmpretrain.generate.generator import Generator

    options.device = device_of(options.device, "--device")
    rerank = None if options.rerank is None else place_of(options.rerank)
    return Generator.load(place_of(options.ckpt), place_of(options.dvae), rerank, options.weights, options.device)


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
    if given := _given(options, _OF_MEASURES):
        raise UserError(f"{given} can only be used with --measure: leave it out, or name a set of captions")
    prompts, start = _prompts(options), _start(options)
    out = options.out or Path("grid.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a PNG file; name it {out.with_suffix('.png')}")
    if options.json is not None and options.json.resolve() == out.resolve():
        raise UserError(f"--json {options.json}: the sheet has that name; choose another")
    check_file("--out", out)
    check_file("--json", options.json)
    check_folder("--save-images", options.save_images)
    generator, sampling, n = _generator(options), _sampling(options), 32 if options.n is None else options.n
    columns = output.columns(options, prompts, n, generator)
    began = time.monotonic()
    with _bar() as progress:
        found = generator(prompts, n, sampling, start, options.batch, progress)
    seconds = time.monotonic() - began
    output.write(options, out, columns, output.facts(options, generator, sampling), found)
    output.show(found, out, seconds, generator)
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    given = list(options.prompt)
    if options.prompts is not None:
        given += [line.strip() for line in text_of(options.prompts).splitlines() if line.strip()]
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


# ---------------------------------------------------------------- measures


def _measure(options: argparse.Namespace) -> int:
    from mmpretrain.data.cache import write_atomic
    from mmpretrain.evaluate import suite
    from mmpretrain.evaluate.result import rows
    from mmpretrain.generate.measure import Task, measure

    if given := _given(options, _OF_PROMPTS):
        raise UserError(f"--measure takes its prompts from the captions of a set, and draws no sheet: leave out {given}")
    if options.features is not None and options.inception is None:
        raise UserError("--features holds features of real pictures by an Inception: name its weights with --inception")
    check_file("--json", options.json)
    generator = _generator(options)
    (data,) = named_sets([options.measure], generator.dalle)
    judges = _judges(options, generator)
    task = Task(8 if options.n is None else options.n, options.limit, _sampling(options), options.batch)
    with _bar() as progress:
        results = measure(generator, data, judges, task, progress)
    suite.show(results, printer(), "Generation")
    if options.json is not None:
        told = {**output.facts(options, generator, task.sampling), "n": task.n, "rows": rows(results)}
        write_atomic(options.json, (json.dumps(told, indent=2) + "\n").encode("utf-8"))
    return 0


def _judges(options: argparse.Namespace, generator: Generator) -> Any:
    """What the options name to measure by."""
    import mmpretrain
    from mmpretrain.cli.watching import watch
    from mmpretrain.evaluate.inception import Inception
    from mmpretrain.evaluate.probe_training import trained
    from mmpretrain.evaluate.samples import open_set
    from mmpretrain.generate.measure import Judges
    from mmpretrain.generate.rerank import ClipScorer

    clip = getattr(generator.scorer, "pretrained", None)
    if options.judge is not None:
        clip = ClipScorer(mmpretrain.load(place_of(options.judge), device=options.device)).pretrained
    inception = None if options.inception is None else Inception.load(options.inception)
    features = None if options.features is None else _reference(options.features, inception)
    real = None if options.real is None else open_set("real", options.real)
    probe = None
    if options.probe != "none":
        with watch() as progress:  # it is trained once
            probe = trained(open_set("probe", options.probe or "scenes:train"), report=partial(progress, "training the probe, steps"))
    return Judges(probe, clip, inception, features, real)


def _reference(path: Path, inception: Any) -> Any:
    """The features of real pictures in a file.

    Raises:
        UserError: they are of another network.
    """
    from mmpretrain.evaluate.distances import read_features
    from mmpretrain.evaluate.generation import Reference
    from mmpretrain.evaluate.inception import WIDTH

    known = read_features(path)
    with path.open("rb") as file:
        source = f"{path.name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    found = Reference("inception", inception.features, *known, source)
    if (width := len(found.moments.mean_D)) != WIDTH:
        raise UserError(f"{path}: features of {width} values, FID's Inception gives {WIDTH}: name those of that network")
    return found
