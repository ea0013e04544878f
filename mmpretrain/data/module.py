"""``ShardData``: the data module. One loader item is one optimiser step; its position is the whole state of the data.

Works with a Trainer, which tells rank, world size, micro-batches and preparers, and without one (``setup("fit")``: one process).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from mmpretrain.data import codes_info, needs, regions_info, working
from mmpretrain.data.answers import AnswerOptions
from mmpretrain.data.bad import BadWindow
from mmpretrain.data.buckets import Buckets
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.dataset import Assembler, StepDataset, ValDataset
from mmpretrain.data.errors import DataError
from mmpretrain.data.feed import Feed
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.loaders import StepLoader, StepSampler, check_shared_draws, epoch_limit, loader_options
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.mixture_cursor import BatchMixtureCursor, SampleMixtureCursor
from mmpretrain.data.neighbours import NeighbourOptions
from mmpretrain.data.plan import Plan, spread, val_slices
from mmpretrain.data.reader import open_reader
from mmpretrain.data.reading import ReadingData
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.data.tags import TagOptions
from mmpretrain.data.text import TextOptions
from mmpretrain.data.training_set import Defaults, TrainingSet, specs_of
from mmpretrain.data.visual import RegionOptions, Shown
from mmpretrain.types import Preparer

_CURSORS: dict[str, type[Cursor]] = {"": Cursor, "sample": SampleMixtureCursor, "batch": BatchMixtureCursor}


class ShardData(ReadingData):
    """Batches from WebDataset shards, in an order that is a pure function of (seed, epoch).

    Args:
        train: sources of the training set: folders, tar files, ``{000..012}`` patterns, ``a::b`` lists, ``${VARIABLE}``, or ``scenes``,
            also at ``s3://``, ``gs://`` and ``http(s)://`` addresses; or a mixture, name -> ``TrainSource``.
        val: name -> sources of a validation set; one with the name of a training source is read as that source.
        batch_size: samples of one optimiser step over all ranks and micro-batches.
        text: the tokenizer.
        max_tokens: longest text, special tokens included.
        image: the transform of pictures.
        captions: ``sample``: an epoch shows every sample once with one of its texts drawn; ``all``: every text of every sample once.
        text_from: ``captions``; ``statements`` with their labels (a false one comes with ``matched=False``); ``questions``; or
            ``captions+questions``, of which one is drawn (LXMERT).
        show: what is read of a sample's visual side: ``image``, ``regions`` (``KEY.regions.npz``; no picture is read then), ``both``,
            ``codes`` (``KEY.codes.npy``: the picture as tokens of a discrete autoencoder), or ``image+codes``.
        regions: which of them.
        tags: texts are pairs of a text and the names of the objects of the picture; None: texts stand alone.
        answers: what questions are answered with; None: answers are not read.
        neighbours: which texts are alike, for hard negatives.
        seed: root of the order and of every draw.
        workers: processes that decode; None: as many as the machine allows; 0: decode in the training process.
        val_batch_size: samples of a validation batch of one rank.
        val_samples: at most so many of each validation set, evenly spread; None: all.
        block: shards that are shuffled together.
        prefetch: steps that each worker prepares ahead.
        timeout: seconds after which a silent worker is an error.
        on_bad: ``replace`` samples that cannot be decoded, or ``stop`` at the first.
        max_bad_fraction: part of 10,000 samples in a row that may be replaced before the run stops.
        mix: of a mixture: ``sample``: sources alternate sample by sample; ``batch``: every batch has one source.
        temperature: a mixture without weights draws sources by size ** (1 / temperature).
        buckets: batches of samples of like shape, or of a number of tokens.
        remote: how shards at other addresses are read.
        allow_pipe: run the commands of ``pipe:COMMAND`` sources.
        allow_data_change: continue although the shards, the sources or weights of a mixture, or the batch size at a multiple, differ from
            the saved run.
    """

    def __init__(
        self,
        train: str | list[str] | dict[str, TrainSource] = "scenes",
        val: dict[str, str | list[str]] | None = None,
        batch_size: int = 64,
        text: TextOptions = TextOptions(),  # noqa: B008  (frozen)
        max_tokens: int = 40,
        image: ImageTransform = ImageTransform(),  # noqa: B008  (frozen)
        captions: Literal["sample", "all"] = "sample",
        text_from: Literal["captions", "statements", "questions", "captions+questions"] = "captions",
        show: Literal["image", "regions", "both", "codes", "image+codes"] = "image",
        regions: RegionOptions = RegionOptions(),  # noqa: B008  (frozen)
        tags: TagOptions | None = None,
        answers: AnswerOptions | None = None,
        neighbours: NeighbourOptions = NeighbourOptions(),  # noqa: B008  (frozen)
        seed: int = 0,
        workers: int | None = None,
        val_batch_size: int = 64,
        val_samples: int | None = None,
        block: int = 16,
        prefetch: int = 2,
        timeout: float = 300.0,
        on_bad: Literal["stop", "replace"] = "replace",
        max_bad_fraction: float = 0.001,
        mix: Literal["sample", "batch"] = "sample",
        temperature: float = 1.0,
        buckets: Buckets | None = None,
        remote: RemoteOptions = RemoteOptions(),  # noqa: B008  (frozen)
        allow_pipe: bool = False,
        allow_data_change: bool = False,
    ) -> None:
        super().__init__(max_bad_fraction)
        if captions not in ("sample", "all") or on_bad not in ("stop", "replace"):
            raise DataError(f"data.captions={captions!r} must be sample or all, data.on_bad={on_bad!r} stop or replace")
        if mix not in _CURSORS:
            raise DataError(f"data.mix={mix!r} must be sample or batch")
        if val_batch_size < 1 or (val_samples is not None and val_samples < 1):
            raise DataError(f"data.val_batch_size={val_batch_size} and data.val_samples={val_samples} must be at least 1")
        self.train_sources, self.val_sources = train, dict(val or {})
        self.batch_size, self.text, self.max_tokens, self.image = batch_size, text, max_tokens, image
        self.captions, self.text_from, self.seed, self.workers = captions, text_from, seed, workers
        self.val_batch_size, self.val_samples, self.block = val_batch_size, val_samples, block
        self.prefetch, self.timeout, self.on_bad, self.allow_data_change = prefetch, timeout, on_bad, allow_data_change
        self.mix, self.buckets, self.tags, self.answers, self.neighbours = mix, buckets, tags, answers, neighbours
        self.open_reader = partial(open_reader, remote=remote, allow_pipe=allow_pipe)
        self.shown = Shown(show, regions).check(image)
        self.set = TrainingSet(specs_of(train), Defaults(text_from, captions, self.shown), temperature, self.open_reader)
        self.rank, self.world, self.accumulate, self.local_world = 0, 1, 1, 1
        self.preparers: dict[str, Preparer] = {}
        self.objective_sources: dict[str, tuple[str, ...] | None] = {}
        self.feed: Feed | None = None
        for name in self.set.specs:
            self.set.shown(name).check(image)
            if tags is not None:
                tags.check(self.set.shown(name))

    # ---------------------------------------------------------------- life cycle
    @property
    def plan(self) -> Plan | None:
        """The order of the one source; of a mixture's first."""
        return self.feed.plans[0] if self.feed is not None else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch of the data."""
        if self.feed is None:
            self.setup("fit")
        assert self.feed is not None
        return self.feed.steps

    def configure(
        self,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        preparers: Mapping[str, Preparer] | None = None,
        sources: Mapping[str, tuple[str, ...] | None] | None = None,
    ) -> None:
        """What a Trainer tells, by hand: this process's place, micro-batches per step, what the objectives prepare, and the sources of a
        mixture that they read (None: all).

        Raises:
            DataError: a batch that cannot be cut for this layout, or sources that do not exist.
        """
        if self.buckets is None or self.buckets.tokens is None:
            check_shared_draws(preparers or {}, self.batch_size, world, accumulate)
        self.set.check_objectives(sources or {}, self.mix)
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.preparers, self.objective_sources = dict(preparers or {}), dict(sources or {})

    def prepare_data(self) -> None:
        """Index the shards and train the tokenizer, once per machine."""
        _ = self.tokenizer
        for name in self.val_sources:
            self.val_reader(name)

    def setup(self, stage: str | None = None) -> None:
        """Make the plan. ``stage="fit"`` also checks the saved position, if one was loaded."""
        if self.trainer is not None:
            self._ask(self.trainer)
        if stage in (None, "fit") and self.feed is None:
            parts = self.set.parts()
            self.regions_info = regions_info.check_readers([*(part.units.reader for part in parts), *self.val_readers.values()])
            width = regions_info.feature_width(part.units for part in parts)
            self.region_width = width.values if width is not None else None
            root = getattr(getattr(self.trainer, "lightning_module", None), "root", None)
            model, objectives = getattr(root, "model", None), getattr(root, "objectives", {})
            pictures = all(part.units.reads_image for part in parts if part.units.reads_regions)
            regions_info.check_model(getattr(model, "spec", None), width, pictures)
            needs.check_texts(getattr(model, "spec", None), parts, self.max_tokens)
            needs.check_codes(getattr(model, "spec", None), objectives, parts)
            codes_info.check_model(getattr(model, "spec", None), self.codes_info)
            if any(part.units.reads_image and part.units.reads_codes for part in parts):
                codes_info.check_image(self.image, self.codes_info)
                codes_info.check_patches(getattr(model, "spec", None), self.image, self.codes_info)
            for part in parts:
                part.units.second = self.second(part.name, part.units)
            self.feed = Feed(parts, self.mix, self.batch_size, self.seed, self.block, self.buckets, self.image, self.max_tokens)
            self.feed.check(self.world, self.accumulate)
            self.cursor = _CURSORS[self.feed.mix](self.feed, self.identity(), self.allow_data_change)
            rank_zero_info(self.set.tell(self.feed))
            self.go()
        elif stage == "fit" and self.trainer is not None and self.trainer.global_step == 0 and self._saved is None:
            self._begin_again()

    def _begin_again(self) -> None:
        """Another run with this data module: it starts at the beginning, wherever the one before ended."""
        assert self.feed is not None
        if self.feed.mix == "sample":
            self.feed.rebase((0, 0), [0] * len(self.feed.parts))
        self.cursor = _CURSORS[self.feed.mix](self.feed, self.identity(), self.allow_data_change)
        self.bad = BadWindow(self.bad.fraction)

    def teardown(self, stage: str | None = None) -> None:
        """Close the shards. Whoever reads on opens them again."""
        self._saved = None if self.cursor is not None else self._saved  # the run that ends went to it
        for reader in (*self.set.readers, *self._val.values()):
            reader.close()

    def identity(self) -> dict[str, Any]:
        """What must be equal for a saved position to mean the same samples."""
        assert self.feed is not None
        facts: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed, "block": self.block}
        if self.feed.mix:
            facts["sources"] = self.set.facts(self.feed.parts)
        else:
            facts = {"fingerprint": self.fingerprint, **facts, "captions": self.captions, "text_from": self.text_from}
            facts |= {"show": shown.show} if (shown := self.set.shown("")).show != "image" else {}
        return facts if self.feed.ruler is None else {**facts, "buckets": self.feed.ruler.identity}

    def _ask(self, trainer: pl.Trainer) -> None:
        place = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        engine = getattr(trainer, "engine", None)
        self.local_world = trainer.num_devices
        ask = getattr(trainer.lightning_module, "preparers", None)
        self.configure(
            place.get("rank", trainer.global_rank),
            place.get("num_replicas", trainer.world_size),
            engine.accumulate if engine is not None else trainer.accumulate_grad_batches,
            ask() if ask is not None else {},
            getattr(trainer.lightning_module, "objective_sources", {}),
        )

    # ---------------------------------------------------------------- loaders
    def train_dataloader(self) -> working.Loader:
        """Items are tuples of micro-batches, one item per optimiser step; the length is that of a whole epoch."""
        if self.feed is None or self.cursor is None:
            self.setup("fit")
        assert self.feed is not None and self.cursor is not None
        sources = [self.source(part.name, part.units.reader, part.units) for part in self.feed.parts]
        dataset = StepDataset(Assembler(sources, self.collator), self.feed, self.rank, self.world, self.accumulate)
        return StepLoader(
            dataset, sampler=StepSampler(self.cursor, epoch_limit(self.trainer, self.feed.steps)), **self._loader(len(dataset))
        )

    def val_dataloader(self) -> list[working.Loader]:
        """One loader per validation set, in the order of ``val``; items are batches, every sample once over all ranks."""
        loaders = []
        for name in self.val_sources:
            known, reader = name in self.set.specs, self.val_reader(name)
            units = self.set.val_units(name, reader)
            if units.quarantined:
                rank_zero_info(f"data: {units.quarantined} samples of the validation set {name!r} are in quarantine and left out")
            source = self.source(name if known else "", reader, units)
            count = min(units.total, self.val_samples or units.total)
            chosen, cuts = spread(units.total, count), val_slices(count, self.val_batch_size, self.rank, self.world)
            dataset = ValDataset(Assembler([source], self.collator), self.seed, chosen, cuts)
            loaders.append(working.Loader(dataset, shuffle=False, **self._loader(len(dataset))))
        return loaders

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _loader(self, items: int) -> dict[str, Any]:
        return loader_options(self.workers, self.local_world, items, self.prefetch, self.timeout)
