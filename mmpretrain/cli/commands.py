"""``evaluate``, ``embed``, ``export`` and ``report``: thin commands over the functions that do the work, imported when needed."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmpretrain.cli.errors import UserError, nearest, one_line, show
from mmpretrain.report.printing import printer

if TYPE_CHECKING:
    from mmpretrain.evaluate.samples import EvalSet

MEASUREMENTS = ("retrieval", "matching", "mlm", "mim", "zeroshot", "reconstruction", "likelihood")


class OneLine(argparse.ArgumentParser):
    """An argparse parser whose errors are one line; unknown options name the nearest."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0]
            message = f"unknown option '{word}'.{nearest(word.split('=')[0], _options(self))}"
        message = message if message.endswith("?") else f"{message.rstrip('.')}."
        sys.exit(show(f"{self.prog.removeprefix('mmpretrain ')}: {message} See {self.prog} --help"))


def at_least(least: int) -> Callable[[str], int]:
    """The ``type`` of an option that takes whole numbers from ``least`` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"a whole number, not {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least}, not {value}")
        return value

    return number


def _options(parser: argparse.ArgumentParser) -> list[str]:
    found = [option for action in parser._actions for option in action.option_strings]
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found + [option for action in inner for sub in action.choices.values() for option in _options(sub)]


def guarded(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the suite; what it refuses (ValueError) and what the system refuses (OSError) become one line for the user."""
    try:
        return function(*args, **kwargs)
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


def checkpoint(text: str) -> Path:
    """A checkpoint file of what the user named: a file, or a run folder (its ``last``)."""
    from mmpretrain.cli.resume import find_checkpoint

    return find_checkpoint(text)


