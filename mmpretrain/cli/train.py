"""``mmpretrain fit | validate | test | predict``: LightningCLI over ``Pretrain`` and ``ShardData``, with our layers below it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mmpretrain.cli import resume
from mmpretrain.cli.data import INTERRUPTED
from mmpretrain.cli.errors import UserError, show
from mmpretrain.cli.layering import CHECKPOINT, Layers, layer, typed_keys
from mmpretrain.cli.parser import Parser, Refused
from mmpretrain.cli.progress import Bar
from mmpretrain.cli.quiet import quieten
from mmpretrain.cli.summary import Final, finish, logged
from mmpretrain.data import codec
from mmpretrain.data.errors import DataError
from mmpretrain.data.module import ShardData
from mmpretrain.data.redact import redacted
from mmpretrain.data.text import Tokenizer, same_ids
from mmpretrain.nn.misfit import Misfit
from mmpretrain.train import run_dir
from mmpretrain.train import strategies as _registered  # noqa: F401 - makes fsdp2 and its like known to --trainer.strategy
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import CheckpointError, Checkpoints
from mmpretrain.train.dashboard import WandbDashboard, make_logger
from mmpretrain.train.data_health import DataHealth
from mmpretrain.train.measure import Measure
from mmpretrain.train.module import Pretrain
from mmpretrain.train.panels import Panels
from mmpretrain.train.predictions import Predictions
from mmpretrain.train.signals import Preemption
from mmpretrain.train.trainer import Trainer
from mmpretrain.train.watchdog import Watchdog

SKIP = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
    "validate": {"model", "dataloaders", "datamodule", "weights_only"},
    "test": {"model", "dataloaders", "datamodule", "weights_only"},
    "predict": {"model", "dataloaders", "datamodule", "weights_only"},
}
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
SETUP_ERRORS = (ValueError, *MISSING, MisconfigurationException, CheckpointError)


class Began(pl.Callback):
    """Notes that set-up is over: errors after that keep their traceback. ``describe`` is called once a checkpoint is accepted."""

    def __init__(self) -> None:
        self.yes = self.trained = False
        self.describe: Callable[[], None] | None = None

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        if self.describe is not None:
            self.describe()

    def _note(self, *args: Any, **kwargs: Any) -> None:
        self.yes = True

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.yes = self.trained = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.trained and trainer.is_global_zero:
            limit = f"trainer.max_steps is {trainer.max_steps}" if trainer.max_steps >= 0 else f"trainer.max_epochs is {trainer.max_epochs}"
            print(f"mmpretrain: the checkpoint is at step {trainer.global_step}, {limit}: nothing was left to train", file=sys.stderr)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _note


class CLI(LightningCLI):
    """One command, parsed and instantiated; ``execute`` runs it.

    Args:
        command: fit, validate, test or predict.
        layers: the resolved files.
        options: dotted options as typed, without ``--config``.
        recipe: what the run is called.
        resumed: the checkpoint that the run continues from.
        typed: keys of ``layers`` that were typed too.
    """

    def __init__(
        self,
        command: str,
        layers: Layers,
        options: list[str],
        recipe: str = "run",
        resumed: Path | None = None,
        typed: Iterable[str] = (),
    ) -> None:
        self.command, self.layers, self.recipe, self.resumed = command, layers, recipe, resumed
        self.began = Began()
        self.run: Path | None = None
        self.fresh = False  # whether this process made the folder of the run
        self.typed = typed_keys(options)
        Parser.origin, Parser.typed = layers.origin, (*self.typed, *typed)
        text = ["--config", yaml.safe_dump(layers.config, sort_keys=False)] if layers.config else []
        super().__init__(
            Pretrain,
            ShardData,
            save_config_callback=None,
            trainer_class=Trainer,
            trainer_defaults={"callbacks": [DataHealth(), Metrics(), self.began, Bar(), Preemption()]},
            seed_everything_default=0,
            parser_kwargs={"prog": "mmpretrain", "description": "Vision-and-language pre-training."},
            parser_class=Parser,
            args=[command, *text, *options],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Only the command that is run: the help of the others costs seconds."""
        return {self.command: SKIP[self.command]}

    def add_arguments_to_parser(self, parser: Parser) -> None:
        if self.command == "predict":
            parser.add_lightning_class_args(Predictions, "predictions")
        for key, kind in (("checkpoints", Checkpoints), ("measure", Measure), ("panels", Panels), ("watchdog", Watchdog), ("final", Final)):
            parser.add_lightning_class_args(kind, key)
        parser.add_argument(
            "--loggers",
            type=list[Literal["wandb", "tensorboard", "csv"]],
            default=["wandb"],
            help="where metrics go beside metrics.jsonl; W&B is offline without a key. trainer.logger, where set, wins",
        )

    def parse_arguments(self, parser: Parser, args: list[str]) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint win over what was typed; here it is the lowest layer (``layers``)."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: ``execute`` runs it, after the set-up is known to be sound."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.command]
        for key in ("model.seed", "data.seed"):  # one seed for everything, unless a part has its own
            origin = self.layers.origin.get(key)
            if key not in self.typed and (origin is None or (origin == CHECKPOINT and "seed_everything" in self.typed)):
                config[key.partition(".")[0]]["seed"] = int(config["seed_everything"])
        if self.resumed is not None and resume.UNTRUSTED not in self.typed and not self.layers.says(resume.UNTRUSTED):
            config["data"]["allow_pipe"] = False
        self._dump_config()
        self.resolved = redacted({key: value for key, value in self.config_dump.items() if key not in ("config", "ckpt_path")})
        if self.command == "fit":
            inherited = os.environ.get(run_dir.VARIABLE)
            self.run = self._run_dir(config)
            self.fresh = self.resumed is None and inherited is None
            config.trainer.default_root_dir = str(self.run)

    def _run_dir(self, config: Any) -> Path:
        """The folder of the run: that of the checkpoint on resume, a new one otherwise, the same on every rank."""
        inside = self.resumed.parent.parent if self.resumed is not None and self.resumed.parent.name == "checkpoints" else None
        asked = self.typed.get("trainer.default_root_dir")
        if inside is not None and (asked is None or Path(asked).resolve() == inside.resolve().parent):
            os.environ[run_dir.VARIABLE] = str(inside.resolve())
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and run_dir.VARIABLE not in os.environ:
            raise UserError(f"a launcher started this process: set {run_dir.VARIABLE} to one folder for all ranks")
        return run_dir.create(config.trainer.default_root_dir or "runs", self.recipe)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except BaseException:
            self.discard()
            raise
        self.resolved["data"]["image"]["decoder"] = self.datamodule.image.decoder  # never auto: what makes the pixels is part of the run
        self.model.config = self.resolved

    def discard(self) -> None:
        """Leave no folder of a run that made no step."""
        if self.fresh and not self.began.trained:
            run_dir.discard(self.run)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With the loggers of ``--loggers``, unless ``trainer.logger`` is set; only ``fit`` logs."""
        config = self.config[self.command]
        if config.trainer.enable_progress_bar is False:  # Lightning refuses the flag beside a bar
            self.trainer_defaults["callbacks"] = [one for one in self.trainer_defaults["callbacks"] if not isinstance(one, Bar)]
        if config.trainer.logger is None:
            kwargs["logger"] = self._loggers(config.loggers) if self.run is not None else False
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, names: list[str]) -> list[Logger]:
        found: list[Logger] = []
        for name in names:
            if name == "tensorboard":
                try:
                    found.append(TensorBoardLogger(self.run, name="", version="tensorboard"))
                except ModuleNotFoundError as error:
                    raise UserError("--loggers: tensorboard is not installed; pip install 'mmpretrain-vl[tensorboard]'") from error
            elif name == "csv":
                parts = [f"csv-{n}" for n in range(1000) if not (self.run / f"csv-{n}").exists()]  # it would delete an earlier part
                found.append(CSVLogger(self.run, name="", version=parts[0]))
            elif (logger := make_logger(self.run, self.recipe, self.resolved)) is not None:
                found.append(logger)
        return found

    def _describe(self) -> None:
        pictures = codec.difference(self.datamodule.image.decoder)
        run_dir.describe(self.run, yaml.safe_dump(self.resolved, sort_keys=False), pictures=pictures)

    def execute(self) -> int:
        """Run the command; returns the exit code."""
        if self.run is not None and self.trainer.is_global_zero:
            if (self.run / "config.yaml").exists():  # of a run that is good as it is, until this one begins
                self.began.describe = self._describe
            else:
                self._describe()
        status = "failed"
        try:
            words = self._prepare_subcommand_kwargs(self.command)
            if self.command == "predict" and words.get("return_predictions") is None:
                words["return_predictions"] = False  # they are written, not kept in memory
            asked = words.pop("verbose", False)  # of validate and test: Lightning's own table cuts names off
            quietly = {} if self.command in ("fit", "predict") else {"verbose": False}
            found = getattr(self.trainer, self.command)(**words, **quietly, weights_only=True)
            if asked and self.trainer.is_global_zero:
                logged(self.command, found)
            if self.run is not None and self.trainer.is_global_zero:
                finish(self.trainer, self.run)
            status = "success"
            return INTERRUPTED if any(isinstance(one, Final) and one.interrupted for one in self.trainer.callbacks) else 0
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbDashboard):
                    logger.finish(status)


def prepare(command: str, words: list[str]) -> CLI:
    """Everything before the first step: layers, parsing, objects. On resume the checkpoint's configuration is the lowest layer."""
    files, options = resume.split_config(words)
    saved: Mapping[str, Any] = {}
    path = None
    typed, written = typed_keys(options), layer(files).config
    named = typed.get("ckpt_path") or written.get("ckpt_path")
    if named and not {"-h", "--help"} & set(options):
        root = typed.get("trainer.default_root_dir") or (written.get("trainer") or {}).get("default_root_dir") or "runs"
        try:
            path = resume.find_checkpoint(named, Path(root), Path(files[0]).stem if files else None)
            entry = resume.saved_entry(path)
            saved = entry["config"]
        except resume.NothingSaved as error:
            if command != "fit":
                raise
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"mmpretrain: {error}; the run starts at the beginning", file=sys.stderr)
        options = resume.with_checkpoint(options, path)
    if command != "fit" and not named and not {"-h", "--help"} & set(options) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"mmpretrain: {command} without --ckpt_path: the weights are those that the model begins with", file=sys.stderr)
    recipe = Path(files[0]).stem if files else path.resolve().parent.parent.name if path is not None else "run"
    cli = CLI(command, layer(files, below=resume.trusted(saved)), options, recipe, path)
    if saved:
        resume.same_system(path, cli.resolved, saved)
        if entry.get("tokenizer") and same_ids(cli.resolved["data"].get("text"), (saved.get("data") or {}).get("text")):
            cli.datamodule.adopt(Tokenizer.from_json(entry["tokenizer"]))
        for difference in resume.differences(cli.resolved, saved):
            print(f"mmpretrain: {resume.shown(difference)}", file=sys.stderr)
    return cli


def run(argv: list[str]) -> int:
    """The command ``argv[0]``; returns the exit code."""
    cli: CLI | None = None
    quieten()
    try:
        cli = prepare(argv[0], argv[1:])
        return cli.execute()
    except Refused as error:
        return show(str(error))
    except SETUP_ERRORS as error:
        if cli is not None and cli.began.yes and not isinstance(error, DataError | CheckpointError | Misfit):
            raise
        if cli is not None:
            cli.discard()
        code = show(error)
        return 1 if isinstance(error, CheckpointError) and cli is not None and cli.began.trained else code
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning turns the first into exit(1)
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        if cli is not None:
            cli.discard()
        print("mmpretrain: interrupted", file=sys.stderr)
        return INTERRUPTED
