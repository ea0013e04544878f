"""What Lightning says at every start and save is left out; the rest is kept."""

from __future__ import annotations

import logging
import warnings

import pytest
from lightning.pytorch.trainer.connectors import checkpoint_connector

from mmpretrain.cli.quiet import LOGGERS, quieten


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.mark.parametrize("name", LOGGERS)
def test_idle_talk_is_left_out(name):
    quieten()
    logger, heard = logging.getLogger(name), Heard()
    logger.addHandler(heard)
    try:
        logger.warning("`weights_only` was not set, defaulting to `False`.")
        logger.warning("a thing to act upon")
    finally:
        logger.removeHandler(heard)
    assert heard.texts == ["a thing to act upon"]


def test_the_logger_of_saves_is_among_them():
    assert checkpoint_connector.log.name in LOGGERS


def test_warnings_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    quieten()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **_: print(warnings.formatwarning(message, *rest[:3]), end=""))
        warnings.warn("step 3: a spike", stacklevel=1)
    assert capsys.readouterr().out == "warning: step 3: a spike\n"
