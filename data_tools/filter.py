"""``mmpretrain data filter``: samples and captions chosen by conditions, relevance and repetition, with an account of what was dropped."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.index import open_index
from mmpretrain.data_tools import filter_recipe
from mmpretrain.data_tools.common import device_of, named_sources, table, tool_parser, write_json
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.filter_recipe import Step
from mmpretrain.data_tools.filter_shard import CAPTION_FIELDS, SAMPLE_FIELDS, check_scores, filter_rows, hash_rows, score_rows, unpacked
from mmpretrain.data_tools.indexing import index
from mmpretrain.data_tools.rewrite import STATE, Row, rewrite
from mmpretrain.data_tools.shards import SHARD_SIZE, fresh_folder

REPORT = "filter_report.json"
UNDECODABLE = "picture cannot be decoded"


class Shard(NamedTuple):
    """A shard of a source."""

    path: Path
    source: str


class Report(NamedTuple):
    """Samples and captions by source: [samples, captions]. ``dropped`` is step -> source -> such a pair. ``missing``: fields of conditions
    that no sample has, so that a comparison with them never holds. ``near``: such a field -> one of like name that samples have."""

    seen: dict[str, list[int]]
    dropped: dict[str, dict[str, list[int]]]
    kept: dict[str, list[int]]
    missing: list[str]
    near: dict[str, str]


class Filter:
    """The rows that are left, shard by shard, while the steps run.

    Args:
        sources: name -> shards.
        checkpoint: for relevance: a file, or the folder of a run.
        state: the folder of finished items.
        engine: arguments of the engine.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Path]], checkpoint: Path | None, device: str, state: Path, engine: Mapping[str, Any]
    ) -> None:
        self.shards = [Shard(path, name) for name, paths in sources.items() for path in paths]
        self.stamps = [stamp(one.path) for one in self.shards]
        self.checkpoint, self.device, self.state, self.engine = checkpoint, device, state, dict(engine)
        self.rows: list[list[Any] | None] = [None] * len(self.shards)  # None: everything, nothing was asked yet
        self.scores: list[list[list[float]]] | None = None  # beside the rows
        zero = {name: [0, 0] for name in sources}
        self.report = Report({name: [0, 0] for name in sources}, {}, zero, [], {})

    def run(self, steps: Sequence[Step]) -> None:
        """All steps; neighbouring conditions read the shards once."""
        first = 0
        while first < len(steps):
            last = first
            while last < len(steps) and steps[last].kind in ("where", "captions"):
                last += 1
            if last > first or first == 0:
                self.conditions(steps[first:last])
            if last < len(steps):
                step = steps[last]
                {"repeated": self.repeated, "relevance": self.relevance, "best": self.best}[step.kind](step)
            first = last + 1
        for shard, rows in zip(self.shards, self.rows, strict=True):
            self._count(self.report.kept[shard.source], len(rows or ()), sum(len(captions) for _, captions in rows or ()))

    def conditions(self, steps: Sequence[Step]) -> None:
        """Steps that look at one sample at a time; also what reads all rows when there is none."""
        listed = [[step.name, step.kind, step.condition] for step in steps]
        found = self._pass("filter", filter_rows, lambda n: {"source": self.shards[n].source, "rows": self.rows[n], "steps": listed})
        for step in steps:
            self.report.dropped.setdefault(step.name, {})
        looked = [set(one["missing"]) for one in found if one["seen"][0]]
        self.report.missing.extend(sorted((set.intersection(*looked) if looked else set()) - set(self.report.missing)))
        known = [*SAMPLE_FIELDS, *CAPTION_FIELDS, *(name for one in found for name in one["known"])]
        alike = {name: difflib.get_close_matches(name, known, n=1) for name in self.report.missing}
        self.report.near.update({name: like[0] for name, like in alike.items() if like})
        for number, one in enumerate(found):
            source = self.shards[number].source
            if self.rows[number] is None:
                self._count(self.report.seen[source], *one["seen"])
            for name, counts in one["dropped"].items():
                self._drop(name, source, *counts)
            if self.scores is not None:
                self.scores[number] = _chosen(self.rows[number] or [], self.scores[number], one["rows"])
            self.rows[number] = one["rows"]

    def repeated(self, step: Step) -> None:
        """Captions that stand with more different pictures than ``images``."""
        found = self._pass("hash", hash_rows, lambda n: {"rows": self.rows[n]})
        texts = [unpacked(one["texts"]) for one in found]
        pictures = [np.repeat(unpacked(one["pictures"]), [len(c) for _, c in rows]) for one, rows in zip(found, self.rows, strict=True)]
        pairs = np.unique(np.stack([np.concatenate(texts), np.concatenate(pictures)], axis=1), axis=0)
        values, counts = np.unique(pairs[:, 0], return_counts=True)
        often = values[counts > step.options["images"]]
        self._keep(step.name, [~np.isin(one, often) for one in texts])

    def relevance(self, step: Step) -> None:
        """Captions whose score is below the threshold, or that are not in the best fraction of all."""
        if self.checkpoint is None:
            raise DataError("relevance needs a model: name a checkpoint or the folder of a run by --checkpoint")
        facts = stamp(self.checkpoint)
        found = self._pass("score", score_rows, lambda n: {"checkpoint": facts, "device": self.device, "rows": self.rows[n]})
        self.scores = [one["scores"] for one in found]
        flat = [np.asarray([s for row in one for s in row], dtype=np.float64) for one in self.scores]  # None becomes nan
        self._keep(UNDECODABLE, [~np.isnan(one) for one in flat])
        flat = [one[~np.isnan(one)] for one in flat]
        everything = np.sort(np.concatenate(flat))[::-1]
        least = step.options.get("threshold")
        if least is None and len(everything):
            least = float(everything[max(1, round(step.options["fraction"] * len(everything))) - 1])
        self._keep(step.name, [one >= (least or 0.0) for one in flat])

    def best(self, step: Step) -> None:
        """Of all captions of one picture, the most relevant; the first of equals."""
        assert self.scores is not None
        found = self._pass("hash", hash_rows, lambda n: {"rows": self.rows[n]})
        sizes = [[len(captions) for _, captions in rows or ()] for rows in self.rows]
        pictures = np.concatenate([np.repeat(unpacked(one["pictures"]), counts) for one, counts in zip(found, sizes, strict=True)])
        scores = np.asarray([s for shard in self.scores for row in shard for s in row], dtype=np.float64)
        order = np.lexsort((np.arange(len(scores)), -scores, pictures))
        first = np.concatenate([[True], pictures[order[1:]] != pictures[order[:-1]]])[: len(order)]
        keep = np.zeros(len(scores), dtype=bool)
        keep[order[first]] = True
        self._keep(step.name, np.split(keep, np.cumsum([sum(counts) for counts in sizes])[:-1]))

    def _pass(self, title: str, function: Any, work: Any) -> list[dict[str, Any]]:
        items = {str(shard.path): {"shard": self.stamps[n], **work(n)} for n, shard in enumerate(self.shards)}
        found = run(function, items, title=title, state=self.state, **self.engine)
        return [found[str(shard.path)] for shard in self.shards]

    def _keep(self, name: str, masks: Sequence[np.ndarray]) -> None:
        """Keep the captions where the mask of the shard is true; samples without any go."""
        self.report.dropped.setdefault(name, {})
        for number, mask in enumerate(masks):
            before, at, after = self.rows[number] or [], 0, []
            for sample, captions in before:
                kept = [caption for place, caption in enumerate(captions) if mask[at + place]]
                at += len(captions)
                if kept:
                    after.append([sample, kept])
            self._drop(name, self.shards[number].source, len(before) - len(after), int(len(mask) - np.count_nonzero(mask)))
            if self.scores is not None:
                self.scores[number] = _chosen(before, self.scores[number], after)
            self.rows[number] = after

    def _drop(self, name: str, source: str, samples: int, captions: int) -> None:
        self._count(self.report.dropped.setdefault(name, {}).setdefault(source, [0, 0]), samples, captions)

    @staticmethod
    def _count(pair: list[int], samples: int, captions: int) -> None:
        pair[0], pair[1] = pair[0] + samples, pair[1] + captions

    def written(self) -> list[Row]:
        """The rows for ``rewrite``: captions that are left, their relevance where it was asked for."""
        made: list[Row] = []
        for number, rows in enumerate(self.rows):
            whole = open_index(self.shards[number].path).captions_S
            for place, (sample, captions) in enumerate(rows or ()):
                edit: dict[str, Any] = {"keep": captions} if len(captions) < int(whole[sample]) else {}
                if self.scores is not None:
                    edit["meta"] = {"relevance": self.scores[number][place]}
                made.append([number, sample, edit])
        return made


