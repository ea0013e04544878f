"""Stores of region features in the layouts that older systems wrote, tiny. Pickles are written here and read by our own reader."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 20, 24  # of helpers.shards.picture
F, C = 6, 5


def arrays(number: int, count: int = 3) -> dict[str, np.ndarray]:
    """Features and boxes of an image, different for each number."""
    rng = np.random.default_rng(number)
    corners = rng.uniform(0, 0.5, size=(count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 0.4], 1) * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float32)
    return {
        "features": rng.normal(size=(count, F)).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "ids": rng.integers(0, C, size=count),
        "conf": rng.uniform(size=count).astype(np.float32),
        "probs": rng.dirichlet(np.ones(C), size=count).astype(np.float32),
    }


def b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def butd(path: Path, keys: Mapping[str, int]) -> Path:
    """Six columns: image_id image_w image_h num_boxes boxes features."""
    rows = []
    for key, number in keys.items():
        one = arrays(number)
        rows.append([key, str(WIDTH), str(HEIGHT), str(len(one["boxes"])), b64(one["boxes"]), b64(one["features"])])
    path.write_text("".join("\t".join(row) + "\r\n" for row in rows))  # csv.DictWriter ends lines so
    return path


def lxmert(path: Path, keys: Mapping[str, int]) -> Path:
    """Ten columns."""
    lines = []
    for key, number in keys.items():
        one = arrays(number)
        ids, conf = b64(one["ids"].astype(np.int64)), b64(one["conf"])
        head = [key, str(HEIGHT), str(WIDTH), ids, conf, ids, conf, str(len(one["boxes"]))]
        lines.append("\t".join([*head, b64(one["boxes"]), b64(one["features"])]))
    path.write_text("\n".join(lines) + "\n")
    return path


def vinvl(folder: Path, keys: Mapping[str, int], columns: int = 2, rect: bool = True, lineidx: bool = True) -> Path:
    """features.tsv (features end in the place of the box), predictions.tsv and .lineidx."""
    folder.mkdir(parents=True, exist_ok=True)
    features, labels = [], []
    for key, number in keys.items():
        one = arrays(number)
        parts = one["boxes"] / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float32)
        whole = np.concatenate([one["features"], parts, parts[:, 2:] - parts[:, :2]], 1).astype(np.float32)
        row = [json.dumps({"num_boxes": 3, "features": b64(whole)})] if columns == 2 else ["3", b64(whole)]
        features.append("\t".join([key, *row]))
        objects = [{"class": f"c{i}", "conf": float(c)} | ({"rect": box.tolist()} if rect else {}) for i, c, box in _rows(one)]
        labels.append(f"{key}\t{json.dumps({'image_h': HEIGHT, 'image_w': WIDTH, 'objects': objects})}")
    for name, lines in (("features", features), ("predictions", labels)):
        text = "".join(line + "\n" for line in lines)
        (folder / f"{name}.tsv").write_text(text)
        offsets = np.cumsum([0, *(len(line.encode()) + 1 for line in lines[:-1])])
        if lineidx:
            (folder / f"{name}.lineidx").write_text("".join(f"{at}\n" for at in offsets))
    return folder


def _rows(one: Mapping[str, np.ndarray]) -> Any:
    return zip(one["ids"], one["conf"], one["boxes"], strict=True)


def volta(path: Path, keys: Mapping[str, int], protocol: int = 4, text: bool = False) -> Path:
    """LMDB with values in pickle: arrays (VOLTA) or base64 (ViLBERT), and a pickled list of keys."""
    entries = {}
    for key, number in keys.items():
        one = arrays(number)
        value: dict[str, Any] = {"img_id": key, "img_h": np.int64(HEIGHT), "img_w": np.int64(WIDTH)}
        if text:
            value |= {
                "boxes": b64(one["boxes"]).encode(),
                "features": b64(one["features"]).encode(),
                "cls_prob": b64(one["probs"]).encode(),
            }
        else:
            value |= {"boxes": one["boxes"], "features": one["features"], "obj_id": one["ids"], "obj_conf": one["conf"]}
        entries[key.encode()] = pickle.dumps(value, protocol=protocol)
    return write_lmdb(path, {**entries, b"keys": pickle.dumps([key.encode() for key in keys], protocol=protocol)})


def uniter(path: Path, keys: Mapping[str, int], compressed: bool = False) -> Path:
    """LMDB with msgpack (arrays as msgpack_numpy writes them) or npz; half precision, boxes as parts of the sides."""
    entries = {}
    for key, number in keys.items():
        one = arrays(number)
        parts = one["boxes"] / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float32)
        norm = np.concatenate([parts, parts[:, 2:] - parts[:, :2]], 1)
        value = {"norm_bb": norm, "features": one["features"], "conf": one["conf"], "soft_labels": one["probs"]}
        half = {name: array.astype(np.float16) for name, array in value.items()}
        entries[f"{key}.npz".encode()] = npz(half) if compressed else msgpack_numpy(half)
    return write_lmdb(path, {**entries, b"__keys__": json.dumps([f"{key}.npz" for key in keys]).encode()})


def npz(values: Mapping[str, Any]) -> bytes:
    """As UNITER's script writes it: an older numpy kept its argument ``allow_pickle`` as an array."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**values, "allow_pickle": np.array(True)} if "allow_pickle" not in values else values)
    return buffer.getvalue()


def msgpack_numpy(values: Mapping[str, np.ndarray]) -> bytes:
    """The layout of msgpack_numpy 0.4: nd, type, kind, shape, data, with keys in bytes."""
    import msgpack

    def encoded(array: np.ndarray) -> dict[bytes, Any]:
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}

    return msgpack.packb({name: encoded(array) for name, array in values.items()}, use_bin_type=True)


def write_lmdb(path: Path, entries: Mapping[bytes, bytes]) -> Path:
    import lmdb

    path.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 22) as env, env.begin(write=True) as txn:
        for key, value in entries.items():
            txn.put(key, value)
    return path
