"""Everything that a checkpoint and a data set allow to be measured, in one call, and the table of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmpretrain.evaluate.likelihood import likelihood
from mmpretrain.evaluate.matching import matching
from mmpretrain.evaluate.mim import masked_codes
from mmpretrain.evaluate.mlm import masked_accuracy
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.reconstruction import reconstruction
from mmpretrain.evaluate.result import Result, shown
from mmpretrain.evaluate.retrieval import FUSION_LIMIT, retrieval
from mmpretrain.evaluate.samples import EvalSet, chosen, counted, fitted, of_reader
from mmpretrain.evaluate.zeroshot import TEMPLATES, Classes, zeroshot
from mmpretrain.types import Sample

if TYPE_CHECKING:
    from rich.table import Table

    from mmpretrain.data.module import ShardData

MEASUREMENTS = ("retrieval", "matching", "mlm", "mim", "zeroshot", "reconstruction", "likelihood")
Progress = Callable[[str, int, int], None]


class Limits(NamedTuple):
    """Most samples of each measurement; None: all (for retrieval of fusion models 256 images and 65,536 pairs)."""

    retrieval: int | None = None
    matching: int | None = 1000
    mlm: int | None = 1000
    mim: int | None = 1000
    zeroshot: int | None = None
    reconstruction: int | None = None
    likelihood: int | None = 1000
    captions: int | None = None  # of each image in retrieval
    fusion_sets: int | None = None  # retrieval by a fusion model, a forward for every pair, on the first so many sets only

    def at_most(self, limit: int | None) -> Limits:
        """These limits, none of them above ``limit``."""
        if limit is None:
            return self
        own = {name: limit if most is None else min(most, limit) for name, most in self._asdict().items() if name in MEASUREMENTS}
        return self._replace(**own)


def evaluate(
    pretrained: Pretrained,
    data: ShardData | Iterable[EvalSet],
    only: Sequence[str] = MEASUREMENTS,
    limits: Limits = Limits(),  # noqa: B008 - a NamedTuple is immutable
    templates: Sequence[str] = TEMPLATES,
    classes: Classes | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """All measurements that fit the checkpoint and the data.

    Retrieval where samples have captions; matching where there are captions, minimal edits or labelled statements; masked words and
    codes of masked patches where the checkpoint has such a head; zero-shot classification into ``classes``, or, of dual encoders, where
    samples have objects with colour and shape, into these. Of discrete autoencoders, reconstruction; of left-to-right models, the
    likelihood of texts and codes.

    Args:
        pretrained: the model.
        data: the validation sets of a data module, or sets.
        only: names out of ``retrieval``, ``matching``, ``mlm``, ``mim``, ``zeroshot``, ``reconstruction``, ``likelihood``.
        limits: most samples of each.
        templates: prompts of zero-shot classification.
        classes: of zero-shot classification, for data that name one themselves.
        progress: called with (what, done, total): samples read, then pairs scored where there are pairs.

    Raises:
        ValueError: an unknown name in ``only``; the model reads regions, and a set has none, or those of another extractor.
    """
    if unknown := [name for name in only if name not in MEASUREMENTS]:
        raise ValueError(f"evaluate: unknown measurement {unknown[0]!r}; known are {', '.join(MEASUREMENTS)}")
    results: list[Result] = []
    for place, found in enumerate(sets_of(data)):
        model = pretrained.on(found.name)
        data_set, captioned = fitted(model, found), lambda sample, model=model: model.shows(sample) and bool(sample.captions)
        ranked = model.dual or (model.can_match() and (limits.fusion_sets is None or place < limits.fusion_sets))
        if "retrieval" in only and ranked and any(True for _ in chosen(data_set, None, captioned)):
            limit = limits.retrieval if model.dual else min(limits.retrieval or FUSION_LIMIT, FUSION_LIMIT)
            read, told = _read(data_set, limit, progress, "retrieval"), _named(progress, f"{data_set.name}: retrieval, pairs")
            results += retrieval(model, read, limit, limits.captions, progress=told)
        if "matching" in only and model.can_match():
            read, told = _read(data_set, limits.matching, progress, "matching"), _named(progress, f"{data_set.name}: matching, pairs")
            results += matching(model, read, limits.matching, told)
        if "mlm" in only:
            results += masked_accuracy(model, _read(data_set, limits.mlm, progress, "masked words"), limits.mlm)
        if "mim" in only:
            results += masked_codes(model, _read(data_set, limits.mim, progress, "masked patches"), limits.mim)
        if "reconstruction" in only:
            results += reconstruction(model, _read(data_set, limits.reconstruction, progress, "reconstruction"), limits.reconstruction)
        if "likelihood" in only:
            results += likelihood(model, _read(data_set, limits.likelihood, progress, "likelihood"), limits.likelihood)
        if "zeroshot" in only and classes is not None and ranked:
            limit = limits.zeroshot if model.dual else limits.zeroshot or FUSION_LIMIT
            results += zeroshot(model, _read(data_set, limit, progress, "zero-shot"), classes.names, classes.of, templates, limit)
        elif "zeroshot" in only and model.dual:
            results += _objects(model, data_set, limits.zeroshot, templates, progress)
    return results


def sets_of(data: ShardData | Iterable[EvalSet]) -> list[EvalSet]:
    """The validation sets of a data module; sets pass through."""
    if isinstance(data, Iterable):
        return list(data)
    return [of_reader(name, data.val_reader(name)) for name in data.val_sources]


def _objects(pretrained: Pretrained, data: EvalSet, limit: int | None, templates: Sequence[str], progress: Progress | None) -> list[Result]:
    """Which coloured shapes does a picture show? Any that it shows counts."""
    classes = sorted({name for sample in chosen(data, limit, pretrained.shows) for name in object_names(sample)})
    if len(classes) < 2:
        return []
    number = {name: i for i, name in enumerate(classes)}
    read, labels = _read(data, limit, progress, "zero-shot"), lambda sample: {number[name] for name in object_names(sample)}
    return zeroshot(pretrained, read, classes, labels, templates, limit)


def object_names(sample: Sample) -> set[str]:
    """``colour shape`` of the annotated objects of a sample; empty where they lack either."""
    objects = sample.meta.get("objects")
    listed = objects if isinstance(objects, list) else ()
    rows = [item for item in listed if isinstance(item, dict) and item.get("colour") and item.get("shape")]
    return {f"{item['colour']} {item['shape']}" for item in rows}


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _read(data: EvalSet, limit: int | None, progress: Progress | None, what: str) -> EvalSet:
    """The set as a measurement reads it, telling of each sample."""
    return counted(data, limit, _named(progress, f"{data.name}: {what}, samples"))


def metrics(results: Iterable[Result], prefix: str = "val") -> dict[str, float]:
    """Name -> value as logged during training, for example ``val/retrieval/scenes/i2t_R@1``."""
    return {f"{prefix}/{result.name}": result.value for result in results}


def table(results: Iterable[Result], title: str = "Evaluation") -> Table:
    """A Rich table: measurement, value, chance, samples, weights."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title)
    made.add_column("measurement", overflow="fold")
    for column in ("value", "chance", "count", "weights"):
        made.add_column(column, justify="right")
    for result in results:
        value = shown(result.name, result.value)
        chance = "" if result.chance is None else shown(result.name, result.chance)
        made.add_row(Text(result.name), value, chance, str(result.stamp.count), result.stamp.weights)
    return made


def show(results: Sequence[Result], console: Any = None, title: str = "Evaluation") -> None:
    """Print the table and, below it, each protocol once."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(table(results, title))
    for stamp in dict.fromkeys((r.stamp.data, r.stamp.protocol, r.stamp.precision) for r in results):
        console.print(Text(f"{stamp[0]}: {stamp[1]}; {stamp[2]}", style="dim"))
