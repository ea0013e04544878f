"""``mmpretrain data regions``: features of regions, their boxes, classes and attributes, as ``KEY.regions.npz`` in copies of shards.

What gives the regions is one of: a small extractor that ``--fit`` trains on labelled boxes, a Faster R-CNN of torchvision, the grid of a
timm backbone, or a store that an older system wrote. See docs/regions.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data.sources import expand
from mmpretrain.data_tools import regions_choose
from mmpretrain.data_tools.common import device_of, table, tool_parser
from mmpretrain.data_tools.engine import options_of, stamp
from mmpretrain.data_tools.regions_write import RANDOM, fill, report

BOXES = ("auto", "annotated", "proposals")


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 1 where ``--on-bad skip`` left samples without regions, or no sample got any.

    Raises:
        DataError: sources, options, weights or a store that cannot be used.
    """
    parser = _parser(parser_class)
    options = parser.parse_args(args)
    if options.fit:
        return _fit(options)
    info, works = _plan(options)
    return write(options, info, works)


def _parser(parser_class: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = tool_parser(
        parser_class,
        "regions",
        "Add regions to shards: features, boxes, classes and attributes (KEY.regions.npz).",
        "mmpretrain data regions scenes:val --extractor extractor.safetensors --out val_regions",
    )
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns; they are read, never changed")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards with regions; with --fit NAME.safetensors")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--fit", action="store_true", help="train a small extractor on the labelled boxes of the shards")
    kinds.add_argument("--extractor", type=Path, metavar="FILE", help="what --fit wrote")
    kinds.add_argument("--detector", metavar="NAME", help="a Faster R-CNN of torchvision, such as fasterrcnn_resnet50_fpn")
    kinds.add_argument("--grid", metavar="NAME", help="a backbone of timm: the cells of its last map")
    kinds.add_argument("--store", type=Path, metavar="PATH", help="features in the TSV, LMDB or HDF5 of an older system")
    parser.add_argument("--on-bad", choices=("stop", "skip"), default="stop", help="samples that cannot be read; skip: they get no regions")
    parser.add_argument("--replace", action="store_true", help="put new regions in the place of those that samples have")
    _add_models(parser)
    regions_choose.add_options(parser)
    _add_store(parser)
    _add_fit(parser)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument(
        "--boxes", choices=BOXES, default="auto", help="of --extractor: the sample's own, proposals, or own where there are any"
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="of --detector and --grid: .safetensors, .pth; nothing is downloaded")
    group.add_argument("--random-weights", action="store_true", help=f"of --detector and --grid: {RANDOM}")
    group.add_argument("--keep-proposals", action="store_true", help="of --detector: boxes are the proposals, as bottom-up attention's")
    group.add_argument("--grid-side", type=int, default=7, help="of --grid: at most so many cells along each side (default 7)")
    group.add_argument("--device", default="cpu", help="of --detector and --grid: cpu (default), cuda, cuda:1")
    group.add_argument("--classes", type=Path, metavar="FILE", help="names of classes, one a line, without the background")
    group.add_argument("--attributes", type=Path, metavar="FILE", help="names of attributes, one a line")


