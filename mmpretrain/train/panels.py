"""Panels people look at: retrieval galleries, masked words with the predicted ones, word-patch heat maps over the image, reconstructions,
drawn pictures.

At a validation the callback takes the first samples of the first loader, and writes ``panels/<step>/<name>.json`` with the pictures; the
report page and W&B show them. Every rank computes (a sharded model must be entered by all), rank 0 writes. A panel that fails is
reported once and never stops training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.models.dvae import pictures
from mmpretrain.report import panels_schema as schema
from mmpretrain.report.run import PANELS
from mmpretrain.train import dashboard, panel_bodies, panel_codes, panel_generated, panel_pictures
from mmpretrain.train.measure import averages
from mmpretrain.types import Batch

# What a picture of a half-trained model may run into; anything else is a defect of the program and is seen.
EXPECTED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OSError, ArithmeticError)


class Panels(pl.Callback):
    """Write panels at validations.

    Args:
        every: at every so many validations, the last one of training included.
        samples: of the first validation batch. A fusion model scores samples x samples pairs.
        queries: retrieval queries shown each way.
        folder: the run directory; if None, ``trainer.default_root_dir`` during ``fit``, and nothing is written otherwise.
        dvae: of a transformer over codes: the autoencoder that made them (a checkpoint, or the folder of a run), which shows pictures drawn
            for ``queries`` captions; None: none are drawn.
        drawn: pictures of each of these captions.
    """

    def __init__(
        self,
        every: int = 1,
        samples: int = 12,
        queries: int = 6,
        folder: str | Path | None = None,
        dvae: str | Path | None = None,
        drawn: int = 4,
    ) -> None:
        if every < 1 or samples < 2 or queries < 1 or drawn < 1:
            raise ValueError(f"Panels: every={every}, queries={queries} and drawn={drawn} must be at least 1, samples={samples} at least 2")
        self.every, self.samples, self.queries, self.dvae, self.drawn = every, samples, queries, dvae, drawn
        self._decoder: Pretrained | None = None
        self.folder = None if folder is None else Path(folder)
        self._seen = 0
        self._batch: Batch | None = None
        self._reported: set[str] = set()
        self._pictures: dict[str, Image.Image] | None = {}  # of shards; None: they cannot be read

    def state_dict(self) -> dict[str, int]:
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keep the rhythm of ``every`` over a resumption."""
        self._seen = int(state_dict["seen"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """
        Raises:
            ValueError: ``dvae`` cannot show what the model draws.
        """
        if self.dvae is not None:
            info = getattr(getattr(trainer, "datamodule", None), "codes_info", None)
            self._decoder = panel_generated.open_dvae(self.dvae, pl_module.root, info)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch = None

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._batch is None and dataloader_idx == 0 and isinstance(batch, Batch) and not trainer.sanity_checking:
            true = range(batch.size) if batch.matched_B is None else batch.matched_B.nonzero().flatten().tolist()
            rows = list(true)[: self.samples]
            self._batch = panel_bodies.select(batch, rows) if len(rows) > 1 else None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch, self._batch = self._batch, None
        if trainer.sanity_checking or (self.folder is None and trainer.state.fn != TrainerFn.FITTING):
            return
        self._seen += 1
        if (self._seen - 1) % self.every and not _last(trainer):
            return
        # every rank or none: a sharded forward waits for the others
        if not trainer.strategy.reduce_boolean_decision(batch is not None, all=True) or batch is None:
            return
        with _quiet(trainer, pl_module):
            self._write(trainer, pl_module, batch)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch) -> None:
        run, step = self.folder or Path(trainer.default_root_dir), trainer.global_step
        folder = run / PANELS / str(step)
        sources: dict[str, Image.Image] = {}

        def store(picture: Image.Image) -> str:
            """The path of a picture, which rank 0 writes."""
            if not trainer.is_global_zero:
                return ""
            name = f"../images/{panel_pictures.store(picture, run / PANELS / 'images')}"
            sources[name] = picture
            return name

        shown = self._guard("pictures", lambda: self._show(trainer, pl_module, batch, store))
        for kind, make in self._makers(pl_module, batch, shown, store).items() if shown is not None else ():
            body = self._guard(kind, make)
            if body is not None and trainer.is_global_zero:
                panel = schema.Panel(kind, step, body)
                self._guard(kind, partial(_keep, trainer, folder, panel, sources))

    def _guard(self, kind: str, act: Callable[[], Any]) -> Any:
        """``act()``, or None after a failure, which is reported once for each kind of panel."""
        try:
            return act()
        except EXPECTED as error:
            if kind not in self._reported:
                self._reported.add(kind)
                rank_zero_warn(f"the panel {kind!r} could not be made, training goes on: {type(error).__name__}: {error}")
            return None

    def _show(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, store: Callable[[Image.Image], str]) -> panel_bodies.Shown:
        """What is seen of the samples; pictures are written by rank 0 only."""
        paths: list[str] = []
        seen = batch.image is not None or batch.regions is not None
        stored = self._stored(trainer, batch) if trainer.is_global_zero else {}
        for i in range(batch.size if seen and trainer.is_global_zero else 0):
            paths.append(store(_picture(batch, i, stored.get(batch.keys[i]), _namer(trainer))))
        if seen and not paths:
            paths = [""] * batch.size
        spelt = () if batch.text is None else panel_bodies.tokens(batch, _piece(trainer), pl_module.vocabulary.special)
        return panel_bodies.Shown(tuple(paths), spelt)

    def _stored(self, trainer: pl.Trainer, batch: Batch) -> dict[str, Image.Image]:
        """The pictures of samples of which only regions were read, by their keys, as far as their shards have them."""
        if batch.image is not None or batch.regions is None or self._pictures is None:
            return {}
        if missing := [key for key in batch.keys if key not in self._pictures]:
            found = self._guard("stored pictures", lambda: panel_pictures.stored(trainer.datamodule, missing))
            self._pictures = None if found is None else {**self._pictures, **found}
        return self._pictures or {}

    def _makers(
        self, pl_module: Any, batch: Batch, shown: panel_bodies.Shown, store: Callable[[Image.Image], str]
    ) -> dict[str, Callable[[], Any]]:
        """The panels that this model, these objectives and this batch allow, alike on every rank."""
        root = pl_module.root
        makers: dict[str, Callable[[], Any]] = {}

        def forward(part: Batch, kind: str, read: Callable[[Any], Any]) -> Any:
            return root(lambda model, _: read(model(part, kind)), mode="call")

        def first(kind: str, method: str | None = None) -> Any | None:
            fitting = (o for o in root.objectives.values() if o.kind == kind and (method is None or callable(getattr(o, method, None))))
            return next(fitting, None)

        both = batch.text is not None and (batch.image is not None or batch.regions is not None)
        matcher, paired, words, planner = first("fused", "score"), first("paired"), first("fused", "predict"), first("fused", "plan")
        if both and (paired is not None or matcher is not None):
            score = None if paired is not None else matcher.score
            makers["retrieval"] = lambda: panel_bodies.retrieval(batch, shown, score, forward, self.queries)
        if batch.text is not None and words is not None:
            makers["masked"] = lambda: panel_bodies.masked(batch, shown, words, _piece(pl_module.trainer), forward)
        spec = root.model.spec
        if both and planner is not None and (spec.patch_size or spec.feature_width):
            part = panel_bodies.select(batch, range(min(batch.size, self.queries)))
            side = None if spec.feature_width else spec.patch_size
            makers["alignment"] = lambda: panel_bodies.alignment(part, shown, planner, side, forward)
        if batch.image is not None and "coded" in spec.kinds:
            rebuilt = lambda hidden: pictures(hidden.output_BCHW)
            makers["reconstruction"] = lambda: panel_codes.reconstruction(batch, shown, rebuilt, forward, store)
        if batch.text is not None and self._decoder is not None:
            makers["generated"] = partial(self._generated, root, batch, shown, store)
        classes = first("fused", "guess")
        if batch.regions is not None and classes is not None:
            name = _namer(pl_module.trainer)
            makers["regions"] = lambda: panel_bodies.regions(batch, shown, classes, name, forward)
        return makers

    def _generated(self, root: Any, batch: Batch, shown: panel_bodies.Shown, store: Callable[[Image.Image], str]) -> schema.GeneratedPanel:
        assert self._decoder is not None
        rows = range(min(batch.size, self.queries))
        texts = [text or "(no caption)" for text in panel_bodies.captions(batch, shown)[: len(rows)]]
        return panel_generated.generated(panel_bodies.select(batch, rows), texts, root, self._decoder, self.drawn, store)


def _picture(batch: Batch, i: int, stored: Image.Image | None, name: Callable[[int], str]) -> Image.Image:
    """What people see of a sample: its picture, and the boxes of its regions; on white, with the names of their classes, where there is no
    picture."""
    if batch.image is not None:
        height, width = batch.image.sizes[i]
        stored = panel_pictures.thumbnail(batch.image.pixels_BCHW[i, :, :height, :width], batch.image.mean, batch.image.std)
    if batch.regions is None:
        assert stored is not None
        return stored
    start = sum(batch.regions.lengths[:i])
    rows = slice(start, start + batch.regions.lengths[i])
    classes = [-1] * batch.regions.lengths[i] if batch.regions.classes_N is None else batch.regions.classes_N[rows].tolist()
    return panel_pictures.boxes(batch.regions.sizes[i], batch.regions.boxes_N4[rows], [name(c) for c in classes], picture=stored)


def _namer(trainer: pl.Trainer) -> Callable[[int], str]:
    """Name of a class of regions, "" for none; its number where the shards name no classes."""
    info = getattr(trainer.datamodule, "regions_info", None)
    known = (info.classes if info is not None else None) or ()
    return lambda number: "" if number < 0 else known[number] if number < len(known) else f"class {number}"


def _last(trainer: pl.Trainer) -> bool:
    return bool(trainer.should_stop) or (trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps)


def _piece(trainer: pl.Trainer) -> Callable[[int], str]:
    """Text of a token id, by the data module's tokenizer."""
    return trainer.datamodule.tokenizer.token


@contextmanager
def _quiet(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Evaluation mode, no gradients, the run's precision, averaged weights where the run keeps them; all is undone afterwards."""
    training = [module for module in pl_module.modules() if module.training]
    for module in training:
        module.training = False
    try:
        averaged = averages(pl_module) if getattr(pl_module, "ema", None) is not None else nullcontext()
        with torch.no_grad(), trainer.precision_plugin.forward_context(), averaged:
            yield
    finally:
        for module in training:
            module.training = True


def _keep(trainer: pl.Trainer, folder: Path, panel: schema.Panel, sources: dict[str, Image.Image]) -> None:
    """Write a panel with its contact sheets, and show it on the dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    body, sheets = panel.body, []
    if isinstance(body, schema.AlignmentPanel):
        examples = []
        for i, example in enumerate(body.examples):
            maps = [panel_pictures.heat(sources[example.image], np.array(word.weights)) for word in example.words]
            sheets.append(panel_pictures.row([sources[example.image], *maps], ["", *(word.word for word in example.words)], example.text))
            sheets[-1].save(folder / f"alignment-{i}.png", optimize=True)
            examples.append(example._replace(strip=f"alignment-{i}.png"))
        panel = panel._replace(body=schema.AlignmentPanel(tuple(examples)))
    elif isinstance(body, schema.RetrievalPanel):
        for i, query in enumerate(body.text_to_image):
            labels = [f"{hit.score:.2f}" for hit in query.hits]
            found, framed = [sources[hit.image] for hit in query.hits], [hit.right for hit in query.hits]
            sheets.append(panel_pictures.row(found, labels, query.text or "", framed))
            sheets[-1].save(folder / f"retrieval-{i}.png", optimize=True)
    elif isinstance(body, schema.RegionsPanel):
        for i, regions in enumerate(body.examples):
            seen = [panel_pictures.outlined(sources[regions.image], region.box) for region in regions.regions]
            labels = [f"{region.guesses[0].text} ({region.text or 'none'})" for region in regions.regions]
            right = [region.guesses[0].text == region.text for region in regions.regions]
            sheets.append(panel_pictures.row(seen, labels, regions.text or "", right))
            sheets[-1].save(folder / f"regions-{i}.png", optimize=True)
    elif isinstance(body, schema.ReconstructionPanel):
        sheets.append(panel_codes.sheet(body, sources))
        sheets[-1].save(folder / "reconstruction.png", optimize=True)
    elif isinstance(body, schema.GeneratedPanel):
        for i, generated in enumerate(body.examples):
            sheets.append(panel_generated.sheet(generated, sources))
            sheets[-1].save(folder / f"generated-{i}.png", optimize=True)
    partial = folder / f".{panel.kind}.{os.getpid()}"
    partial.write_text(schema.dumps(panel), encoding="utf-8")
    partial.replace(folder / f"{panel.kind}.json")
    dashboard.show(trainer.loggers, panel, sheets)
