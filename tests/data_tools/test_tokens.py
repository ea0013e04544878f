"""``data tokens``: shards with image codes hold what the autoencoder gives, the same bytes however made, and say what made them."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from helpers import tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.codes import write_codes
from helpers.regions import write_regions
from helpers.shards import encoded, sample, write_shards, write_tar
from PIL import Image

import mmpretrain
from mmpretrain.cli.main import main as program
from mmpretrain.data import codes_info, index, regions_info
from mmpretrain.data.codes import decode_codes, encode_codes
from mmpretrain.data.codes_info import CodesInfo, read_info
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.text import TextOptions
from mmpretrain.data_tools import tokens, tokens_shard
from mmpretrain.data_tools.check import check


@pytest.fixture(scope="module")
def dvae(tmp_path_factory):
    return tiny_dvae.make(tmp_path_factory.mktemp("dvae") / "d.ckpt")


@pytest.fixture(autouse=True)
def _loaded_anew():
    tokens_shard._loaded.cache_clear()


def run(*words) -> int:
    more = () if "--workers" in words else ("--workers", 1)
    return tokens.main([*map(str, (*words, *more)), "--quiet", "--device", "cpu"])


def reader(folder) -> ShardReader:
    return ShardReader(sorted(folder.glob("*.tar")))


def by_key(folder) -> dict[str, np.ndarray]:
    found = reader(folder)
    return {one.key: decode_codes(one.codes) for one in map(found.read, range(len(found))) if one.codes}


def sums(folder) -> dict[str, str]:
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def test_codes_are_what_the_autoencoder_gives(dvae, tmp_path, capsys):
    shards = write_shards(tmp_path / "in", (5, 4))
    assert run(shards, "--ckpt", dvae, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "9 grids of 4 x 4, " in told and "of 24 codes in use, perplexity" in told
    pretrained, old, new = mmpretrain.load(dvae), reader(shards), reader(tmp_path / "out")
    assert len(new) == 9 and (tmp_path / "out" / "00001.tar.idx.npz").is_file()
    for number in range(9):
        before, after = old.read(number), new.read(number)
        assert after._replace(codes=None) == before._replace(images=())
        pixels = pretrained.see(before).image[None] / 255
        assert np.array_equal(decode_codes(after.codes), pretrained.model.encode(pixels)[0].numpy())
    assert len({codes.tobytes() for codes in by_key(tmp_path / "out").values()}) > 4
    info = read_info(tmp_path / "out")
    assert (info.codes, info.grid, info.options) == (24, (4, 4), {"views": 1, "size": 16})
    assert info.weights == codes_info.digest(pretrained.model.state_dict())
    assert info.fingerprint == codes_info.fingerprint(info.weights, ImageTransform.from_dict(dict(info.transform)))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["samples"] == 9 and manifest["made"] == {"tool": "tokens", "fingerprint": info.fingerprint}


def test_what_was_written_trains(dvae, tmp_path):
    shards = write_shards(tmp_path / "in", (8,))
    run(shards, "--ckpt", dvae, "--out", tmp_path / "out", "--keep-images")
    data = ShardData(str(tmp_path / "out"), batch_size=4, text=TextOptions(vocab_size=300), show="codes", workers=0)
    data.setup("fit")
    wanted = by_key(tmp_path / "out")
    for (batch,) in data.train_dataloader():
        assert batch.image is None and data.vocabulary.codes == 24
        for key, codes in zip(batch.keys, batch.codes.dense(), strict=True):
            assert np.array_equal(codes.numpy(), wanted[key])
    middle = ImageTransform("clip", 16, crop_scale=(1, 1))
    both = ShardData(str(tmp_path / "out"), batch_size=4, text=data.text, image=middle, show="image+codes", workers=0)
    both.setup("fit")
    (batch,) = next(iter(both.train_dataloader()))
    assert batch.image.sizes == ((16, 16),) * 4 and batch.codes.grids == ((4, 4),) * 4


def test_pictures_stay_where_they_are_asked_for(dvae, tmp_path):
    shards = write_regions(tmp_path / "in", (4,))
    regions_info.write_info(shards, regions_info.RegionsInfo("grid", "a" * 64, 5, "resnet"))
    assert run(shards, "--ckpt", dvae, "--out", tmp_path / "out", "--keep-images") == 0
    old, new = reader(shards), reader(tmp_path / "out")
    assert all(new.read(n)._replace(codes=None) == old.read(n) for n in range(4)) and new.read(0).regions is not None
    assert regions_info.read_info(tmp_path / "out").fingerprint == "a" * 64


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_bytes_do_not_depend_on_processes_threads_and_batches(dvae, tmp_path, workers):
    shards = write_shards(tmp_path / "in", (7, 4, 3))
    run(shards, "--ckpt", dvae, "--out", tmp_path / "one" / "x", "--views", 2)
    torch.set_num_threads(2)
    try:
        run(shards, "--ckpt", dvae, "--out", tmp_path / "two" / "x", "--views", 2, "--workers", workers, "--batch", 5)
    finally:
        torch.set_num_threads(1)
    assert sums(tmp_path / "one" / "x") == sums(tmp_path / "two" / "x")


def test_views_are_near_central_crops(dvae, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    wide = [("w.png", encoded(Image.fromarray(pixels))), ("w.txt", b"noise")]
    shards = write_tar(tmp_path / "in" / "0.tar", [*wide, *sample(0)])
    run(shards, "--ckpt", dvae, "--out", tmp_path / "one")
    run(shards, "--ckpt", dvae, "--out", tmp_path / "three", "--views", 3)
    one, three = by_key(tmp_path / "one"), by_key(tmp_path / "three")
    assert list(three) == [f"{key}{view}" for key in one for view in ("", "~2", "~3")]
    assert all(np.array_equal(three[key], codes) for key, codes in one.items())
    assert not np.array_equal(three["w~2"], three["w"]) and not np.array_equal(three["w~2"], three["w~3"])
    texts = reader(tmp_path / "three")
    assert [texts.read(n).captions for n in range(3)] == [("noise",)] * 3
    assert read_info(tmp_path / "three").fingerprint == read_info(tmp_path / "one").fingerprint  # they can be used together


def test_a_killed_run_goes_on_where_it_was(dvae, tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "in", (3, 3, 2))
    run(shards, "--ckpt", dvae, "--out", tmp_path / "whole" / "x")
    ran, real = [], tokens_shard.write_shard

    def dies(target, samples):
        ran.append(target.name)
        if len(ran) == 2:
            target.with_name(f".{target.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(target, samples)

    monkeypatch.setattr(tokens_shard, "write_shard", dies)
    words = [shards, "--out", tmp_path / "cut" / "x"]
    with pytest.raises(KeyboardInterrupt):
        run(*words, "--ckpt", dvae)
    assert not (tmp_path / "cut" / "x" / "manifest.json").exists()
    for other in (("--ckpt", tiny_dvae.make(tmp_path / "other.ckpt", seed=1)), ("--ckpt", dvae, "--size", 32)):
        with pytest.raises(DataError, match="another autoencoder or other options was interrupted here"):
            run(*words, *other)
    assert run(*words, "--ckpt", dvae) == 0
    assert ran == ["00000.tar", "00001.tar", "00001.tar", "00002.tar"]
    assert sums(tmp_path / "cut" / "x") == sums(tmp_path / "whole" / "x")
    with pytest.raises(DataError, match="not an empty folder"):
        run(*words, "--ckpt", dvae)


def test_sizes_change_the_grid(dvae, tmp_path):
    shards = write_shards(tmp_path / "in", (2,))
    assert run(shards, "--ckpt", dvae, "--out", tmp_path / "out", "--size", 24) == 0
    assert read_info(tmp_path / "out").grid == (6, 6) and by_key(tmp_path / "out")["k00000"].shape == (6, 6)
    with pytest.raises(DataError, match=r"--size 18: pictures of 18 x 18 pixels are no multiples of 4; take --size 16 or 20$"):
        run(shards, "--ckpt", dvae, "--out", tmp_path / "no", "--size", 18)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_read_stops_or_is_left_without(dvae, tmp_path, capsys):
    bad = [("bad.png", b"\x89PNG no"), ("bad.txt", b"a bad one")]
    shards = write_tar(tmp_path / "in" / "0.tar", [*sample(0), *bad, ("alone.txt", b"words alone"), *sample(1)])
    with pytest.raises(DataError, match=r"0.tar key 'bad': picture cannot be decoded .*--on-bad skip"):
        run(shards, "--ckpt", dvae, "--out", tmp_path / "a")
    assert run(shards, "--ckpt", dvae, "--out", tmp_path / "b", "--on-bad", "skip", "--views", 2) == 1
    assert set(by_key(tmp_path / "b")) == {"k00000", "k00000~2", "k00001", "k00001~2"}
    new = reader(tmp_path / "b")
    assert {new.read(n).key for n in range(len(new))} == {*by_key(tmp_path / "b"), "bad", "alone"}
    assert "1 sample has no picture and got no codes" in capsys.readouterr().out
    texts = write_tar(tmp_path / "texts" / "0.tar", [("alone.txt", b"words alone")])
    assert run(texts, "--ckpt", dvae, "--out", tmp_path / "c") == 1


def test_what_is_refused(dvae, tmp_path):
    shards = write_shards(tmp_path / "in", (2,))
    squash = tiny_dvae.make(tmp_path / "squash.ckpt", mode="squash")
    cases = [
        (("--ckpt", dvae, "--views", 2, "--keep-images"), "exclude each other"),
        (("--ckpt", dvae, "--batch", 0), "at least 1"),
        (("--ckpt", dvae, "--size", 0), "^--size 0 must be at least 1$"),
        (("--ckpt", dvae, "--size", 3), "no multiples of 4; take --size 4$"),
        (("--ckpt", tmp_path / "nowhere"), "no such checkpoint"),
        (("--ckpt", checkpoint(tmp_path / "vilt.ckpt")), "no discrete autoencoder, but ViLT, which gives fused"),
        (("--ckpt", tiny_dvae.make(tmp_path / "v.ckpt", mode="vilt")), "mode=vilt, whose pictures have many sizes"),
        (("--ckpt", squash, "--views", 2), "mode=squash, the whole picture"),
    ]
    for words, message in cases:
        with pytest.raises(DataError, match=message):
            run(shards, "--out", tmp_path / "no", *words)
        assert not (tmp_path / "no").exists()
    with pytest.raises(DataError, match=r"^--device nope cannot be used: there is no such device; take cpu, cuda or cuda:1$"):
        tokens.main([str(shards), "--ckpt", str(dvae), "--out", str(tmp_path / "no"), "--device", "nope"])
    assert run(shards, "--ckpt", squash, "--out", tmp_path / "squashed") == 0
    with pytest.raises(DataError, match="is the folder of the shards"):
        run(shards, "--ckpt", dvae, "--out", shards)
    coded = write_codes(tmp_path / "coded", (2,))
    with pytest.raises(DataError, match="key 'k00000' has image codes already; --replace"):
        run(coded, "--ckpt", dvae, "--out", tmp_path / "twice")
    assert run(coded, "--ckpt", dvae, "--out", tmp_path / "again", "--replace") == 0
    assert {codes.shape for codes in by_key(tmp_path / "again").values()} == {(4, 4)}
    words = ["data", "tokens", str(shards), "--out", str(tmp_path / "x"), "--workers", "1", "--ckpt", str(tmp_path / "vilt.ckpt")]
    assert program(words) == 2  # one line, no traceback


def test_a_checkpoint_that_changes_meanwhile(dvae, tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "in", (2,))
    planned = tokens.planned

    def changed(*words):
        found = planned(*words)
        return found._replace(work={**found.work, "fingerprint": "0" * 64})

    monkeypatch.setattr(tokens, "planned", changed)
    with pytest.raises(DataError, match="not what it was when the command began"):
        run(shards, "--ckpt", dvae, "--out", tmp_path / "out")


def test_two_autoencoders_do_not_mix(dvae, tmp_path):
    other = tiny_dvae.make(tmp_path / "other.ckpt", seed=1)
    for number, (name, ckpt) in enumerate((("a", dvae), ("b", other))):
        shards = write_tar(tmp_path / f"in_{name}" / "0.tar", [m for n in range(4) for m in sample(10 * number + n)])
        run(shards, "--ckpt", ckpt, "--out", tmp_path / name)
    with pytest.raises(DataError, match=r"the image codes of \S+/a were made by d.ckpt\S+ .* and those of \S+/b by other.ckpt"):
        ShardData([str(tmp_path / "a"), str(tmp_path / "b")], batch_size=4, show="codes", workers=0).setup("fit")


def test_check_finds_wrong_codes(tmp_path):
    array = np.empty((1, 1), dtype=object)
    pickled = io.BytesIO()
    np.save(pickled, array, allow_pickle=True)  # what must be refused; nothing here reads it
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (50000, 20000), }\n"
    files = {
        "good": encode_codes(np.zeros((2, 3), dtype=np.uint16)),
        "pickled": pickled.getvalue(),
        "bomb": b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text,
        "high": encode_codes(np.full((2, 3), 99)),
        "grid": encode_codes(np.zeros((3, 2), dtype=np.uint16)),
    }
    members = [member for key, data in files.items() for member in ((f"{key}.txt", b"words"), (f"{key}.codes.npy", data))]
    path = write_tar(tmp_path / "set" / "0.tar", members)
    codes_info.write_info(path.parent, CodesInfo("1" * 64, 16, (2, 3), "dvae"))
    index.open_index(path)
    found = {one.key: (one.kind, one.reason) for one in check([path], engine={"workers": 1, "progress": False}).problems}
    assert {key: kind for key, (kind, _) in found.items()} == {"pickled": "codes", "bomb": "bomb", "high": "codes", "grid": "codes"}
    assert "not below 16" in found["high"][1] and "codes.json says 2 x 3" in found["grid"][1]


def test_names_of_files_are_no_markup(dvae, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shards = write_shards(tmp_path / "in", (2,))
    out = tmp_path / "o[" / "b] [red]"
    (shards / "00000.tar").rename(shards / "[red].tar")
    assert run(shards, "--ckpt", dvae, "--out", out) == 0
    shown = capsys.readouterr().out
    assert f"{out}: d.ckpt@7".replace(" ", "") in "".join(shown.split()) and "[red].tar" in shown


def test_an_imported_autoencoder_has_the_name_of_its_folder(dvae, tmp_path):
    from mmpretrain.weights import own

    made = tmp_path / "openai"
    assert program(["export", str(dvae), "--to", "safetensors", "--out", str(made)]) == 0
    about = json.loads((made / own.ABOUT).read_text())
    shards = write_shards(tmp_path / "in", (2,))
    assert run(shards, "--ckpt", made, "--out", tmp_path / "a") == 0
    assert read_info(tmp_path / "a").source.startswith("openai@7-")
    del about["about"]["step"]  # imported weights have none
    (made / own.ABOUT).write_text(json.dumps(about))
    tokens_shard._loaded.cache_clear()
    assert run(shards, "--ckpt", made, "--out", tmp_path / "b") == 0
    assert len(read_info(tmp_path / "b").source) == len("openai@") + 12