def _chosen(before: Sequence[Any], scores: Sequence[Any], after: Sequence[Any]) -> list[list[Any]]:
    """The scores of the rows that are left."""
    known = {sample: dict(zip(captions, row, strict=True)) for (sample, captions), row in zip(before, scores, strict=True)}
    return [[known[sample][caption] for caption in captions] for sample, captions in after]


def filter_shards(
    sources: Mapping[str, Sequence[Path]],
    out: Path,
    steps: Sequence[Step],
    checkpoint: Path | None = None,
    device: str = "cpu",
    shard_size: int = SHARD_SIZE,
    engine: Mapping[str, Any] | None = None,
) -> Report:
    """Write what the steps leave of the sources to ``out``, with ``filter_report.json``.

    Args:
        sources: name -> shards.
        steps: see :mod:`mmpretrain.data_tools.filter_recipe`.
        checkpoint: for relevance.
        device: for relevance.
        engine: arguments of :func:`mmpretrain.data_tools.engine.run`.

    Raises:
        DataError: a damaged shard, relevance without a checkpoint that gives scores, or ``out`` holds something else.
    """
    if any(step.kind == "relevance" for step in steps):
        if checkpoint is None:
            raise DataError("the recipe asks for relevance: name a checkpoint or the folder of a run by --checkpoint")
        device = device_of(device, "--device")
        check_scores(str(checkpoint))
    state = fresh_folder(out, STATE)
    inputs = [path for paths in sources.values() for path in paths]
    index(inputs, engine=engine)
    work = Filter(sources, checkpoint, device, state, engine or {})
    work.run(steps)
    made = {"tool": "filter", "steps": [[step.name, step.kind, step.condition or dict(step.options)] for step in steps]}
    write_json(out / REPORT, {**made, **work.report._asdict()})  # before the last step, which makes the folder complete
    rewrite(out, {"": work.written()}, inputs, made, shard_size, engine or {})
    return work.report