def text_of(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 (byte {error.start + 1} is {error.object[error.start]:#04x})") from None


def check_file(option: str, path: Path | None) -> None:
    """
    Raises:
        UserError: no file can be written there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path}: there is a folder of that name; name a file")
    _check_folder(f"{option} {path}", path.parent, f".{path.name}.")


def check_folder(option: str, path: Path | None) -> None:
    """
    Raises:
        UserError: no folder can be made there, or no file in it.
    """
    if path is not None:
        _check_folder(f"{option} {path}", path, ".")


def _check_folder(what: str, folder: Path, prefix: str) -> None:
    """Write a file of the length of the later name into the folder, or the nearest one above it that exists, and remove it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{what}: {folder} is a file, so there can be no folder of that name")
    try:
        with tempfile.NamedTemporaryFile(prefix=prefix, dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{what}: nothing can be written into {folder} ({error.strerror})") from None


def named_sets(sources: Sequence[str], pretrained: Any) -> list[EvalSet]:
    """``NAME=SOURCE`` or ``SOURCE`` for each; without any, the validation sets of the checkpoint's configuration."""
    from mmpretrain.evaluate.samples import open_set

    if not sources:
        configured = ((pretrained.config.get("data") or {}).get("val")) or {}
        if not configured:
            raise UserError("the checkpoint names no validation set; give --data NAME=SOURCE")
        return [open_set(name, source) for name, source in configured.items()]
    found = []
    for text in sources:
        name, equals, source = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name):  # a path, or an option of a source: scenes:val?seed=7
            name, source = re.sub(r"[^\w.-]+", "_", Path(text.replace(":", "_")).name).strip("_"), text
        found.append(open_set(name, source))
    return found


def evaluate(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain evaluate", description="Measure a checkpoint on sets of shards.")
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run (its last checkpoint)")
    parser.add_argument("--data", action="append", default=[], metavar="[NAME=]SOURCE", help="shards; default: the run's validation sets")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="default: all that fit the checkpoint and the data")
    parser.add_argument("--limit", type=at_least(1), help="at most so many samples, evenly spread over each set")
    parser.add_argument("--captions", type=at_least(1), metavar="N", help="of each image in retrieval; default: all that fit")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="zero-shot classification: class names, one a line")
    parser.add_argument("--label", default="label", metavar="KEY", help="of KEY.json: the class(es) of a sample, names or numbers from 0")
    parser.add_argument("--templates", type=Path, metavar="FILE", help="prompts with {} for the class name, one a line")
    parser.add_argument("--weights", choices=("raw", "ema"), default=None, help="default: the average where there is one")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    options = parser.parse_args(argv[1:])
    return guarded(_evaluate, options)


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from mmpretrain.cli.watching import watch
    from mmpretrain.data.cache import write_atomic
    from mmpretrain.evaluate import suite, zeroshot
    from mmpretrain.evaluate.result import rows

    check_file("--out", options.out)
    pretrained = _load(options.checkpoint, options.weights)
    limits = suite.Limits(captions=options.captions).at_most(options.limit)
    classes = None if options.classes is None else zeroshot.Classes(_lines(options.classes), options.label)
    templates = zeroshot.TEMPLATES if options.templates is None else _lines(options.templates)
    sets, only = named_sets(options.data, pretrained), options.only or MEASUREMENTS
    with watch() as progress:
        results = suite.evaluate(pretrained, sets, only, limits, templates, classes, progress)
    if classes is not None and "zeroshot" in only and not any(result.name.startswith("zeroshot/") for result in results):
        raise UserError(f"no sample has the key {options.label!r} in its KEY.json: name the right one with --label")
    if not results:
        raise UserError(f"nothing was measured: of {', '.join(only)}, none fits both the checkpoint and the data; see docs/evaluation.md")
    suite.show(results, printer())
    if options.out:
        told = {"checkpoint": pretrained.source, "parameters": pretrained.parameter_count(), "rows": rows(results)}
        write_atomic(options.out, (json.dumps(told, indent=2) + "\n").encode("utf-8"))
    return 0


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank."""
    found = tuple(line.strip() for line in text_of(path).splitlines() if line.strip())
    if not found:
        raise UserError(f"{path} has no line")
    return found


def _load(text: str, weights: str | None = None) -> Any:
    import mmpretrain

    path = checkpoint(text)
    return mmpretrain.load(path) if weights is None else mmpretrain.load(path, weights=weights)


def embed(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain embed", description="Write the vectors of images and first captions of a set. Resumable.")
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run (its last checkpoint)")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="a folder of shards, a tar file, a pattern, or scenes:val")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.parquet|npz")
    parser.add_argument("--part-size", type=at_least(1), default=1024, help="samples per part; an interruption loses at most one part")
    options = parser.parse_args(argv[1:])
    return guarded(_embed, options)


def _embed(options: argparse.Namespace) -> int:
    from mmpretrain.evaluate.embed import embed as write

    pretrained = _load(options.checkpoint)
    (data,) = named_sets([f"data={options.data}"], pretrained)
    print(write(pretrained, data, options.out, part_size=options.part_size, progress=sys.stderr.isatty()))
    return 0


def export(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain export", description="Write a folder for another library, re-load it there and compare outputs.")
    parser.add_argument("run", help="a checkpoint, or the folder of a run (its last checkpoint)")
    parser.add_argument("--to", required=True, choices=("transformers", "open_clip", "timm", "openai", "safetensors"))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference that counts as equal (default 1e-4)")
    options = parser.parse_args(argv[1:])
    return guarded(_export, options)


def _export(options: argparse.Namespace) -> int:
    from mmpretrain.weights.export import export as write

    print(write(_load(options.run), options.to, options.out, tolerance=options.tolerance))
    return 0


def report(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain report", description="Write the HTML page of a run; one file that opens without network.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, help="default: report.html in the folder of the run")
    parser.add_argument("--wandb", action="store_true", help="write the definition of a W&B report instead")
    options = parser.parse_args(argv[1:])
    return guarded(_report, options)


def _report(options: argparse.Namespace) -> int:
    check_file("--out", options.out)
    if options.wandb:
        from mmpretrain.report.wandb import write_definition

        print(write_definition(options.run, options.out))
        return 0
    from mmpretrain.report.page import write_report

    print(write_report(options.run, options.out))
    return 0
