"""The W&B dashboard that a run sets up by itself, and a logger that never stops training.

W&B makes one section of a workspace for each first part of a metric's name. The names of the field (``train/mlm/loss``) would all land
in one section, so every metric is sent under its own name, hidden from automatic plots, and once more under the section it belongs to:
``loss/``, ``objectives/``, ``validation/``, ``data/``, ``speed/``, ``pictures/``. That needs no server and no further package, and holds
for offline runs that are synchronised later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from mmpretrain.report.panels_schema import MaskedPanel, Panel
from mmpretrain.report.wandb import PROJECT, STEP, mode

SECTIONS = ("loss", "objectives", "validation", "data", "speed", "pictures")
HIDDEN = ("train/*", "val/*", "test/*", "memory/*", "epoch")
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 60  # seconds: a dead network costs so much and no more
_LOSS = ("loss", "grad_norm", "lr")
# What W&B is known to raise; wandb.Error is a subclass of Exception and is added where wandb is imported.
_FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError)


def section(name: str) -> str | None:
    """The name under which a metric appears on the dashboard, or None where its own name does.

    >>> section("train/mlm/loss"), section("val/mlm/loss"), section("train/loss"), section("speed/samples_per_s")
    ('objectives/mlm_loss', 'objectives/mlm_loss_val', 'loss/train', None)
    """
    first, _, rest = name.partition("/")
    if first in ("train", "val") and rest:
        suffix = "_val" if first == "val" else ""
        if rest == "loss":
            return f"loss/{first}"
        if rest.split("/")[0] in _LOSS:
            return f"loss/{rest.replace('/', '_')}{suffix}"
        if first == "val" and rest.count("/") > 1:
            return f"validation/{rest.replace('/', '_')}"
        return f"objectives/{rest.replace('/', '_')}{suffix}"
    if first == "test" and rest:
        return f"validation/test_{rest.replace('/', '_')}"
    return f"speed/memory_{rest}" if first == "memory" and rest else None


def best(name: str) -> str:
    """What the summary of a run keeps of a metric."""
    leaf = name.rpartition("/")[2]
    if leaf.endswith("loss"):
        return "min"
    return "max" if "accuracy" in leaf or "_R@" in leaf or leaf == "psnr" else "last"


class WandbDashboard(WandbLogger):
    """Lightning's W&B logger with sections, whose failures are one warning and never stop, delay or end training.

    Args:
        save_dir: the run directory; W&B's files go to its ``wandb`` folder.
        name: of the run.
        project: on W&B; ``WANDB_PROJECT`` wins.
        config: the resolved configuration.
        tags: of the run.
        group: of the run, such as the recipe.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = None,
        project: str = PROJECT,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        group: str | None = None,
    ) -> None:
        super().__init__(name=name, save_dir=str(save_dir), project=os.environ.get("WANDB_PROJECT", project))
        self._wandb_init.update(config=dict(config or {}), tags=list(tags) or None, group=group, mode=mode())
        self._wandb_init.pop("anonymous", None)  # without effect, and W&B warns of it
        self._dead: _DummyExperiment | None = None
        self.failures = 0
        self._defined: set[str] = set()

    @property
    def experiment(self) -> Any:
        """The W&B run, made at first use; one that swallows everything on other ranks and after a failure."""
        if self._dead is not None or rank_zero_only.rank > 0:
            return self._dead or _DummyExperiment()
        if self._experiment is None:
            self._guard(self._start)
        return self._dead or self._experiment

    def _start(self) -> None:
        import wandb

        wanted = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT, "silent": True, "console": "off"}
        wanted |= {"disable_git": True, "disable_code": True}
        known = set(wandb.Settings.model_fields)
        self._wandb_init["settings"] = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
        Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
        if self._wandb_init["mode"] != "online":
            self._wandb_init.pop("resume", None)  # offline it does nothing, and older versions of W&B warn of it
        try:
            run = super().experiment
        except wandb.Error as error:
            if self._wandb_init["mode"] != "online":
                raise
            rank_zero_warn(f"W&B cannot be reached ({_line(error)}); this run is kept offline")
            self._wandb_init["mode"] = "offline"
            self._wandb_init.pop("resume", None)
            run = super().experiment
        for name in HIDDEN:
            run.define_metric(name, step_metric=STEP, step_sync=True, hidden=True)
        for name in SECTIONS:
            run.define_metric(f"{name}/*", step_metric=STEP, step_sync=True)

    def _guard(self, act: Callable[[], Any]) -> Any:
        """``act()``; at the first failure of W&B one warning, and silence from then on."""
        if self._dead is not None or rank_zero_only.rank > 0:
            return None
        try:
            return act()
        except _failures() as error:
            self._dead = _DummyExperiment()
            self.failures += 1
            rank_zero_warn(f"W&B failed and is left out from here on, training goes on: {_line(error)}")
            return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Every metric under its own name and under its section."""
        self._guard(lambda: self._log_metrics(metrics, step))

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        shown = {}
        for name, value in metrics.items():
            place = section(name)
            if place is not None:
                shown[place] = value
            target = place or name
            if target not in self._defined:
                self._defined.add(target)
                self.experiment.define_metric(target, step_metric=STEP, step_sync=True, summary=best(name))
        super().log_metrics({**metrics, **shown}, step)

    def log_hyperparams(self, params: Any) -> None:
        self._guard(lambda: super(WandbDashboard, self).log_hyperparams(params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._guard(lambda: super(WandbDashboard, self).after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        self._guard(lambda: super(WandbDashboard, self).finalize(status))

    def finish(self, status: str = "success") -> None:
        """End the W&B run: waits at most a minute for what is still on its way."""
        if self._experiment is not None:
            self._guard(lambda: self._experiment.finish(exit_code=0 if status == "success" else 1))

    def location(self) -> str | None:
        """Where the run can be looked at: its address online, its folder offline; None where there is none."""
        run = self._experiment if self._dead is None else None
        if run is None:
            return None
        return run.url if self._wandb_init["mode"] == "online" else str(Path(run.dir).parent)

    def show(self, panel: Panel, sheets: Sequence[Image.Image]) -> None:
        """A panel under ``pictures/``: contact sheets as images, masked words as a table."""
        self._guard(lambda: self._show(panel, sheets))

    def _show(self, panel: Panel, sheets: Sequence[Image.Image]) -> None:
        import wandb

        key = f"pictures/{panel.kind}"
        if isinstance(panel.body, MaskedPanel):
            self.experiment.log({key: wandb.Table(columns=list(COLUMNS), data=masked_rows(panel.body)), STEP: panel.step})
        elif sheets:
            self.experiment.log({key: [wandb.Image(sheet) for sheet in _alike(sheets)], STEP: panel.step})


def _alike(sheets: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures padded to one size, which W&B asks of pictures shown together."""
    size = (max(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets))
    made = [Image.new("RGB", size, "white") for _ in sheets]
    for whole, sheet in zip(made, sheets, strict=True):
        whole.paste(sheet, (0, 0))
    return made


