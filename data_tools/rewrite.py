"""New shards from chosen samples of old ones: what ``split``, ``mix``, ``filter``, ``dedup`` and ``scenegraph`` write with.

A row is ``[shard, sample]`` or ``[shard, sample, edit]``: numbers of a shard in the list of inputs and of a sample in it. An edit may hold
``prefix`` and ``suffix`` (the key becomes ``prefix/KEYsuffix``), ``keep`` (the captions that stay, by number) and ``meta`` (entries to set
in ``KEY.json``). What no edit concerns is copied byte for byte; only members that the loader reads are copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data import codes_info, regions_info
from mmpretrain.data.decode import assemble, decode_json
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import carried
from mmpretrain.data_tools.engine import run, stamp
from mmpretrain.data_tools.shards import RawReader, fresh_folder, write_manifest, write_shard

STATE = ".state"
PER_CAPTION = ("captions", "edits", "scene_graph", "relevance")  # lists of KEY.json with one entry for each caption

Row = Sequence[Any]


def edited(key: str, members: Mapping[str, bytes], edit: Mapping[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A sample after an edit; ``KEY.txt`` is the first caption that is left."""
    made = dict(members)
    if "keep" in edit or "meta" in edit:
        meta = decode_json(members["json"]) if "json" in members else {}
        if "keep" in edit:
            captions = list(assemble(key, {name: data for name, data in members.items() if name in ("txt", "json")}).captions)
            beside = [name for name in meta if name in PER_CAPTION[1:] or name.startswith("caption_")]  # caption_ids, caption_boxes
            listed = {"captions": captions, **{name: meta[name] for name in beside if isinstance(meta[name], list)}}
            for name, values in listed.items():
                if len(values) == len(captions):
                    meta[name] = [values[number] for number in edit["keep"]]
            if "txt" in made and meta["captions"]:
                made["txt"] = meta["captions"][0].encode("utf-8")
        meta.update(edit.get("meta") or {})
        made["json"] = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return _renamed(key, edit), made


def _renamed(key: str, edit: Mapping[str, Any]) -> str:
    return (f"{edit['prefix']}/{key}" if edit.get("prefix") else key) + edit.get("suffix", "")


def write_rows(item: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard: what runs in a worker.

    Args:
        item: ``target``; ``inputs``, stamps of shards; ``rows`` of them.
    """
    paths = [Path(one[0]) for one in item["inputs"]]
    reader = RawReader(paths)

    def samples() -> Iterable[tuple[str, Mapping[str, bytes]]]:
        for shard, sample, *edit in item["rows"]:
            key, members = reader.read(paths[shard], sample)
            yield edited(key, members, edit[0]) if edit and edit[0] else (key, members)

    return write_shard(Path(item["target"]), samples())


def chunks(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """Rows cut into shards of ``size``.

    Raises:
        DataError: no sample would fit.
    """
    if size < 1:
        raise DataError(f"--shard-size {size}: at least one sample must fit")
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _file(number: int) -> str:
    return f"{number:05d}.tar"


def _listed(rows: Sequence[Row], size: int, old: carried.Listed) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Shard, key and entry of the rows that lists beside the inputs name."""
    for at, (shard, sample, *edit) in enumerate(rows):
        if entry := old.get((shard, sample)):
            yield _file(at // size), _renamed(entry["key"], (edit and edit[0]) or {}), entry


def rewrite(
    out: Path,
    parts: Mapping[str, Sequence[Row]],
    inputs: Sequence[Path],
    made: Mapping[str, Any],
    shard_size: int,
    engine: Mapping[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Write each part to ``out / name`` (``out`` itself for the name ``""``): NNNNN.tar and manifest.json.

    Continues what an interrupted call with the same arguments left. The last step of a tool: the folder ``.state`` goes with it.

    Args:
        parts: name -> rows.
        inputs: the shards that the rows number.
        made: tool and options, for the manifest.
        engine: arguments of :func:`mmpretrain.data_tools.engine.run`.

    Returns:
        part -> what the manifest says of its shards.

    Raises:
        DataError: shards of no sample, regions of two extractors or codes of two autoencoders (``regions.json``, ``codes.json`` of the
            inputs), or ``out`` holds something else.
    """
    extractor = regions_info.same_extractor(path.parent for path in inputs)
    autoencoder = codes_info.same_tokenizer(path.parent for path in inputs)
    state = fresh_folder(out, STATE)
    stamps = [stamp(path) for path in inputs]
    items: dict[str, Any] = {}
    for name, rows in parts.items():
        for number, chunk in enumerate(chunks(rows, shard_size)):
            used = sorted({row[0] for row in chunk})
            place = {shard: at for at, shard in enumerate(used)}
            target = out / name / _file(number)
            renumbered = [[place[row[0]], *row[1:]] for row in chunk]
            items[str(target.relative_to(out))] = {
                "target": str(target),
                "inputs": [stamps[shard] for shard in used],
                "rows": renumbered,
            }

    def there(file: str, facts: Mapping[str, Any]) -> bool:
        return (out / file).is_file() and (out / file).stat().st_size == facts["bytes"]

    quarantined = carried.listed(inputs)
    written = run(write_rows, items, title=f"write {out.name}", state=state, valid=there, **engine)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in parts:
        found[name] = [facts for file, facts in written.items() if (Path(file).parent == Path(name or "."))]
        if found[name]:
            write_manifest(out / name, found[name], made)
            carried.write(out / name, _listed(parts[name], shard_size, quarantined))
            if extractor is not None:
                regions_info.write_info(out / name, extractor)
            if autoencoder is not None:
                codes_info.write_info(out / name, autoencoder)
    shutil.rmtree(state)
    return found