def _add_store(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stores")
    group.add_argument("--made-by", metavar="TEXT", help="which detector made the features; stores of one TEXT can be used together")
    group.add_argument("--match", choices=("key", "id", "number"), default="key", help="how samples find their record (default key)")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("--fit")
    group.add_argument(
        "--held-out", action="append", default=[], metavar="SOURCE", help="measure on these (default: a tenth of the samples)"
    )
    group.add_argument("--width", type=int, default=128, help="of features (default 128)")
    group.add_argument("--samples", type=int, default=4000, help="train on at most so many samples (default 4000)")
    group.add_argument("--passes", type=int, default=2, help="over them (default 2); at least 100 steps of 32")
    group.add_argument("--seed", type=int, default=0)


def _fit(options: argparse.Namespace) -> int:
    from mmpretrain.data_tools.regions_fit import Options, fit

    if options.width < 1 or options.samples < 1 or options.passes < 1:
        raise DataError("--width, --samples and --passes must be at least 1")
    wanted = Options(width=options.width, samples=options.samples, passes=options.passes, seed=options.seed)
    found = fit(options.shards, options.out, options.held_out, wanted, not options.quiet)
    for name, measured in found["held_out"].items():
        rows = [
            (head, one["boxes"], f"{one['accuracy']:.2%}", f"{one['always_the_most_frequent']:.2%}", f"{one['calibration_error']:.4f}")
            for head, one in measured["heads"].items()
        ]
        table(f"held out: {name}", ("", "boxes", "accuracy", "most frequent", "calibration error"), rows)
        own = measured["proposals"]
        print(f"own boxes at overlap 0.5: recall {own['recall']:.2%}, precision {own['precision']:.2%} ({own['pictures']} pictures)")
    print(f"{options.out}: trained on {found['trained_on']} samples in {found['seconds']} s")
    return 0


def _names(path: Path | None) -> list[str] | None:
    """Names of a file, one a line."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: names must be UTF-8 text, one a line") from None
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path}: {'no name' if not names else 'a name stands twice'}; give one name a line")
    return names


def _plan(options: argparse.Namespace) -> tuple[RegionsInfo, dict[Path, dict[str, Any]]]:
    """What the shards will say of their regions, and the options of the maker for each shard."""
    paths = expand(options.shards)
    rule = regions_choose.rule_of(options)
    if options.store is not None:
        return _plan_store(options, paths)
    made: dict[str, Any]
    if options.extractor is not None:
        info, made = of_extractor(options.extractor, options.boxes, rule)
        return info, dict.fromkeys(paths, made)
    if (options.weights is None) != options.random_weights:
        raise DataError(
            "--detector and --grid need --weights FILE; --random-weights is for tests of shapes"
            if options.weights is None
            else "--weights and --random-weights exclude each other"
        )
    device_of(options.device, "--device")
    common = {"weights": str(options.weights) if options.weights else None, "device": options.device}
    if options.grid is not None:
        from mmpretrain.data_tools import regions_grid

        info = regions_grid.info_of(options.grid, options.weights, options.grid_side)
        made = {"kind": "grid", "name": options.grid, "side": options.grid_side, **common}
    else:
        from mmpretrain.data_tools import regions_detector

        attributes = _names(options.attributes)
        info = regions_detector.info_of(options.detector, options.weights, _names(options.classes), attributes)
        info = info._replace(options={"rule": rule._asdict(), "refine": not options.keep_proposals})
        made = {"kind": "detector", "name": options.detector, "attributes": len(attributes or ()), "rule": rule, **common}
        made["refine"] = not options.keep_proposals
    return info, dict.fromkeys(paths, made)


def of_extractor(
    file: Path,
    boxes: str,
    rule: regions_choose.Rule = regions_choose.Rule(),  # noqa: B008  (immutable)
) -> tuple[RegionsInfo, dict[str, Any]]:
    """What shards by a small extractor say of their regions, and the options of its maker; ``boxes`` is one of ``BOXES``.

    Raises:
        DataError: the file is no extractor.
    """
    from mmpretrain.data_tools.regions_net import load_extractor

    info = load_extractor(file).info._replace(boxes=boxes, options={"rule": rule._asdict()})
    return info, {"kind": "extractor", "file": stamp(file), "boxes": boxes, "rule": rule}


def _plan_store(options: argparse.Namespace, paths: Sequence[Path]) -> tuple[RegionsInfo, dict[Path, dict[str, Any]]]:
    from mmpretrain.data_tools.regions_store import hint, info_of, places_of, widths_of
    from mmpretrain.data_tools.stores import matched, open_store

    if not options.made_by:
        raise DataError(
            "--store needs --made-by TEXT: which detector made the features, such as 'bottom-up attention, ResNet-101, Visual Genome'"
        )
    classes = _names(options.classes)
    store = open_store(options.store, classes)
    locations = store.locations()
    if not locations:
        raise DataError(f"{options.store}: the store is empty")
    tables = matched(locations, options.match)
    places = {path: places_of(path, tables, locations, options.match) for path in paths}
    if not any(places.values()):
        other = hint(paths[0], list(locations), options.match)
        raise DataError(f"{options.store}: no sample of the shards is in it by --match {options.match}; {other}")
    key, (location, *_) = next(item for found in places.values() for item in found.items())
    try:
        first = store.read(location)
    except BadSample as error:
        raise DataError(f"{options.store}: the record of sample {key!r}: {error}") from None
    info = info_of(store, first, options.made_by, classes, _names(options.attributes))
    made = {"kind": "store", "store": str(options.store), "stamp": stamp(options.store), "classes": classes, "background": info.background}
    made["widths"] = widths_of(first)
    return info, {path: {**made, "places": places[path]} for path in paths}


def write(options: argparse.Namespace, info: RegionsInfo, works: Mapping[Path, Mapping[str, Any]]) -> int:
    """Write the shards, print what was done; returns the exit code."""
    began = time.monotonic()
    counts = fill(options.out, info, works, options.replace, options.on_bad, title="regions", **options_of(options))
    return report(options.out, info, counts, time.monotonic() - began)
