"""A synthetic run directory with every part, hostile strings included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmpretrain.report import panels_schema as schema

HOSTILE = "</script><script>document.title='owned'</script> & \"quotes\" <img src=x onerror=alert(1)>"
COLOURS = {"red": (210, 60, 50), "blue": (50, 90, 200), "green": (40, 150, 90), "yellow": (230, 190, 40), "purple": (130, 70, 170)}
SHAPES = ("circle", "square", "triangle")


def write_run(path: Path, steps: int = 400, panels: tuple[int, ...] = (100, 200, 400), finished: bool = True) -> Path:
    """``path`` as a run directory of ``steps`` steps with panels at the given ones."""
    path.mkdir(parents=True)
    _metrics(path / "metrics.jsonl", steps)
    config = "# resolved\nmodel:\n  class_path: mmpretrain.models.vilt.ViLT\ntrainer:\n"
    (path / "config.yaml").write_text(f"{config}  max_steps: {steps}\nnote: {HOSTILE!r}\n")
    environment = {
        "command": ["/usr/lib/mmpretrain/__main__.py", "fit", "--config", "vilt.yaml", "--trainer.max_steps", str(steps)],
        "started": "2026-01-01T12:00:00+00:00",
        "versions": {"mmpretrain": "0.1.0", "torch": "2.15.0", "lightning": "2.6.6", "python": "3.11.9"},
        "machine": {"cpu": "Example CPU", "cores": 2, "memory_gib": 16, "accelerator": None},
        "hostile": HOSTILE,
    }
    (path / "environment.json").write_text(json.dumps(environment))
    if finished:
        (path / "result.json").write_text(json.dumps(_result()))
    for step in panels:
        _panels(path / "panels", step)
    return path


def _metrics(file: Path, steps: int) -> None:
    rng, lines = np.random.default_rng(0), []
    for step in range(1, steps + 1):
        down = math.exp(-step / 120)
        record = {"step": step, "epoch": step // 100, "time": 1.8e9 + 0.7 * step}
        record |= {"train/mlm/loss": 1.2 + 4 * down, "train/itm/loss": 0.4 + 0.3 * down, "train/wpa/loss": 0.08 + 0.2 * down}
        record |= {"train/mlm/accuracy": 0.65 - 0.6 * down, "train/itm/accuracy": 0.85 - 0.35 * down, "train/grad_norm": 1 + 3 * down}
        record |= {"speed/samples_per_s": 88.0, "speed/tokens_per_s": 3100.0, "data/wait_share": 0.02, "memory/rss_gib": 1.4}
        record = {k: v * float(1 + 0.12 * rng.standard_normal()) if "/" in k else v for k, v in record.items()}
        record["train/loss"] = sum(v for k, v in record.items() if k.endswith("/loss"))
        record["train/lr"] = 1e-4 * min(step / 40, 1 - step / (steps + 1))
        lines.append(json.dumps(record))
        if step % max(1, steps // 4) == 0:
            val = {"val/mlm/loss": 1.3 + 4 * down, "val/mlm/accuracy": 0.62 - 0.6 * down, "val/itm/accuracy": 0.83 - 0.33 * down}
            for direction in ("i2t", "t2i"):
                val |= {f"val/retrieval/scenes/{direction}_R@{k}": min(1.0, k * (0.09 - 0.08 * down)) for k in (1, 5, 10)}
            lines.append(json.dumps({"step": step, "epoch": step // 100, "time": 1.8e9 + 0.7 * step + 0.5} | val))
    lines.append('{"step": 401, "epoch": 4, "time": 18000')  # the process was killed here
    file.write_text("\n".join(lines))


def _result() -> dict:
    stamp = "scenes val 5f3a9c, 256 images x 5 captions, raw weights, fp32"
    pairs = "scenes val 5f3a9c, one negative a sample, fp32, 256"
    rows = [{"name": f"{d}_R@{k}", "value": k * 0.09, "chance": k / 256, "stamp": stamp} for d in ("i2t", "t2i") for k in (1, 5, 10)]
    rows += [{"name": "ITM accuracy, random negatives", "value": 0.861, "chance": 0.5, "stamp": pairs}]
    rows += [{"name": "ITM accuracy, minimal edits", "value": 0.563, "chance": 0.5, "stamp": pairs}]
    rows += [{"name": "MLM accuracy", "value": 0.632, "chance": 0.04, "stamp": "scenes val 5f3a9c, 15 % masked, fp32, 1840 tokens"}]
    rows += [{"name": "samples/s", "value": 88.2}, {"name": "share of time waiting for data", "value": 0.021}]
    return {"rows": rows, "checkpoint": "checkpoints/last.ckpt", "wandb": "wandb/offline-run-1 " + HOSTILE}


def _scene(seed: int) -> tuple[Image.Image, str, int, int]:
    rng = np.random.default_rng(seed)
    colour, shape = list(COLOURS)[int(rng.integers(5))], SHAPES[int(rng.integers(3))]
    picture, x, y = Image.new("RGB", (128, 128), (235, 232, 225)), int(rng.integers(10, 70)), int(rng.integers(10, 70))
    draw, box = ImageDraw.Draw(picture), (x, y, x + 45, y + 45)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(x, y + 45), (x + 45, y + 45), (x + 22, y)], fill=COLOURS[colour])
    return picture, f"a small {colour} {shape} on a pale table", (x + 22) // 16, (y + 22) // 16


def _hidden() -> tuple[schema.HiddenRegion, ...]:
    """One that is right, one that is wrong, one without a class."""
    guesses = (schema.Guess("circle", 0.7), schema.Guess("square", 0.2), schema.Guess(HOSTILE, 0.1))
    return tuple(schema.HiddenRegion((0.1, 0.2, 0.5, 0.75), truth, guesses) for truth in ("circle", "square", ""))


def _panels(folder: Path, step: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / str(step)).mkdir()
    scenes = [_scene(i) for i in range(12)]
    names = []
    for i, (picture, *_) in enumerate(scenes):
        picture.save(folder / "images" / f"s{i}.png")
        names.append(f"../images/s{i}.png")
    texts = [text for _, text, *_ in scenes]
    texts[0] += " " + HOSTILE
    good = step >= 200
    t2i, i2t = [], []
    for q in range(6):
        right = 0 if good and q % 2 == 0 else q % 7
        order = [(q + 1 + k) % 12 for k in range(5)]
        if right < 5:
            order[right] = q
        hits = tuple(schema.Hit(i == q, 3.0 - k, texts[i], names[i]) for k, i in enumerate(order))
        t2i.append(schema.Query(hits, right + 1, text=texts[q]))
        i2t.append(schema.Query(tuple(hit._replace(image=None) for hit in hits), right + 1, image=names[q]))
    masked = []
    for i in range(6):
        words = texts[i].split()
        wrong, late = schema.Guess("cube", 0.41), schema.Guess(words[3], 0.2)
        hidden = {2: (schema.Guess(words[2], 0.83 if good else 0.31), wrong), 3: (wrong, late, schema.Guess("ball", 0.1))}
        masked.append(schema.MaskedExample(tuple(schema.Word(w, hidden.get(j, ())) for j, w in enumerate(words)), names[i]))
    maps = []
    for i in range(4):
        _, text, cx, cy = scenes[i]
        grid = lambda s, cx=cx, cy=cy: tuple(tuple(math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / s) for x in range(8)) for y in range(8))
        words = tuple(schema.WordMap(w, grid(3 if w in text.split()[2:4] else 60), 0.31) for w in text.split())
        maps.append(schema.AlignmentExample(names[i], text, words))
    bodies = {
        "retrieval": schema.RetrievalPanel(tuple(t2i), tuple(i2t), 12, 12, "itm"),
        "masked": schema.MaskedPanel(tuple(masked)),
        "alignment": schema.AlignmentPanel(tuple(maps)),
        "regions": schema.RegionsPanel((schema.RegionsExample(names[0], _hidden(), texts[0]), schema.RegionsExample(names[1], _hidden()))),
    }
    for kind, body in bodies.items():
        (folder / str(step) / f"{kind}.json").write_text(schema.dumps(schema.Panel(kind, step, body)))
