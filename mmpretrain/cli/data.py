"""``mmpretrain data TOOL``: the table of the offline tools and what runs them.

A tool is a module of ``mmpretrain.data_tools`` with ``main(args, parser_class) -> exit code``, imported when it is called. What it refuses
it raises as a ValueError (DataError is one) or an OSError, which becomes one line and exit code 2 here. Adding a tool is one line.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from mmpretrain.cli.commands import OneLine, guarded
from mmpretrain.cli.errors import EXIT_USER, UserError, nearest
from mmpretrain.data.cache import FULL

INTERRUPTED = 130  # the exit code after Ctrl-C


class Tool(NamedTuple):
    module: str  # in mmpretrain.data_tools
    summary: str


TOOLS: dict[str, Tool] = {
    "scenes": Tool("scenes", "write generated scenes as shards; the same seed gives the same scenes everywhere"),
    "build": Tool("build", "write shards from the formats of COCO, Visual Genome, VQA, img2dataset and others, from tables and folders"),
    "index": Tool("indexing", "make or refresh the index of shards, checking every member"),
    "check": Tool("check", "the doctor of shards: find every damage, list what training must leave out"),
    "stats": Tool("stats", "one HTML page about a set: histograms, frequent words, samples"),
    "split": Tool("split", "parts of a set by hashes of keys or fields; what belongs together stays together"),
    "mix": Tool("mix", "one set from several, interleaved by weights"),
    "filter": Tool("filter", "samples and captions by conditions, relevance, repetition, or a recipe; with an account"),
    "dedup": Tool("dedup", "pictures that look alike: a set without them, or a list of them"),
    "tokenizer": Tool("tokenizer", "train a tokenizer on shards, or extend one with words"),
    "scenegraph": Tool("scenegraph", "spans of objects, attributes and relations for captions"),
    "tokens": Tool("tokens", "pictures as tokens of a discrete autoencoder, written once"),
    "regions": Tool("regions", "features, boxes, classes and attributes of regions; converters of older stores"),
}

HELP = """usage: mmpretrain data TOOL [options]

Make, check and change shards. Each tool has its own --help.

tools:
{tools}
"""


def run(argv: list[str]) -> int:
    """Run ``["data", TOOL, ...]``; returns the exit code.

    Raises:
        UserError: an unknown tool, or what the tool refused.
    """
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        text = HELP.format(tools="\n".join(f"  {name:<10} {tool.summary}" for name, tool in TOOLS.items()))
        print(text, end="", file=sys.stdout if len(argv) > 1 else sys.stderr)
        return 0 if len(argv) > 1 else EXIT_USER
    tool = TOOLS.get(argv[1])
    if tool is None:
        raise UserError(f"there is no tool 'data {argv[1]}'.{nearest(argv[1], TOOLS)} See mmpretrain data --help")
    module = importlib.import_module(f"mmpretrain.data_tools.{tool.module}")
    try:
        return guarded(module.main, argv[2:], OneLine)
    except UserError as error:
        if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL):
            raise
        other = " or choose another --out" if any(word.partition("=")[0] == "--out" for word in argv) else ""
        raise UserError(f"{error}; free space there{other}") from error.__cause__
    except KeyboardInterrupt:
        print(f"mmpretrain: data {argv[1]} was interrupted", file=sys.stderr)
        return INTERRUPTED
