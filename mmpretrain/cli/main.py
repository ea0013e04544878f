"""The dispatcher: reads the first word and imports what that command needs. Imports nothing but the standard library."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import NamedTuple

from mmpretrain.cli.errors import EXIT_USER, UserError, nearest, show


class Command(NamedTuple):
    module: str
    function: str
    summary: str


COMMANDS: dict[str, Command] = {
    "fit": Command("mmpretrain.cli.train", "run", "train a system: mmpretrain fit --config vilt.yaml"),
    "validate": Command("mmpretrain.cli.train", "run", "run the validation of a checkpoint: --ckpt_path PATH"),
    "test": Command("mmpretrain.cli.train", "run", "run the test loop of a checkpoint"),
    "predict": Command("mmpretrain.cli.train", "run", "write what a checkpoint says of the pairs of the validation sets: --ckpt_path PATH"),
    "systems": Command("mmpretrain.cli.systems", "run", "list the systems, their objectives and recipes"),
    "doctor": Command("mmpretrain.cli.doctor", "run", "check this machine and this installation, with remedies"),
    "compare": Command("mmpretrain.cli.compare", "run", "train several recipes alike and compare them: compare vilt.yaml clip.yaml"),
    "evaluate": Command("mmpretrain.cli.commands", "evaluate", "retrieval, zero-shot, ITM and MLM accuracy of a checkpoint"),
    "generate": Command("mmpretrain.cli.generate", "run", "draw pictures for prompts: generate --ckpt RUN --dvae RUN --prompt TEXT"),
    "demo": Command("mmpretrain.cli.demo", "run", "a page in the browser that shows what a checkpoint does: demo RUN"),
    "embed": Command("mmpretrain.cli.commands", "embed", "write embeddings of a set of shards to a file"),
    "export": Command("mmpretrain.cli.commands", "export", "write a folder for transformers, open_clip, timm or ourselves, proved equal"),
    "report": Command("mmpretrain.cli.commands", "report", "write the HTML page of a run"),
    "data": Command("mmpretrain.cli.data", "run", "make, check and change shards: mmpretrain data --help"),
}

HELP = """usage: mmpretrain COMMAND [options]

Vision-and-language pre-training. Start with: mmpretrain fit --config vilt.yaml

commands:
{commands}

options:
  -h, --help  this text; after a command, the options of the command
  --version   versions of this package and of what it stands on
"""


def version() -> str:
    """One line with our version and those of torch and lightning, read from metadata (nothing is imported)."""
    import mmpretrain

    parts = [f"mmpretrain-vl {mmpretrain.__version__}"]
    for name in ("torch", "lightning"):
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{name} missing")
    return ", ".join(parts)


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program name) and return the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {command.summary}" for name, command in COMMANDS.items())))
        return 0 if argv else EXIT_USER
    if argv[0] in ("--version", "-V"):
        print(version())
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        return show(f"there is no command '{argv[0]}'.{nearest(argv[0], COMMANDS)} See mmpretrain --help")
    try:
        return getattr(importlib.import_module(command.module), command.function)(argv)
    except UserError as error:
        return show(error)
