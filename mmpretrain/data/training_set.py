"""The sources of a run as ``data.train`` names them: opened, checked, counted, and what a checkpoint remembers of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmpretrain.data import quarantine
from mmpretrain.data.errors import DataError
from mmpretrain.data.feed import Feed, Part
from mmpretrain.data.mixture import TrainSource, shares, stages
from mmpretrain.data.quarantine import Quarantine
from mmpretrain.data.reader import ShardReader, open_reader
from mmpretrain.data.units import Units
from mmpretrain.data.visual import Shown

Train = str | list[str] | dict[str, TrainSource]


class Defaults(NamedTuple):
    """What a source takes from the data module where it says nothing itself."""

    text_from: str
    captions: str
    shown: Shown = Shown()


def specs_of(train: str | Iterable[str] | Mapping[str, Any]) -> dict[str, TrainSource]:
    """Name -> source; one source without a name is ``""``.

    Raises:
        DataError: an empty mapping, an empty name, or a name that metrics could not have.
    """
    if not isinstance(train, Mapping):
        return {"": TrainSource(train if isinstance(train, str) else list(train))}
    if not train:
        raise DataError("data.train is an empty mapping; name at least one source")
    for name in train:
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise DataError(f"data.train: {name!r} cannot be the name of a source; take letters, digits, - and _")
    return {name: spec if isinstance(spec, TrainSource) else TrainSource(**spec) for name, spec in train.items()}


class TrainingSet:
    """The sources of a run.

    Args:
        specs: name -> source.
        defaults: of the data module.
        temperature: of weights that follow the sizes.
        open_reader: gives the samples of (sources, split).
    """

    def __init__(
        self,
        specs: Mapping[str, TrainSource],
        defaults: Defaults,
        temperature: float = 1.0,
        open_reader: Callable[[str | list[str], str], ShardReader] = open_reader,
    ) -> None:
        self.specs, self.defaults, self.temperature, self.open_reader = dict(specs), defaults, temperature, open_reader
        self._readers: dict[str, ShardReader] = {}
        self._union: ShardReader | None = None
        self._quarantine: dict[str, Quarantine] = {}
        self._units: dict[str, Units] = {}

    @property
    def named(self) -> bool:
        """Whether ``data.train`` is a mapping."""
        return "" not in self.specs

    def reader_of(self, name: str) -> ShardReader:
        """The samples of a source. Opens (and, once, indexes) its shards."""
        if name not in self._readers:
            self._readers[name] = self.open_reader(self.specs[name].sources, "train")
        return self._readers[name]

    @property
    def reader(self) -> ShardReader:
        """The samples of all sources, by number."""
        readers = [self.reader_of(name) for name in self.specs]
        if len(readers) == 1:
            return readers[0]
        if self._union is None:
            shards = {path: index for reader in readers for path, index in zip(reader.paths, reader.indexes, strict=True)}
            self._union = ShardReader(list(shards), list(shards.values()), readers[0].remote)
        return self._union

    @property
    def readers(self) -> list[ShardReader]:
        """All that were opened."""
        return [*self._readers.values(), *([self._union] if self._union is not None else [])]

    def quarantine_of(self, name: str) -> Quarantine:
        """The samples of a source that are left out by a list beside its shards."""
        if name not in self._quarantine:
            self._quarantine[name] = quarantine.of(self.reader_of(name))
        return self._quarantine[name]

    def fingerprint_of(self, name: str) -> str:
        """sha256 of the contents of a source's shards, and of what is in quarantine."""
        found, left_out = self.reader_of(name).fingerprint, self.quarantine_of(name).digest
        return hashlib.sha256(f"{found} {left_out}".encode()).hexdigest() if left_out else found

    @property
    def fingerprint(self) -> str:
        """sha256 of the contents of all sources."""
        if not self.named:
            return self.fingerprint_of("")
        return hashlib.sha256("\n".join(f"{name} {self.fingerprint_of(name)}" for name in self.specs).encode()).hexdigest()

    def text_from(self, name: str) -> str:
        return self.specs[name].text_from or self.defaults.text_from

    def captions(self, name: str) -> str:
        return self.specs[name].captions or self.defaults.captions

    def shown(self, name: str) -> Shown:
        own, default = self.specs[name], self.defaults.shown
        return Shown(own.show or default.show, own.regions or default.regions)

    def units_of(self, name: str) -> Units:
        """The units of a source.

        Raises:
            DataError: it has none.
        """
        if name not in self._units:
            every = self.captions(name) == "all"
            left_out = self.quarantine_of(name).samples
            self._units[name] = Units(self.reader_of(name), self.text_from(name), every, self.specs[name].reads, left_out, self.shown(name))
            self._units[name].joined = self.specs[name].joined
        return self._units[name]

    @property
    def pictures_alone(self) -> bool:
        """Whether no source reads texts, so that there is nothing to tokenise."""
        return all(spec.reads == "images" for spec in self.specs.values())

    def shows_codes(self, name: str) -> bool:
        """Whether the source ``name``, or the validation set of this name, shows image codes."""
        spec = self.specs.get(name)
        return self.defaults.shown.has_codes if spec is None else spec.reads != "texts" and self.shown(name).has_codes

    def val_units(self, name: str, reader: ShardReader) -> Units:
        """The units of a validation set, without what is in quarantine: read as the training source of its name, else as
        pairs, or as pictures where no source reads more."""
        left_out = quarantine.of(reader).samples
        if name in self.specs:
            made = Units(reader, self.text_from(name), False, self.specs[name].reads, left_out, self.shown(name))
            made.joined = self.specs[name].joined
            return made
        reads = "images" if self.pictures_alone else "pairs"
        return Units(reader, self.defaults.text_from, reads=reads, quarantine=left_out, shown=self.defaults.shown)

    def parts(self) -> list[Part]:
        """What the run is fed with."""
        units = [self.units_of(name) for name in self.specs]
        found = shares(self.specs, [one.total for one in units], self.temperature) if self.named else (1.0,)
        rows = zip(self.specs.items(), units, found, stages(self.specs), strict=True)
        return [Part(name, one, share, spec.max_epochs, after) for (name, spec), one, share, after in rows]

    def facts(self, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
        """What a checkpoint remembers of every source of a mixture."""
        found = {}
        for part in parts:
            kind = f"{part.units.reads}/{part.units.text_from}/{'all' if part.units.every_text else 'sample'}"
            kind += f"/{part.units.shown.show}" if part.units.reads_regions or part.units.reads_codes else ""
            kind += "/joined" if part.units.joined else ""
            found[part.name] = {"as": kind, "shards": self.fingerprint_of(part.name)[:12], "weight": round(part.share, 6)}
            found[part.name] |= {"max_epochs": part.max_epochs} if part.max_epochs is not None else {}
            found[part.name] |= {"after": parts[part.after].name} if part.after is not None else {}
        return found

    def objectives_of(self, name: str, sources: Mapping[str, tuple[str, ...] | None]) -> set[str]:
        """The objectives that read a source. ``sources``: objective -> names of sources, None: all."""
        return {objective for objective, listed in sources.items() if listed is None or name in listed}

    def check_objectives(self, sources: Mapping[str, tuple[str, ...] | None], mix: str) -> None:
        """That every objective's sources exist and every source has an objective.

        Raises:
            DataError: naming what does not fit.
        """
        for objective, listed in sources.items():
            if listed is None:
                continue
            if not self.named:
                raise DataError(f"objective {objective!r} reads the sources {list(listed)}, but data.train is one source without a name")
            if unknown := [name for name in listed if name not in self.specs]:
                raise DataError(f"objective {objective!r} reads the source {unknown[0]!r}; data.train has {', '.join(self.specs)}")
            if mix == "sample" and not set(self.specs) <= set(listed):
                raise DataError(f"objective {objective!r} reads some sources only; set data.mix=batch, which gives every batch one source")
        idle = [name for name in self.specs if not self.objectives_of(name, sources)]
        if sources and idle:
            raise DataError(f"no objective reads the source {idle[0]!r} of data.train; leave it out, or name it in the `sources` of one")

    def tell(self, feed: Feed) -> str:
        """What the run is fed with and what is left out, in one line."""
        dropped = feed.dropped()
        text = f"data: {sum(part.units.samples for part in feed.parts)} samples, "
        about = "" if feed.exact else "about " if not feed.mix else "nominally "
        text += f"{about}{feed.steps} steps of {feed.batch_size if not feed.tokens else f'{feed.tokens} tokens'} in an epoch"
        if dropped:
            named = ", ".join(f"{count}{f' of {name}' if name else ''}" for name, count in dropped.items())
            text += f", {named} at its end are dropped"
        for part in feed.parts if feed.mix else ():
            limit = f", at most {part.max_epochs} epochs" if part.max_epochs else ""
            limit += f", after {feed.parts[part.after].name}" if part.after is not None else ""
            text += f"; {part.name}: {100 * part.share:.3g} % from {part.units.samples} samples{limit}"
        for part in feed.parts:
            text += self._left_out(part)
        ignored = Counter[str]()
        for index in self.reader.indexes:
            ignored.update(index.ignored)
        if ignored:
            text += f"; members never read: {', '.join(f'{name} ({count})' for name, count in ignored.most_common(5))}"
        return text

    def _left_out(self, part: Part) -> str:
        text, named = "", f" of {part.name}" if part.name else ""
        if part.units.left_out:
            problem = next((problem for index in part.units.reader.indexes for problem in index.problems), None)
            lack = part.units.wants.replace(" and ", " or ")
            text += f"; {part.units.left_out} samples{named} lack {lack} and are left out" + (f" ({problem})" if problem else "")
        if part.units.quarantined:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self.quarantine_of(part.name).reasons.most_common(3))
            text += f"; {part.units.quarantined} samples{named} are in quarantine and left out: {reasons}"
        return text
