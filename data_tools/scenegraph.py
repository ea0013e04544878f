"""``mmpretrain data scenegraph``: spans of objects, attributes and relations for every caption, written into ``KEY.json``.

``scene_graph`` is a list with one entry for each caption::

    {"objects": [[start, end]], "attributes": [[start, end, object]], "relations": [[start, end, subject, object]]}

in characters of the caption; objects are numbered in the order of their list. Where ``KEY.json`` has ``objects`` with names and ``triples``
(Visual Genome, by ``mmpretrain data build``), spans are what of them the caption says; elsewhere a parser by rules reads the caption.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.scenegraph_parse import Graph, parse
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.common import table, tool_parser
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.indexing import index
from mmpretrain.data_tools.rewrite import STATE, Row, rewrite
from mmpretrain.data_tools.shards import SHARD_SIZE, fresh_folder

FROM = ("auto", "annotations", "parser")
_BEFORE = 40  # characters before an object in which its attributes stand


def from_annotations(caption: str, objects: Sequence[Mapping[str, Any]], triples: Sequence[Sequence[Any]]) -> Graph:
    """The spans of annotated objects, attributes and relations that a caption names, by their words.

    Args:
        objects: ``name`` or ``names``, and ``attributes``, of each.
        triples: [subject, predicate, object] with numbers of objects.
    """
    graph: Graph = {"objects": [], "attributes": [], "relations": []}
    places: dict[int, int] = {}  # annotated object -> number of its span
    spans: dict[tuple[int, int], int] = {}
    for number, one in enumerate(objects):
        names = [name for name in one.get("names") or [one.get("name")] if isinstance(name, str)]
        span = next((found for name in sorted(names, key=len, reverse=True) if (found := _find(caption, name, 0, True))), None)
        if span is None:
            continue
        if span not in spans:
            spans[span] = len(graph["objects"])
            graph["objects"].append(list(span))
        places[number] = spans[span]
        for attribute in one.get("attributes") or ():
            found = _find(caption[: span[0]], str(attribute), max(0, span[0] - _BEFORE))
            row = [*found, spans[span]] if found else None
            if row and row not in graph["attributes"]:
                graph["attributes"].append(row)
    for subject, predicate, thing in triples:
        if subject in places and thing in places and places[subject] != places[thing]:
            first, last = (graph["objects"][places[number]] for number in (subject, thing))
            found = _find(caption[: last[0]], str(predicate), first[1]) if first[1] <= last[0] else None
            row = [*found, places[subject], places[thing]] if found else None
            if row and row not in graph["relations"]:
                graph["relations"].append(row)
    return graph


def _find(text: str, wanted: str, start: int, plural: bool = False) -> tuple[int, int] | None:
    """The first whole occurrence of some words from ``start`` on."""
    if not wanted.strip():
        return None
    pattern = re.compile(rf"(?<!\w){re.escape(wanted.strip())}{'(?:s|es)?' if plural else ''}(?!\w)", re.IGNORECASE)
    match = pattern.search(text, start)
    return (match.start(), match.end()) if match else None


def graph_shard(item: Mapping[str, Any]) -> list[list[Graph]]:
    """The graphs of every caption of every sample of a shard: what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``from``, one of ``FROM``.

    Raises:
        DataError: ``from`` is annotations, and a sample has none; or they are of another form.
    """
    reader = ShardReader([Path(item["shard"][0])])
    found: list[list[Graph]] = []
    for number in range(len(reader)):
        try:
            sample = reader.read_at(0, number, images=False)
        except BadSample:
            found.append([])
            continue
        objects, triples = sample.meta.get("objects"), sample.meta.get("triples") or ()
        named = isinstance(objects, list) and any(isinstance(one, dict) and (one.get("name") or one.get("names")) for one in objects)
        if item["from"] == "annotations" and not named:
            raise DataError(f"{reader.name(0, number)}: KEY.json has no objects with names; take --from parser")
        use = named and item["from"] != "parser"
        try:
            found.append([from_annotations(text, objects, triples) if use else parse(text) for text in sample.captions])
        except (AttributeError, TypeError, ValueError) as error:
            place = f"{reader.name(0, number)}: objects or triples of KEY.json are not of the form of docs/build.md"
            raise DataError(f"{place} ({error}); take --from parser") from None
    return found


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Write a set with scene graphs; returns the exit code.

    Raises:
        DataError: a source that does not exist, a damaged shard, or samples without annotations where they are asked for.
    """
    text = "Write a set with spans of objects, attributes and relations for each caption (scene_graph in KEY.json)"
    parser = tool_parser(parser_class, "scenegraph", text, "mmpretrain data scenegraph shards/ --out graphs/")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards")
    parser.add_argument(
        "--from", dest="source", choices=FROM, default="auto", help="auto: annotations where there are any, else the parser"
    )
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    options = parser.parse_args(args)
    paths, engine = list(expand(options.shards)), options_of(options)
    state = fresh_folder(options.out, STATE)
    index(paths, engine=engine)
    found = run(
        graph_shard, {str(path): {"shard": stamp(path), "from": options.source} for path in paths}, title="graphs", state=state, **engine
    )
    rows: list[Row] = []
    totals = {"captions": 0, "objects": 0, "attributes": 0, "relations": 0}
    for number, path in enumerate(paths):
        for sample, graphs in enumerate(found[str(path)]):
            rows.append([number, sample, {"meta": {"scene_graph": graphs}} if graphs else {}])
            totals["captions"] += len(graphs)
            for part in ("objects", "attributes", "relations"):
                totals[part] += sum(len(graph[part]) for graph in graphs)
    rewrite(options.out, {"": rows}, paths, {"tool": "scenegraph", "from": options.source}, options.shard_size, engine)
    table(str(options.out), ("", "number", "per caption"), [(k, v, v / max(totals["captions"], 1)) for k, v in totals.items()])
    return 0
