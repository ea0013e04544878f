"""``ShardData``: the data module. One loader item is one optimiser step; its position is the whole state of the data.

Works with a Trainer, which tells rank, world size, micro-batches and preparers, and without one (``setup("fit")``: one process).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from mmpretrain.data import tokenizer_training
from mmpretrain.data.collate import Collator
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.dataset import Assembler, Source, StepDataset, ValDataset
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.loaders import StepLoader, StepSampler, as_is, default_workers
from mmpretrain.data.plan import Plan, micro_batch, val_slices
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data.text import TextOptions, Tokenizer
from mmpretrain.data.units import Units
from mmpretrain.types import Preparer, Vocabulary


class ShardData(pl.LightningDataModule):
    """Batches from WebDataset shards, in an order that is a pure function of (seed, epoch).

    Args:
        train: sources of the training set: folders, tar files, ``{000..012}`` patterns, ``a::b`` lists, ``${VARIABLE}``, or ``scenes``.
        val: name -> sources of a validation set.
        batch_size: samples of one optimiser step over all ranks and micro-batches.
        text: the tokenizer.
        max_tokens: longest text, special tokens included.
        image: the transform of pictures.
        captions: ``sample``: an epoch shows every sample once with one of its texts drawn; ``all``: every text of every sample once.
        text_from: ``captions``, or ``statements`` with their labels (a false one comes with ``matched=False``).
        seed: root of the order and of every draw.
        workers: processes that decode; None: as many as the machine allows; 0: decode in the training process.
        val_batch_size: samples of a validation batch of one rank.
        val_samples: at most so many of each validation set, evenly spread; None: all.
        block: shards that are shuffled together.
        prefetch: steps that each worker prepares ahead.
        timeout: seconds after which a silent worker is an error.
        on_bad: ``stop``, or ``replace`` samples that cannot be decoded.
        allow_data_change: continue although the shards, or the batch size at a multiple, differ from the saved run.
    """

    def __init__(
        self,
        train: str | list[str] = "scenes",
        val: dict[str, str | list[str]] | None = None,
        batch_size: int = 64,
        text: TextOptions = TextOptions(),  # noqa: B008  (frozen)
        max_tokens: int = 40,
        image: ImageTransform = ImageTransform(),  # noqa: B008  (frozen)
        captions: Literal["sample", "all"] = "sample",
        text_from: Literal["captions", "statements"] = "captions",
        seed: int = 0,
        workers: int | None = None,
        val_batch_size: int = 64,
        val_samples: int | None = None,
        block: int = 16,
        prefetch: int = 2,
        timeout: float = 300.0,
        on_bad: Literal["stop", "replace"] = "stop",
        allow_data_change: bool = False,
    ) -> None:
        super().__init__()
        if captions not in ("sample", "all") or on_bad not in ("stop", "replace"):
            raise DataError(f"data.captions={captions!r} must be sample or all, data.on_bad={on_bad!r} stop or replace")
        if val_batch_size < 1 or (val_samples is not None and val_samples < 1):
            raise DataError(f"data.val_batch_size={val_batch_size} and data.val_samples={val_samples} must be at least 1")
        self.train_sources, self.val_sources = train, dict(val or {})
        self.batch_size, self.text, self.max_tokens, self.image = batch_size, text, max_tokens, image
        self.captions, self.text_from, self.seed, self.workers = captions, text_from, seed, workers
        self.val_batch_size, self.val_samples, self.block = val_batch_size, val_samples, block
        self.prefetch, self.timeout, self.on_bad, self.allow_data_change = prefetch, timeout, on_bad, allow_data_change
        self.rank, self.world, self.accumulate, self.local_world = 0, 1, 1, 1
        self.preparers: dict[str, Preparer] = {}
        self.plan: Plan | None = None
        self.cursor: Cursor | None = None
        self._saved: Mapping[str, Any] | None = None
        self._reader: ShardReader | None = None
        self._tokenizer: Tokenizer | None = None
        self._val: dict[str, ShardReader] = {}

    # ---------------------------------------------------------------- facts
    @property
    def reader(self) -> ShardReader:
        """The training samples, by number. Opens (and, once, indexes) the shards."""
        if self._reader is None:
            self._reader = ShardReader(expand(self.train_sources, "train"))
        return self._reader

    def val_reader(self, name: str) -> ShardReader:
        """The samples of one validation set, by number."""
        if name not in self._val:
            self._val[name] = ShardReader(expand(self.val_sources[name], "val"))
        return self._val[name]

    @property
    def val_names(self) -> tuple[str, ...]:
        """The validation sets, in the order of their loaders."""
        return tuple(self.val_sources)

    @property
    def val_readers(self) -> dict[str, ShardReader]:
        """The samples of every validation set."""
        return {name: self.val_reader(name) for name in self.val_sources}

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch of the data."""
        if self.plan is None:
            self.setup("fit")
        assert self.plan is not None
        return self.plan.steps

    @property
    def tokenizer(self) -> Tokenizer:
        """Trained at first use where the options ask for it, then cached by the contents of the shards."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer_training.make(self.text, self.max_tokens, self.reader)
        return self._tokenizer

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Use this tokenizer, that of a checkpoint, where the options would train one: other shards must not change what an id means."""
        self._tokenizer = tokenizer.with_max_tokens(self.max_tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""
        return self.tokenizer.vocabulary

    @property
    def transform(self) -> ImageTransform:
        """Of pictures; without a generator it is the one of evaluation."""
        return self.image

    @property
    def collator(self) -> Collator:
        """Pads texts and pictures as training does."""
        return Collator(self.vocabulary.pad, self.image.mean, self.image.std)

    @property
    def fingerprint(self) -> str:
        """sha256 of the contents of the training shards."""
        return self.reader.fingerprint

    # ---------------------------------------------------------------- life cycle
    def configure(self, rank: int = 0, world: int = 1, accumulate: int = 1, preparers: Mapping[str, Preparer] | None = None) -> None:
        """What a Trainer tells, by hand: this process's place, micro-batches per step, and what the objectives prepare."""
        micro = micro_batch(self.batch_size, world, accumulate)
        for name, preparer in (preparers or {}).items():
            if micro % (shared := getattr(preparer, "shared_by", 1)):
                rank_zero_warn(
                    f"data: {name} draws for {shared} neighbouring samples together (exact halves), a micro-batch of {micro} parts them; "
                    f"make data.batch_size a multiple of {shared * world * accumulate}"
                )
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.preparers = dict(preparers or {})

    def prepare_data(self) -> None:
        """Index the shards and train the tokenizer, once per machine."""
        _ = self.tokenizer
        for name in self.val_sources:
            self.val_reader(name)

    def setup(self, stage: str | None = None) -> None:
        """Make the plan. ``stage="fit"`` also checks the saved position, if one was loaded."""
        if self.trainer is not None:
            self._ask(self.trainer)
        if stage in (None, "fit") and self.plan is None:
            units = self._units(self.reader)
            self.plan = Plan(units.sizes, self.batch_size, self.seed, self.block)
            self._units_train = units
            self.cursor = Cursor(self.plan, self.identity(), self.allow_data_change)
            self._tell(units)
            if self._saved is not None:
                self.cursor.load(self._saved)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a saved position to mean the same samples."""
        facts = {"seed": self.seed, "block": self.block, "captions": self.captions, "text_from": self.text_from}
        return {"fingerprint": self.fingerprint, "batch_size": self.batch_size, **facts}

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
        )

    def _units(self, reader: ShardReader) -> Units:
        return Units(reader, self.text_from, self.captions == "all")

    def _tell(self, units: Units) -> None:
        assert self.plan is not None
        text = f"data: {units.samples} samples, {self.plan.steps} steps of {self.batch_size} in an epoch"
        text += f", {self.plan.dropped} at its end are dropped" if self.plan.dropped else ""
        if units.left_out:
            problem = next((problem for index in self.reader.indexes for problem in index.problems), None)
            text += f"; {units.left_out} samples lack a picture or {self.text_from} and are left out" + (f" ({problem})" if problem else "")
        ignored = Counter[str]()
        for index in self.reader.indexes:
            ignored.update(index.ignored)
        if ignored:
            text += f"; members never read: {', '.join(f'{name} ({count})' for name, count in ignored.most_common(5))}"
        rank_zero_info(text)

    # ---------------------------------------------------------------- loaders
    def source(self, reader: ShardReader, units: Units) -> Source:
        """The way from the samples of ``reader`` to examples."""
        return Source(reader, units, self.tokenizer, self.image, self.seed, self.on_bad)

    def train_dataloader(self) -> DataLoader:
        """Items are tuples of micro-batches, one item per optimiser step; the length is that of a whole epoch."""
        if self.plan is None or self.cursor is None:
            self.setup("fit")
        assert self.plan is not None and self.cursor is not None
        assembler = Assembler(self.source(self.reader, self._units_train), self.preparers, self.collator)
        dataset = StepDataset(assembler, self.plan, self.rank, self.world, self.accumulate)
        return StepLoader(dataset, sampler=StepSampler(self.cursor, self.plan.steps, self._limit()), **self._loader(len(dataset)))

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per validation set, in the order of ``val``; items are batches, every sample once over all ranks."""
        loaders = []
        for name in self.val_sources:
            reader = self.val_reader(name)
            units = Units(reader, self.text_from)
            count = min(units.total, self.val_samples or units.total)
            chosen = np.arange(count, dtype=np.int64) * units.total // count
            assembler = Assembler(self.source(reader, units), self.preparers, self.collator)
            dataset = ValDataset(assembler, chosen, val_slices(count, self.val_batch_size, self.rank, self.world))
            loaders.append(DataLoader(dataset, shuffle=False, **self._loader(len(dataset))))
        return loaders

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _limit(self) -> int | None:
        """Steps of an epoch of the Trainer where ``limit_train_batches`` makes it shorter than one of the data."""
        limit = self.trainer.limit_train_batches if self.trainer is not None else None
        assert self.plan is not None
        if limit is None or (limit == 1.0 and isinstance(limit, float)):
            return None
        steps = int(self.plan.steps * limit) if isinstance(limit, float) else limit
        return steps if steps < self.plan.steps else None

    def _loader(self, items: int) -> dict[str, Any]:
        workers = min(default_workers(self.local_world) if self.workers is None else self.workers, items)
        more = {"prefetch_factor": self.prefetch, "persistent_workers": True, "timeout": self.timeout} if workers else {}
        return {"batch_size": None, "collate_fn": as_is, "num_workers": workers, "pin_memory": torch.cuda.is_available(), **more}

    # ---------------------------------------------------------------- position
    def advance(self) -> None:
        """One optimiser step is done: its samples are consumed."""
        if self.cursor is None:
            raise RuntimeError("ShardData.advance() before setup('fit')")
        self.cursor.advance()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it belongs to: plain types, a few hundred bytes, the same on every rank."""
        if self.cursor is None:
            return dict(self._saved or {})
        return self.cursor.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ResumeError: it belongs to other shards, another batch size or another order.
        """
        self._saved = json.loads(json.dumps(dict(state_dict)))
        if self.cursor is not None:
            self.cursor.load(self._saved)
