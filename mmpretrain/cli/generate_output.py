"""What ``mmpretrain generate`` leaves: the sheet, pictures, JSON and a table; and, before drawing, whether the sheet is not too large."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpretrain.report.printing import printer

if TYPE_CHECKING:
    from mmpretrain.generate.choosing import Sampling
    from mmpretrain.generate.generator import Generated, Generator


def columns(options: argparse.Namespace, prompts: Sequence[str], n: int, generator: Generator) -> int:
    """Of the sheet; see ``grid.columns_of``.

    Raises:
        ValueError: nothing to draw, or more than fits on a sheet.
    """
    from mmpretrain.generate.grid import Shape, columns_of

    if n < 1:
        raise ValueError(f"generate: n={n} must be at least 1")
    width, height = generator.size
    return columns_of([Shape(prompt.strip(), n, width, height, generator.scorer is not None) for prompt in prompts], options.columns)


def facts(options: argparse.Namespace, generator: Generator, sampling: Sampling) -> dict[str, Any]:
    """Everything that the pictures are a function of."""
    import mmpretrain
    from mmpretrain.data.codes_info import digest

    judge, info = getattr(generator.scorer, "pretrained", None), generator.info
    return {
        "version": mmpretrain.__version__,
        "transformer": generator.dalle.source,
        "weights": generator.dalle.weights,
        "codes": None if info is None else info.fingerprint,  # of those that it was trained on; None: it does not say
        "dvae": generator.dvae.source,
        "dvae_weights": digest(generator.dvae.model.state_dict()),
        "rerank": None if judge is None else judge.source,
        "sampling": sampling._asdict(),
        "image": None if options.image is None else str(options.image),
        "keep_rows": options.keep_rows,
    }


def _scores(found: Generated) -> list[float | None]:
    return [None] * len(found.codes_Nhw) if found.ranking is None else [round(score, 6) for score in found.ranking.scores_N.tolist()]


def write(options: argparse.Namespace, out: Path, columns: int, about: dict[str, Any], found: Sequence[Generated]) -> None:
    """All files, each whole or not at all."""
    from mmpretrain.data.cache import write_atomic
    from mmpretrain.generate.grid import Block, png, sheet

    blocks = []
    for one in found:
        scores = _scores(one)
        labels = ["" if scores[number] is None else f"{scores[number]:.3f}" for number in one.order]
        blocks.append(Block(one.prompt, one.images, labels, None if one.ranking is None else 0))
    told = [{"prompt": one.prompt, "order": one.order, "scores": _scores(one)} for one in found]
    write_atomic(out, png(sheet(blocks, columns), {**about, "prompts": told}))
    for p, one in enumerate(found if options.save_images is not None else ()):
        for number, score in enumerate(_scores(one)):
            alone = {**about, "prompt": one.prompt, "picture": number, "score": score}
            write_atomic(options.save_images / f"{p:03d}-{number:03d}.png", png(one.image(number), alone))
    if options.json is not None:
        rows = [{**row, "codes": one.codes_Nhw.tolist()} for row, one in zip(told, found, strict=True)]
        write_atomic(options.json, (json.dumps({**about, "prompts": rows}) + "\n").encode("utf-8"))


def show(found: Sequence[Generated], out: Path, seconds: float, generator: Generator) -> None:
    """The table of prompts and where the sheet is. Prompts and names stand as they are, without Rich's markup."""
    from rich.table import Table
    from rich.text import Text

    judge: Any = getattr(generator.scorer, "pretrained", None)
    ranked = judge is not None
    table = Table("prompt", "pictures", *(("best", "median", "worst") if ranked else ()), title="Generated")
    for one in found:
        scores = [] if one.ranking is None else [one.ranking.scores_N.max(), one.ranking.scores_N.median(), one.ranking.scores_N.min()]
        table.add_row(Text(one.prompt), str(len(one.codes_Nhw)), *(f"{float(score):.3f}" for score in scores))
    console = printer()
    console.print(table)
    pictures = sum(len(one.codes_Nhw) for one in found)
    console.print(Text(f"{pictures} {'picture' if pictures == 1 else 'pictures'} in {seconds:.1f} s: {out}"), soft_wrap=True)
    if ranked:
        console.print(Text(f"scores are cosines by {judge.source}, best first on the sheet", style="dim"), soft_wrap=True)
