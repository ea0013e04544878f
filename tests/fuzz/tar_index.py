"""Fuzz target (atheris): the reader of archives and the index of shards. Some inputs are archives made of the input, the others raw bytes.

    python tests/fuzz/tar_index.py -max_total_time=600

``tarfile`` reads every archive too: a file that it sees must not be missing.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
import mmpretrain.types  # noqa: E402, F401  (torch is not instrumented)

with atheris.instrument_imports(include=["mmpretrain.data.tar", "mmpretrain.data.index", "mmpretrain.data.decode", "tarfile"]):
    from fuzz.checks import check_index, check_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
EXTENSIONS = ("txt", "json", "png", "img0.jpg", "regions.npz", "pkl", "5_img.jpg", "", "TXT")


def archive(provider: atheris.FuzzedDataProvider) -> bytes:
    """An archive of members that the input names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[provider.ConsumeIntInRange(0, 2)]) as made:
        for _ in range(provider.ConsumeIntInRange(0, 6)):
            stem = provider.ConsumeUnicodeNoSurrogates(provider.ConsumeIntInRange(0, 8) ** 3).replace("\0", "")
            info = tarfile.TarInfo(f"{stem}.{EXTENSIONS[provider.ConsumeIntInRange(0, len(EXTENSIONS) - 1)]}")
            body = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 700))
            info.size = len(body)
            try:
                made.addfile(info, io.BytesIO(body))
            except ValueError:  # a name too long for the format
                continue
    return buffer.getvalue()


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        made = archive(provider)
        check_tar(made, sound=True)
        damaged = bytearray(made)
        for _ in range(provider.ConsumeIntInRange(0, 3)):  # and the same one damaged
            damaged[provider.ConsumeIntInRange(0, len(damaged) - 1)] ^= 1 << provider.ConsumeIntInRange(0, 7)
        made = bytes(damaged[: len(damaged) - provider.ConsumeIntInRange(0, 2) * provider.ConsumeIntInRange(0, 1100)])
    else:
        made = provider.ConsumeBytes(provider.remaining_bytes())
    check_tar(made)
    check_index(made)


def seeds(folder: Path) -> None:
    """A few archives to begin with."""
    for number, kind in enumerate(FORMATS):
        with tarfile.open(folder / str(number), "w", format=kind) as made:
            for name in ("a.txt", "a.png", "b" * 60 + "/" + "b" * 60 + ".txt", "folder/ä.txt"):
                info = tarfile.TarInfo(name)
                info.size = 3
                made.addfile(info, io.BytesIO(b"abc"))
        with open(folder / str(number), "ab") as file:
            file.write(b"\0")  # flags are read from the end: raw


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup([*sys.argv, corpus, "-max_len=12288"], test_one_input)
        atheris.Fuzz()
