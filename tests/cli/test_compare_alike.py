"""``compare`` beyond the first recipe's own data: what follows from other sources, texts and steps, and all twelve systems over regions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import scene_regions

from mmpretrain.cli import compare, compare_alike, compare_plan, compare_run
from mmpretrain.cli.errors import UserError
from mmpretrain.cli.main import main


def options(*words: str) -> tuple:
    made = compare.parser()
    ours, theirs = compare._split(made, list(words))
    return made.parse_intermixed_args(ours), compare._forwarded(made, theirs)


def recipe(label: str, data: dict, objectives: dict, phases: list | None = None, steps: int = 8, **model: object) -> compare_plan.Recipe:
    parts = {"system": {"class_path": label}, "objectives": objectives, **({"phases": phases} if phases else {}), **model}
    config = {"model": parts, "data": data, "trainer": {"max_steps": steps}}
    return compare_plan.Recipe(label, config, copy.deepcopy(config))


def reads(*sources: str) -> dict:
    return {"class_path": "o", "init_args": {"weight": 2, **({"sources": list(sources)} if sources else {})}}


def on_the_first(*recipes: compare_plan.Recipe) -> list[compare_plan.Recipe]:
    return [compare_alike.settled(one) for one in compare_alike.alike(recipes, False)]


TEXTS = {"pairs": {"sources": "p", "weight": 1}, "texts": {"sources": "t", "reads": "texts"}}


def test_sources_of_texts_alone_and_what_reads_them_are_left_out() -> None:
    first = recipe("first", {"train": "x", "mix": "sample"}, {"mlm": reads()})
    phases = [{"until": 4, "set": {"text_mlm.weight": 0.0, "mlm.weight": 1.0}}, {"set": {}}]
    objectives = {"mlm": reads("pairs"), "both": reads("pairs", "texts"), "text_mlm": reads("texts")}
    texts = recipe("texts", {"train": TEXTS, "mix": "batch", "show": "regions"}, objectives, phases, task_weights={"mlm": 1, "text_mlm": 1})
    _, found = on_the_first(first, texts)
    assert found.config["data"] == {"train": "x", "mix": "sample", "show": "regions"}
    model = found.config["model"]
    assert model["objectives"] == {"mlm": reads(), "both": reads()} and model["task_weights"] == {"mlm": 1}
    assert model["phases"] == [{"until": 4, "set": {"mlm.weight": 1.0}}, {"set": {}}]
    assert found.notes == ("text_mlm is left out: it reads texts alone, which these data do not have",)
    assert texts.config == texts.own  # what was resolved is left alone
    mine, other = on_the_first(texts, first)
    assert mine.config["data"]["train"] == other.config["data"]["train"] == {"pairs": TEXTS["pairs"]}
    assert mine.config["model"]["objectives"] == {"mlm": reads("pairs"), "both": reads("pairs")} and mine.notes and not other.notes
    stages = recipe("stages", {"train": {"web": {"sources": "a"}, "clean": {"sources": "b"}}}, {"mlm": reads("web")})
    assert on_the_first(stages, first)[0].config["model"]["objectives"] == {"mlm": reads("web")}
    assert on_the_first(first, stages)[1].config["model"]["objectives"] == {"mlm": reads()}
    typed = texts._replace(config={**texts.config, "data": {"train": "y"}})  # other data without --alike
    assert list(compare_alike.settled(typed).config["model"]["objectives"]) == ["mlm", "both"]
    assert compare_alike.settled(texts).config == texts.config and not compare_alike.settled(texts).notes
    for recipes, message in (
        ([recipe("alone", {"train": {"t": {"reads": "texts"}}}, {"mlm": reads()}), first], "alone stands first and has no source of pairs"),
        ([first, recipe("alone", {"train": TEXTS}, {"mlm": reads("texts")})], "no objective of alone reads pairs; leave the recipe out"),
    ):
        with pytest.raises(UserError, match=message):
            on_the_first(*recipes)


def test_questions_rest_where_none_are_told() -> None:
    first = recipe("first", {"train": "x"}, {"mlm": reads()})
    asks = recipe("asks", {"train": "x", "text_from": "captions+questions", "answers": {"most": 3}}, {"vqa": reads()})
    found = on_the_first(first, asks)[1]
    assert found.config["data"] == {"train": "x", "answers": None}
    assert found.notes == ("no questions are asked: texts are captions here",)
    assert not on_the_first(asks, first)[0].notes
    assert on_the_first(asks, first)[1].config["data"]["text_from"] == "captions+questions"
    typed = asks._replace(config={**asks.config, "data": {"train": "y", "text_from": "statements", "answers": {"most": 3}}})
    assert compare_alike.settled(typed).notes == ("no questions are asked: texts are statements here",)


def test_phases_end_at_their_part_of_the_run() -> None:
    ramp = {"from": 1, "to": 2, "over": 100}
    phases = [{"until": 400, "set": {"a.weight": 0.0, "model.t": ramp}}, {"until": 600, "set": {}}, {"set": {"a.weight": 1.0}}]
    own = recipe("own", {}, {"a": reads()}, phases, steps=800)
    assert compare_alike.settled(own) == own
    for steps, ends, over in ((200, [100, 150], 25), (3, [2, 3], 1), (1, [1, 2], 1)):
        found = compare_alike.settled(own._replace(config={**own.config, "trainer": {"max_steps": steps}}))
        rows = found.config["model"]["phases"]
        assert [row.get("until") for row in rows] == [*ends, None] and rows[0]["set"]["model.t"]["over"] == over
        assert found.notes == (f"its phases end after {ends[0]}, {ends[1]} of {steps} steps, as in its own 800",)
    assert own.config["model"]["phases"][0]["until"] == 400
    typed = {"trainer.max_steps": 80, "model.phases": "[{until: 5, set: {itm.weight: 2.0}}]"}
    for options, until in (({"trainer.max_steps": 80}, 40), (typed, 5)):
        villa = compare_alike.settled(compare_plan.resolve(["villa", "vilt"], [], options, None)[0])
        assert villa.config["model"]["phases"][0]["until"] == until


TWELVE = (
    "vilbert",
    "lxmert",
    "uniter",
    "visualbert",
    "vlbert",
    "unicoder-vl",
    "imagebert",
    "pixelbert",
    "oscar",
    "interbert",
    "villa",
    "ernie-vil",
)


def test_what_the_twelve_systems_over_regions_differ_in() -> None:
    known, typed = options(*TWELVE, "--alike", "--steps", "600")
    jobs, apart = compare._jobs(known, typed)
    assert [job.recipe.label for job in jobs] == list(TWELVE) and all(one.own for one in apart)
    notes = {job.recipe.label: job.recipe.notes for job in jobs if job.recipe.notes}
    assert set(notes) == {"lxmert", "vlbert", "villa"} and len(notes["lxmert"]) == 2
    configs = {job.recipe.label: job.recipe.config for job in jobs}
    assert {str(config["data"]["train"]) for config in configs.values()} == {"scenes?regions=128"}
    assert list(configs["vlbert"]["model"]["objectives"]) == ["mlm", "mrc"] and configs["villa"]["model"]["phases"][0]["until"] == 300
    assert {label for label, config in configs.items() if config["data"].get("show") != "regions"} == {"pixelbert"}


SMALL = ["--data.workers", "0", "--data.text.vocab_size", "200", "--loggers", "[]", "--measure.samples", "4", "--panels.samples", "2"]
SMALL += ["--trainer.val_check_interval", "1", "--trainer.log_every_n_steps", "1", "--data.val_batch_size", "4"]


@pytest.mark.slow
def test_the_twelve_are_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command does it, but in one process and on a few scenes."""
    for split, count in (("train", 16), ("val", 8)):
        scene_regions.write(tmp_path / "few" / split, count, split)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    folders = (str(tmp_path / "few" / split / "regions") for split in ("train", "val"))
    sources = ["--data.train", next(folders), "--data.val", json.dumps({"few": next(folders)})]
    words = [*TWELVE, "--alike", "--steps", "1", "--batch", "4", "--limit", "4", "--out", str(tmp_path / "out"), *sources, *SMALL]

    def here(command: Sequence[str], folder: Path, look: Callable[[], None]) -> str | None:
        monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(folder))
        return None if main(list(command)) == 0 else " ".join(command)

    monkeypatch.setattr(compare_run, "_command", here)
    assert main(["compare", *words]) == 0
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["systems"] == list(TWELVE) and set(told["facts"]["parameters"]) == set(TWELVE)
    assert any("vlbert: text_mlm is left out" in note for note in told["notes"])
    measured = {line["name"]: set(line["systems"]) for line in told["measurements"]}
    assert set.union(*measured.values()) == set(TWELVE)
