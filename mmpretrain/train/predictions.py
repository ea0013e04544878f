"""What ``mmpretrain predict`` writes: one Parquet row for each sample of the validation sets, streamed, whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from mmpretrain.nn.misfit import Misfit
from mmpretrain.train import distributed
from mmpretrain.train.atomic import sync_directory


class Predictions(pl.Callback):
    """Writes ``key``, ``set`` and how well the pairs match, as they are in the data: every ``<objective>/score`` (log-odds) and, of dual
    encoders, ``<view>/cosine``; with ``vectors`` also the pooled state (``<view>/pooled``) or the vectors of image and text
    (``<view>/image``, ``<view>/text``). Memory is that of one batch. Vectors of whole sets, images and captions apart and resumable, are
    what ``mmpretrain embed`` writes.

    Args:
        out: the file; None: ``predictions/<checkpoint>.parquet`` in the folder of the checkpoint's run, else ``predictions.parquet``.
        vectors: write vectors too.
    """

    def __init__(self, out: str | None = None, vectors: bool = False) -> None:
        if out is not None and Path(out).suffix != ".parquet":
            raise ValueError(f"predictions.out={out}: name the file .parquet")
        self.out, self.vectors = out, vectors
        self.path: Path | None = None
        self.rows = 0
        self._writer: Any = None

    def _place(self, trainer: pl.Trainer) -> Path:
        if self.out is not None:
            return Path(self.out)
        checkpoint = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None
        if checkpoint is not None and checkpoint.parent.name == "checkpoints":
            return checkpoint.parent.parent / "predictions" / f"{checkpoint.stem}.parquet"
        return Path("predictions.parquet")

    @property
    def _unfinished(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path, self.rows = self._place(trainer), 0
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        names = list(getattr(getattr(trainer, "datamodule", None), "val_names", ()))
        name = names[dataloader_idx] if dataloader_idx < len(names) else ""
        for columns in distributed.gather_objects({"key": list(outputs["keys"]), **dict(self._columns(outputs))}):
            if trainer.is_global_zero:
                self._write(columns, name)

    def _columns(self, outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Column -> fp32 array, (B,) or (B, width), on the host."""
        for name, value in outputs.items():
            if name.endswith("/score"):
                yield name, value.detach().float().cpu().numpy()
                continue
            image_BE, text_BE = (getattr(value, field, None) for field in ("image_BE", "text_BE"))
            if isinstance(image_BE, Tensor) and isinstance(text_BE, Tensor):
                yield f"{name}/cosine", (image_BE.detach().float() * text_BE.detach().float()).sum(1).cpu().numpy()
            if self.vectors and name != "keys":
                for field, short in (("pooled_BD", "pooled"), ("image_BE", "image"), ("text_BE", "text")):
                    if isinstance(found := getattr(value, field, None), Tensor):
                        yield f"{name}/{short}", found.detach().float().cpu().numpy()

    def _write(self, columns: Mapping[str, Any], name: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        keys = columns["key"]
        if len(columns) == 1:
            raise Misfit("predict: no objective of this checkpoint scores pairs; --predictions.vectors true writes what it has of vectors")
        table: dict[str, Any] = {"key": pa.array(keys, pa.string()), "set": pa.array([name] * len(keys), pa.string())}
        for column, value in columns.items():
            if column != "key":
                flat = pa.array(value.reshape(-1), pa.float32())
                table[column] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
        made = pa.table(table)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._unfinished, made.schema)
        self._writer.write_table(made)
        self.rows += len(keys)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._writer is None or self.path is None:
            return
        self._writer.close()
        self._writer = None
        with self._unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._unfinished, self.path)
        sync_directory(self.path.parent)
        print(f"predictions {self.path} ({self.rows} rows)", flush=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._unfinished.unlink(missing_ok=True)