COLUMNS = ("text", "hidden word", "prediction", "probability", "right", "other guesses")


def masked_rows(body: MaskedPanel) -> list[list[Any]]:
    """One row for each hidden word."""
    rows = []
    for example in body.examples:
        text = "".join(("" if word.glued else " ") + ("[MASK]" if word.guesses else word.text) for word in example.words).strip()
        for word in example.words:
            if word.guesses:
                first, others = word.guesses[0], ", ".join(guess.text for guess in word.guesses[1:])
                rows.append([text, word.text, first.text, first.probability, first.text == word.text, others])
    return rows


def show(loggers: Sequence[Logger], panel: Panel, sheets: Sequence[Image.Image]) -> None:
    """Show a panel on every dashboard among the loggers."""
    for logger in loggers:
        if isinstance(logger, WandbDashboard):
            logger.show(panel, sheets)


def make_logger(
    run_dir: str | Path, recipe: str | None = None, config: Mapping[str, Any] | None = None, tags: Sequence[str] = ()
) -> WandbDashboard | None:
    """The W&B logger of a run.

    Args:
        run_dir: the run directory; its name is the name of the run.
        recipe: for the group and a tag.
        config: the resolved configuration.
        tags: more tags.

    Returns:
        None where W&B is switched off (``WANDB_MODE=disabled``) or not installed.
    """
    from lightning.pytorch.loggers.wandb import _WANDB_AVAILABLE

    if mode() == "disabled" or not _WANDB_AVAILABLE:
        return None
    run_dir = Path(run_dir)
    return WandbDashboard(run_dir, run_dir.resolve().name, config=config, tags=[*([recipe] if recipe else []), *tags], group=recipe)


def _failures() -> tuple[type[Exception], ...]:
    try:
        import wandb
    except ImportError:
        return _FAILURES
    return (*_FAILURES, wandb.Error)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