def show(report: Report) -> None:
    """Print what was dropped, by step and source."""
    several = len(report.seen) > 1
    columns = ("", *(f"{name}: {what}" if several else what for name in report.seen for what in ("samples", "captions")))
    row = lambda title, counts: (title, *(value for name in report.seen for value in counts.get(name, (0, 0))))
    rows = [row("seen", report.seen), *(row(f"- {name}", counts) for name, counts in report.dropped.items()), row("kept", report.kept)]
    table("Kept and dropped", columns, rows)
    for name in report.missing:
        if name in CAPTION_FIELDS:
            print(
                f"filter: {name!r} is a field of captions: no comparison of --where with it holds; ask by --captions", file=sys.stderr
            )
            continue
        hint = f"did you mean {report.near[name]!r}?" if name in report.near else "is it spelt right?"
        print(f"filter: no sample has a field {name!r}: no comparison with it holds; {hint}", file=sys.stderr)


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Filter sets; returns the exit code.

    Raises:
        DataError: arguments, recipes or shards that do not fit.
    """
    example = "mmpretrain data filter web=shards/ --out kept/ --where 'min_side >= 200 and aspect < 3' --captions 'words >= 3'"
    text = "Choose samples and captions by conditions on their fields, by relevance, or by a recipe; conditions come first, then the rest"
    parser = tool_parser(parser_class, "filter", text, example)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]SOURCE", help="sets; the report counts each by its name")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards and the report")
    parser.add_argument("--recipe", help=f"a YAML file, or one of {', '.join(filter_recipe.shipped())}")
    parser.add_argument("--where", help="keep the samples of which this holds")
    parser.add_argument("--captions", help="keep the captions of which this holds")
    parser.add_argument("--repeated", type=int, metavar="N", help="drop captions that stand with more than N different pictures")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint or the folder of a run, for relevance")
    relevance = parser.add_mutually_exclusive_group()
    relevance.add_argument("--threshold", type=float, help="least relevance of a caption")
    relevance.add_argument("--fraction", type=float, help="keep this part of all captions, the most relevant")
    parser.add_argument("--best", action="store_true", help="keep the most relevant caption of each picture")
    parser.add_argument("--device", default="cpu", help="for relevance; on a GPU take --workers 1")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    options = parser.parse_args(args)
    found = filter_shards(
        named_sources(options.sources),
        options.out,
        _steps(options),
        options.checkpoint,
        options.device,
        options.shard_size,
        options_of(options),
    )
    show(found)
    if not any(samples for samples, _ in found.kept.values()):
        print(f"filter: nothing was kept: {options.out} has no shard", file=sys.stderr)
    return 0


def _steps(options: argparse.Namespace) -> list[Step]:
    given: list[tuple[str, Any]] = [("where", options.where), ("captions", options.captions)]
    given += [("repeated", options.repeated and {"images": options.repeated})]
    given += [("relevance", {name: getattr(options, name)}) for name in ("threshold", "fraction") if getattr(options, name) is not None]
    steps = [filter_recipe.make(kind, value) for kind, value in given if value is not None]
    steps += [filter_recipe.make("best", None)] if options.best else []
    if options.recipe and steps:
        raise DataError("--recipe stands alone: put the other steps into a recipe of your own")
    if not options.recipe and not steps:
        raise DataError("nothing to filter by: give --recipe, --where, --captions, --repeated, --threshold or --fraction")
    return filter_recipe.load(options.recipe) if options.recipe else filter_recipe.checked(steps)
