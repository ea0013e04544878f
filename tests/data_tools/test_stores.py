"""Old stores are read back exactly: each layout is written here as its system wrote it, put beside shards, and compared value by value."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from helpers import old_stores
from helpers.old_stores import HEIGHT, WIDTH, arrays
from helpers.shards import sample, write_tar

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.regions_info import read_info
from mmpretrain.data_tools import regions
from mmpretrain.data_tools.regions_store import on_picture
from mmpretrain.data_tools.stores import Record, matched, number_of, numeric, open_store

KEYS = {"img_0007": 1, "img_0008": 2, "img_0012": 3}


def h5_groups(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, number in KEYS.items():
            one = arrays(number)
            group = file.create_group(key)
            for name, value in (("features", one["features"]), ("boxes", one["boxes"]), ("obj_id", one["ids"]), ("obj_conf", one["conf"])):
                group[name] = value
            group["img_w"], group["img_h"] = WIDTH, HEIGHT
    return path


def h5_rows(path, adaptive: bool = False, listed: str = "pkl"):
    h5py = pytest.importorskip("h5py")
    found = [arrays(number) for number in KEYS.values()]
    with h5py.File(path, "w") as file:
        if adaptive:
            file["image_features"] = np.concatenate([one["features"] for one in found])
            file["image_bb"] = np.concatenate([one["boxes"] for one in found])
            file["pos_boxes"] = np.array([[3 * row, 3 * row + 3] for row in range(len(found))], dtype=np.int32)
        else:
            file["image_features"] = np.stack([one["features"] for one in found])
            file["image_bb"] = np.stack([one["boxes"] for one in found])
        if listed == "dataset":
            file["image_id"] = np.array([number_of(key) for key in KEYS], dtype=np.int64)
    numbers = {int(number_of(key)): row for row, key in enumerate(KEYS)}
    if listed == "pkl":
        path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(numbers, protocol=0))  # as Python 2 wrote it
    return path


STORES = {
    "butd": lambda folder: old_stores.butd(folder / "trainval_36.tsv", KEYS),
    "lxmert": lambda folder: old_stores.lxmert(folder / "val_obj36.tsv", KEYS),
    "vinvl": lambda folder: old_stores.vinvl(folder / "vinvl", KEYS),
    "vinvl, three columns, no lineidx": lambda folder: old_stores.vinvl(folder / "vinvl", KEYS, columns=3, lineidx=False),
    "vinvl, labels without rect": lambda folder: old_stores.vinvl(folder / "vinvl", KEYS, rect=False),
    "volta": lambda folder: old_stores.volta(folder / "v.lmdb", KEYS),
    "volta, protocol 2": lambda folder: old_stores.volta(folder / "v.lmdb", KEYS, protocol=2),
    "volta, protocol 5": lambda folder: old_stores.volta(folder / "v.lmdb", KEYS, protocol=5),
    "vilbert": lambda folder: old_stores.volta(folder / "v.lmdb", KEYS, text=True),
    "uniter": lambda folder: old_stores.uniter(folder / "u.lmdb", KEYS),
    "uniter, compressed": lambda folder: old_stores.uniter(folder / "u.lmdb", KEYS, compressed=True),
    "h5 groups": lambda folder: h5_groups(folder / "g.h5"),
    "h5 rows": lambda folder: h5_rows(folder / "train36.hdf5"),
    "h5 rows, ids in the file": lambda folder: h5_rows(folder / "train36.hdf5", listed="dataset"),
    "h5 adaptive": lambda folder: h5_rows(folder / "train.hdf5", adaptive=True),
}


def close(found, wanted, half: bool = True):
    np.testing.assert_allclose(found, wanted, rtol=2e-3 if half else 1e-6, atol=2e-2 if half else 1e-5)


@pytest.mark.parametrize("name", STORES)
def test_a_store_becomes_shards(name, tmp_path, capsys):
    pytest.importorskip("lmdb"), pytest.importorskip("msgpack")
    store = STORES[name](tmp_path)
    members = [member for number, key in enumerate([*KEYS, "img_0099"]) for member in sample(number, key=key)]
    write_tar(tmp_path / "shards" / "00000.tar", members)
    rule = "number" if "rows" in name or "adaptive" in name else "key"
    words = [str(tmp_path / "shards"), "--store", str(store), "--made-by", "a test", "--match", rule, "--out", str(tmp_path / "out")]
    assert regions.main([*words, "--workers", "1", "--quiet"]) == 0
    assert "1 samples got none" in capsys.readouterr().out
    reader = ShardReader([tmp_path / "out" / "00000.tar"])
    info = read_info(tmp_path / "out")
    assert (info.kind, info.width) == ("store", old_stores.F)
    for row, (key, number) in enumerate(KEYS.items()):
        kept, one = reader.read(row), arrays(number)
        found = decode_regions(kept.regions)
        assert kept.key == key and kept.captions and found.image_size.tolist() == [HEIGHT, WIDTH]
        close(found.features, one["features"])
        close(found.boxes, one["boxes"], half="uniter" in name)
        if "vinvl" in name:
            assert [info.classes[number] for number in found.classes] == [f"c{number}" for number in one["ids"]]
        elif found.classes is not None and found.class_probs is None:
            assert found.classes.tolist() == one["ids"].tolist()
        if found.class_probs is not None:
            close(found.class_probs, one["probs"])
            assert found.classes.tolist() == found.class_probs.argmax(1).tolist()
        if found.scores is not None:
            close(found.scores, one["conf"])
    assert reader.read(3).key == "img_0099" and reader.read(3).regions is None


def test_every_store_gives_what_its_system_keeps(tmp_path):
    pytest.importorskip("lmdb"), pytest.importorskip("msgpack")
    has = {"lxmert": "classes scores attributes", "volta": "classes scores", "vilbert": "class_probs", "uniter": "class_probs scores"}
    for name, wanted in has.items():
        store = open_store(STORES[name](tmp_path / name.replace(" ", "")) if (tmp_path / name).mkdir() is None else None)
        found = store.read(next(iter(store.locations().values())))
        kept = {field for field in ("classes", "class_probs", "scores", "attributes") if getattr(found, field) is not None}
        assert kept == set(wanted.split()), name


def test_boxes_follow_a_smaller_copy_of_the_picture():
    found = Record(np.zeros((1, 2)), np.array([[100.0, 50.0, 300.0, 150.0]]), False, (200, 400))
    assert on_picture(found, 50, 100).boxes.tolist() == [[25, 12.5, 75, 37.5]]
    assert on_picture(found, 50, 100, left=10).boxes.tolist() == [[35, 12.5, 85, 37.5]]
    with pytest.raises(BadSample, match=r"is of a picture of 200 x 400 .* --match"):
        on_picture(found, 100, 50)
    with pytest.raises(BadSample, match="lies outside"):
        on_picture(found._replace(size=None), 50, 100)


def test_two_pictures_of_a_sample_take_two_records(tmp_path):
    from helpers.shards import picture

    keys = {"pair-img0": 4, "pair-img1": 5}
    text = json.dumps({"statements": [{"text": "two", "label": True}]}).encode()
    write_tar(tmp_path / "in" / "0.tar", [("pair.img0.png", picture(0)), ("pair.img1.png", picture(1)), ("pair.json", text)])
    store = old_stores.butd(tmp_path / "s.tsv", keys)
    words = [str(tmp_path / "in"), "--store", str(store), "--made-by", "x", "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    assert regions.main(words) == 0
    found = decode_regions(ShardReader([tmp_path / "out" / "0.tar"]).read(0).regions)
    assert found.image_size.tolist() == [HEIGHT, 2 * WIDTH] and len(found.boxes) == 6
    close(found.boxes[3:], arrays(5)["boxes"] + np.array([WIDTH, 0, WIDTH, 0]), half=False)


def test_keys_are_matched_by_rules():
    assert number_of("COCO_val2014_000000020247.jpg") == "20247" and number_of("abc") is None
    assert matched(["a.npz", "b"], "key") == {"a": "a.npz", "b": "b"}
    with pytest.raises(DataError, match="are both '7'"):
        matched(["coco_007", "vg_7"], "number")


def test_an_unmatched_store_says_which_rule_would_match(tmp_path):
    store = old_stores.butd(tmp_path / "s.tsv", {"7": 1, "8": 2})
    write_tar(tmp_path / "in" / "0.tar", sample(0, key="coco_0007"))
    words = [str(tmp_path / "in"), "--store", str(store), "--made-by", "x", "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    with pytest.raises(DataError, match=r"by --match key; .*--match number finds 1 of 0.tar"):
        regions.main(words)


def test_a_damaged_first_record_is_named_with_its_sample(tmp_path):
    (tmp_path / "s.tsv").write_text("coco_0007\t24\t20\t3\tAAAA\tAAAA\n")
    write_tar(tmp_path / "in" / "0.tar", sample(0, key="coco_0007"))
    words = [str(tmp_path / "in"), "--store", str(tmp_path / "s.tsv"), "--made-by", "x", "--out", str(tmp_path / "out"), "--quiet"]
    with pytest.raises(DataError, match=r"s\.tsv: the record of sample 'coco_0007': 3 bytes of base64 are no numbers of 4 bytes$"):
        regions.main([*words, "--workers", "1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7\t24\t20\t3\tAAAA\tAAAA\n", "no numbers of 4 bytes"),
        ("7\t24\t20\t3\t!!!!\tAAAA\n", "no base64"),
        ("7\tx\t20\t3\tAAAA\tAAAA\n", "is no number"),
        ("7\t24\t20\t2\t" + old_stores.b64(arrays(1)["boxes"]) + "\t" + old_stores.b64(arrays(1)["features"]) + "\n", "num_boxes says 2"),
    ],
)
def test_damaged_rows_are_named(text, message, tmp_path):
    (tmp_path / "s.tsv").write_text(text)
    store = open_store(tmp_path / "s.tsv")
    with pytest.raises(BadSample, match=message):
        store.read(store.locations()["7"])


def test_a_stale_lineidx_is_found_out(tmp_path):
    folder = old_stores.vinvl(tmp_path / "v", KEYS)
    (folder / "features.lineidx").write_text("0\n17\n")
    with pytest.raises(DataError, match=r"no line of features\.tsv begins at 17"):
        open_store(folder).locations()


def test_what_is_no_store_says_so(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\tc\td\n")
    (tmp_path / "b.h5").write_bytes(b"no hdf5")
    (tmp_path / "c.bin").write_bytes(b"")
    for name, message in (
        ("a.tsv", "4 columns"),
        ("b.h5", "cannot be opened as HDF5"),
        ("c.bin", "no store of a known format"),
        ("d", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            open_store(tmp_path / name)


def test_links_of_hdf5_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    h5_groups(tmp_path / "real.h5")
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["img_0007"] = h5py.ExternalLink("real.h5", "/img_0007")
        file["soft"] = h5py.SoftLink("/img_0007")
    store = open_store(tmp_path / "links.h5")
    for name in ("img_0007", "soft"):
        with pytest.raises(BadSample, match="link to another place"):
            store.read(name)


def test_arrays_of_numbers_only():
    assert numeric(b"\0" * 8, "<f4", (2, 1)).shape == (2, 1)
    for kind, shape in (("O", (1,)), ("|V8", (1,)), ("U2", (1,)), ("<f4", (3,)), ("<f4", (-2, -1)), ("f4,f4", (1,))):
        with pytest.raises(BadSample):
            numeric(b"\0" * 8, kind, shape)


def test_no_flipped_byte_of_an_npz_is_more_than_a_bad_sample():
    from mmpretrain.data_tools.stores import npz

    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, features=np.arange(60, dtype=np.float32).reshape(6, 10), boxes=np.zeros((6, 4), dtype=np.float32))
        for at in range(len(buffer.getvalue())):
            damaged = bytearray(buffer.getvalue())
            damaged[at] ^= 1 << at % 8
            try:
                npz(bytes(damaged))
            except BadSample:
                continue


def test_a_bomb_in_an_npz_is_refused_before_it_is_inflated():
    from mmpretrain.data_tools.stores import npz

    buffer = io.BytesIO()
    np.savez_compressed(buffer, features=np.zeros((1 << 14, 1 << 11), dtype=np.float32))
    assert len(buffer.getvalue()) < 1 << 20
    with pytest.raises(BadSample, match="more than"):
        npz(buffer.getvalue())


def test_a_record_of_another_width_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(h5_groups(tmp_path / "g.h5"), "r+") as file:
        del file["img_0008/features"]
        file["img_0008/features"] = np.zeros((3, 2), dtype=np.float32)
    write_tar(tmp_path / "in" / "0.tar", [member for number, key in enumerate(KEYS) for member in sample(number, key=key)])
    words = [str(tmp_path / "in"), "--store", str(tmp_path / "g.h5"), "--made-by", "x", "--out", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(DataError, match=r"'img_0008': the record has \{'features': 2\} values a region, the first one \{'features': 6\}"):
        regions.main(words)


def test_rows_that_are_not_there(tmp_path):
    h5py = pytest.importorskip("h5py")
    for adaptive in (False, True):
        path = h5_rows(tmp_path / f"{adaptive}.hdf5", adaptive)
        with h5py.File(path, "r+") as file:  # a copy that was cut short
            values = file["image_features"][()]
            del file["image_features"]
            file["image_features"] = values[:-1]
        store = open_store(path)
        with pytest.raises(BadSample, match=r"image_features has \d rows, and none of number"):
            store.read(store.locations()["12"])


def test_names_and_the_background(tmp_path):
    """Features of 1600 classes come with 1601 probabilities, the background first: here four names and five columns."""
    pytest.importorskip("lmdb"), pytest.importorskip("msgpack")
    write_tar(tmp_path / "in" / "0.tar", sample(0, key="img_0007"))
    store = old_stores.uniter(tmp_path / "u.lmdb", KEYS)
    (tmp_path / "c.txt").write_text("one\ntwo\nthree\nfour\n")
    words = [
        str(tmp_path / "in"),
        "--store",
        str(store),
        "--made-by",
        "x",
        "--classes",
        str(tmp_path / "c.txt"),
        "--workers",
        "1",
        "--quiet",
    ]
    assert regions.main([*words, "--out", str(tmp_path / "out")]) == 0
    info, found = read_info(tmp_path / "out"), decode_regions(ShardReader([tmp_path / "out" / "0.tar"]).read(0).regions)
    assert info.background == 0 and info.classes == ("background", "one", "two", "three", "four")
    assert found.classes.tolist() == (found.class_probs[:, 1:].argmax(1) + 1).tolist()
    one = Record(np.zeros((2, 1)), np.zeros((2, 4)), False, None, np.array([1, -1]), np.array([[0.1, 0.2, 0.7], [0.2, 0.4, 0.4]]))
    assert on_picture(one, 9, 9, background=0).classes.tolist() == [2, -1]  # counted without the background, as LXMERT counts
    assert on_picture(one._replace(classes=np.array([2, 1])), 9, 9, background=0).classes.tolist() == [2, 1]
    (tmp_path / "c.txt").write_text("one\n")
    with pytest.raises(DataError, match="--classes has 1 names, but the records have 5"):
        regions.main([*words, "--out", str(tmp_path / "no")])
