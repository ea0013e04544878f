"""``mmpretrain data tokens``: pictures as tokens of a discrete autoencoder, ``KEY.codes.npy`` in copies of shards, so that what trains on
the codes never runs the encoder. See docs/tools.md."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.data import regions_info
from mmpretrain.data.codes import MAX_KNOWN
from mmpretrain.data.codes_info import NAME, CodesInfo, read_info, write_info
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.common import device_of, megabytes, table, tool_parser
from mmpretrain.data_tools.derive import derive, plain
from mmpretrain.data_tools.engine import options_of
from mmpretrain.data_tools.tokens_shard import Counts, load, perplexity, shard, usage

SQUARES = ("clip", "dalle")  # data.image.mode that show a square of a picture, which views can move


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 1 where ``--on-bad skip`` left samples without codes, or no sample got any.

    Raises:
        DataError: sources, options or a checkpoint that cannot be used.
    """
    parser = tool_parser(
        parser_class,
        "tokens",
        "Write pictures as tokens of a discrete autoencoder (KEY.codes.npy), beside their captions.",
        "mmpretrain data tokens shards/ --ckpt runs/dvae-20260101-120000 --out tokens/",
    )
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns; they are read, never changed")
    parser.add_argument("--ckpt", type=Path, required=True, help="a discrete autoencoder: a checkpoint, or the folder of its run")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards with codes")
    parser.add_argument("--keep-images", action="store_true", help="keep the pictures too, for data.show=image+codes")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (default: that of the checkpoint)")
    parser.add_argument("--views", type=int, default=1, help="samples for each picture: it, then near-central crops of it (default 1)")
    parser.add_argument("--batch", type=int, default=64, help="pictures encoded together (default 64)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto (default): a GPU where there is one")
    parser.add_argument("--on-bad", choices=("stop", "skip"), default="stop", help="pictures that cannot be read; skip: they get no codes")
    parser.add_argument("--replace", action="store_true", help="put new codes in the place of those that samples have")
    options = parser.parse_args(args)
    began = time.monotonic()
    if options.batch < 1 or options.views < 1:
        raise DataError("--batch and --views must be at least 1")
    if options.size is not None and options.size < 1:
        raise DataError(f"--size {options.size} must be at least 1")
    if options.views > 1 and options.keep_images:
        raise DataError("--views and --keep-images exclude each other: the codes of a crop are not those of the picture beside them")
    device = device_of(options.device, "--device")
    if device != "cpu" and options.workers is None:
        options.workers = 1  # processes on one GPU wait for each other
    paths = expand(options.shards)
    plan = planned(options.ckpt, device, options.size, options.views)
    work = {**plan.work, "batch": options.batch, "keep_images": options.keep_images, "on_bad": options.on_bad, "replace": options.replace}
    counts = fill(options.out, plan.info, dict.fromkeys(paths, work), **options_of(options))
    return report(options.out, plan.info, counts, time.monotonic() - began)


class Plan(NamedTuple):
    """What the shards will say of their codes, and the work of each shard as far as it is alike."""

    info: CodesInfo
    work: dict[str, Any]


def planned(checkpoint: Path, device: str, size: int | None, views: int) -> Plan:
    """Open the autoencoder and look at what it gives.

    Raises:
        DataError: it is none, or does not fit the options.
    """
    made = load(str(checkpoint), device, size)
    transform: ImageTransform = made.transform
    if transform.mode == "vilt":
        raise DataError(f"{checkpoint}: trained with data.image.mode=vilt, whose pictures have many sizes; codes need squares")
    if views > 1 and transform.mode not in SQUARES:
        raise DataError(
            f"--views moves square crops, but {checkpoint} was trained with data.image.mode={transform.mode}, the whole picture"
        )
    if made.codes > MAX_KNOWN:
        raise DataError(f"{checkpoint}: {made.codes} codes are more than {MAX_KNOWN}, which the files can hold")
    grid = made.grid()
    told = {"views": views, "size": transform.size}
    info = CodesInfo(made.fingerprint, made.codes, grid, made.source, made.weights, plain(transform.to_dict()), told)
    work = {"checkpoint": str(checkpoint), "device": device, "size": size, "views": views, "fingerprint": info.fingerprint}
    return Plan(info, {**work, "grid": list(grid), "codes": info.codes})


def fill(out: Path, info: CodesInfo, works: Mapping[Path, Mapping[str, Any]], **engine: Any) -> dict[str, Counts]:
    """Write the shards, their indexes, manifest and ``codes.json``; go on where an interrupted run with the same options stopped.

    Args:
        out: new folder.
        info: what the shards say of their codes.
        works: shard -> its work, see ``tokens_shard.shard``.
        engine: arguments of ``engine.run``.

    Returns:
        file name of a shard -> what was done to it.
    """
    extractor = regions_info.same_extractor(path.parent for path in works)

    def begin() -> None:
        before = read_info(out)
        if before is not None and plain(before.to_json()) != plain(info.to_json()):
            was = f"a run with another autoencoder or other options was interrupted here ({before.source})"
            raise DataError(f"{out}: {was}; remove the folder, or choose another --out")
        write_info(out, info)
        if extractor is not None:
            regions_info.write_info(out, extractor)

    found = derive(shard, out, works, begin, {"tool": "tokens", "fingerprint": info.fingerprint}, title="tokens", **engine)
    return {file: Counts(**one) for file, one in found.items()}


def report(out: Path, info: CodesInfo, counts: Mapping[str, Counts], seconds: float) -> int:
    """Print the table of what :func:`fill` did and what is to be known; returns the exit code."""
    listed = list(counts.items()) if len(counts) <= 20 else []
    total = Counts(*(sum(getattr(one, name) for one in counts.values()) for name in Counts._fields[:5]))
    used_K = usage([one.seen for one in counts.values()], info.codes)
    table(
        f"{out}: {info.source}",
        ("", "samples", "with codes", "without", "bad", "size"),
        [(name, one.samples, one.coded, one.missing, one.bad, megabytes(one.bytes)) for name, one in (*listed, ("all", total))],
    )
    for problem in [one.problem for one in counts.values() if one.problem][:3]:
        print(problem)
    rows, columns = info.grid
    print(
        f"{total.coded} grids of {rows} x {columns}, {int((used_K > 0).sum())} of {info.codes} codes in use, perplexity "
        f"{perplexity(used_K):.1f}, in {seconds:.1f} s; {NAME} {info.fingerprint[:12]}"
    )
    if total.missing:
        print(f"{total.missing} {'sample has' if total.missing == 1 else 'samples have'} no picture and got no codes")
    return 1 if total.bad or not total.coded else 0
