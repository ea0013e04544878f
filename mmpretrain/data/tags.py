"""Tags: the names of the objects of a picture as a second text (Oscar, arXiv 2004.06165; VinVL, arXiv 2101.00529).

The one place where tags are made. Whoever shows a text beside a picture asks :meth:`Tagger.tags` for the tags of that *picture*, and
tokenises the pair (text, tags); a text without tags stays alone. So a caption that is tried on another picture, as in retrieval, comes with
the tags of that picture, not with those of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data.visual import Shown
from mmpretrain.types import Regions, Sample

CLASS_FIELDS = ("shape", "tag", "class", "name", "category")  # where an object of KEY.json has its name, the first that is there
SOURCES = ("auto", "json", "regions", "objects")


@dataclass(frozen=True)
class TagOptions:
    """Texts are told with tags: [CLS] caption [SEP] names of objects [SEP].

    Batches by length (``data.buckets``) count them as ``data/seconds.py`` says.

    Args:
        source: ``json``: ``tags`` of ``KEY.json``, a list or a text; ``regions``: the classes of the regions that are shown, in their
            order, by the names of the set (``regions.json``); ``objects``: the names of ``objects`` in ``KEY.json``, in their order;
            ``auto``: the first of these three that a sample has.
        repeats: whether a name that several objects have is told several times.
        most: names of a picture; None: as many as ``data.max_tokens`` leaves room for.

    Raises:
        DataError: an option out of its range.
    """

    source: Literal["auto", "json", "regions", "objects"] = "auto"
    repeats: bool = True
    most: int | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise DataError(f"data.tags.source={self.source!r}; take one of {', '.join(SOURCES)}")
        if self.most is not None and self.most < 1:
            raise DataError(f"data.tags.most={self.most} must be at least 1")

    def check(self, shown: Shown) -> None:
        """That a source can give them.

        Raises:
            DataError: they are to be made of regions, and it shows none.
        """
        if self.source == "regions" and not shown.has_regions:
            raise DataError("data.tags.source=regions needs data.show=regions or both; take source=objects, source=json or auto")


class Tagger(NamedTuple):
    """Makes the tags of pictures.

    ``classes`` are the names of the regions' classes, and ``background`` the one that means none of them.
    """

    options: TagOptions
    classes: tuple[str, ...] | None = None
    background: int | None = None

    @property
    def reads_regions(self) -> bool:
        """Whether it may want to see regions."""
        return self.options.source == "regions" or (self.options.source == "auto" and self.classes is not None)

    def tags(self, sample: Sample, regions: Regions | None = None) -> str | None:
        """The tags of a sample: names joined by spaces; None where it has none.

        Args:
            regions: those that are shown, where they are.

        Raises:
            BadSample: ``tags`` or ``objects`` in ``KEY.json`` are not as they should be.
        """
        found: list[str] = []
        for source in SOURCES[1:] if self.options.source == "auto" else (self.options.source,):
            found = [" ".join(name.split()) for name in self._names(source, sample, regions)]
            if found := [name for name in found if name]:
                break
        found = found if self.options.repeats else list(dict.fromkeys(found))
        return " ".join(found[: self.options.most]) or None

    def _names(self, source: str, sample: Sample, regions: Regions | None) -> Iterator[str]:
        if source == "json":
            yield from _listed(sample.meta.get("tags"))
        elif source == "objects":
            yield from object_names(sample.meta)
        elif regions is not None and self.classes is not None:
            numbers = regions.classes
            if numbers is None and regions.class_probs is not None:
                numbers = regions.class_probs.argmax(1)
            for number in [] if numbers is None else numbers.tolist():
                if 0 <= number < len(self.classes) and number != self.background:
                    yield self.classes[number]


def tagger(options: TagOptions, info: RegionsInfo | None) -> Tagger:
    """What makes the tags of a set whose regions ``info`` describes (``regions_info.check_readers``).

    Raises:
        DataError: tags are to be made of regions whose classes have no names.
    """
    if options.source == "regions" and (info is None or info.classes is None):
        raise DataError("data.tags.source=regions: the shards have no regions.json that names classes; take source=objects or source=json")
    return Tagger(options) if info is None else Tagger(options, info.classes, info.background)


def _listed(found: Any) -> list[str]:
    found = [found] if isinstance(found, str) else found or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BadSample("json.tags is neither a text nor a list of texts")
    return found


def object_names(meta: Mapping[str, Any]) -> Iterator[str]:
    """The names of the objects of ``KEY.json``, of all pictures of a sample, in their order; those without a name are passed over.

    Raises:
        BadSample: they are not a list of objects.
    """
    graphs = meta.get("images")
    for graph in graphs if isinstance(graphs, list) and graphs and all(isinstance(one, Mapping) for one in graphs) else [meta]:
        listed = graph.get("objects") or graph.get("regions") or []
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            raise BadSample("json.objects or json.regions is not a list of objects")
        for one in listed:
            name = next((one[field] for field in CLASS_FIELDS if isinstance(one.get(field), str)), None)
            if name is not None:
                yield name
