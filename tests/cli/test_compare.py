"""``compare``: what is run and where recipes differ, without training; then two recipes on a few scenes, two steps each."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmpretrain.cli import compare, compare_alike, compare_plan, compare_result, compare_run
from mmpretrain.cli.errors import UserError
from mmpretrain.cli.main import main
from mmpretrain.data_tools import scenes
from mmpretrain.report.run import Series


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def recipes(tmp_path: Path) -> list[str]:
    found = []
    for name, width, lr, train, batch, words, key in (("one", 1, 0.1, "x", 4, 9, "a"), ("two", 2, 0.2, "y", 8, 5, "b")):
        system = {"class_path": "a.B", "init_args": {"width": width}}
        model = {"system": system, "optimizer": {"lr": lr}, "objectives": {"mlm": {"class_path": "m"}}}
        data = {"train": train, "batch_size": batch, "text": {"vocab_size": words}}
        config = {"model": model, "data": data, "trainer": {"max_steps": 7, key: width}}
        found.append(write(tmp_path, f"{name}.yaml", yaml.safe_dump(config)))
    return found


def options(*words: str) -> tuple:
    made = compare.parser()
    ours, theirs = compare._split(made, list(words))
    return made.parse_intermixed_args(ours), compare._forwarded(made, theirs)


def test_options_of_fit_stand_anywhere() -> None:
    for words in (
        ["vilt", "clip", "--steps", "3", "--data.workers", "0"],
        ["--data.workers", "0", "vilt", "--steps", "3", "clip"],
        ["--data.workers=0", "vilt", "clip", "--steps=3"],
        ["--systems", "vilt,clip", "--data.workers", "0", "--steps", "3"],
    ):
        known, typed = options(*words)
        wanted = known.systems.split(",") if known.systems else known.recipes
        assert wanted == ["vilt", "clip"] and known.steps == 3 and typed == {"data.workers": "0"}
    known, typed = options("vilt", "clip", "--data", "val=scenes:val", "--trainer.fast_dev_run", "--loggers", "[]")
    assert known.data == ["val=scenes:val"] and typed == {"trainer.fast_dev_run": None, "loggers": "[]"}


def test_what_is_run(recipes: list[str], tmp_path: Path) -> None:
    common = write(tmp_path, "common.yaml", "data: {workers: 3}\n")
    out = str(tmp_path / "out")
    words = ["--config", common, "--seeds", "0,2", "--steps", "5", "--data.prefetch", "1", "--out", out, "--limit", "9"]
    known, typed = options(*recipes, *words)
    jobs, apart = compare._jobs(known, typed)
    assert [job.name for job in jobs] == ["one, seed 0", "two, seed 0", "one, seed 2", "two, seed 2"]
    assert all(job.recipe.config["trainer"]["max_steps"] == 5 and job.recipe.config["data"]["prefetch"] == 1 for job in jobs)
    assert jobs[0].recipe.config["data"]["workers"] == 3
    fit = ["fit", "--config", str(jobs[1].config), "--seed_everything", "0", "--ckpt_path", "last", "--final.measure", "false"]
    assert jobs[1].fit() == fit
    assert jobs[3].evaluate()[1:6] == [str(tmp_path / "out" / "runs" / "two-seed2"), "--limit", "9", "--captions", "1"]
    told = {one.key: (one.own, dict(one.values)) for one in apart}
    assert told["data.batch_size"] == (False, {"one": 4, "two": 8}) and told["trainer.a"] == (False, {"one": 1, "two": "(not set)"})
    assert told["model.optimizer.lr"][0] and told["data.text.vocab_size"][0]
    assert not any(key.startswith(("model.system", "model.objectives", "trainer.max_steps")) for key in told)
    assert next(one for one in apart if one.key == "data.batch_size").shown() == "data.batch_size: 4 (one); 8 (two)"


@pytest.mark.parametrize("training", [False, True])
def test_alike_takes_everything_but_the_system_from_the_first(recipes: list[str], training: bool) -> None:
    first, second = compare_alike.alike(compare_plan.resolve(recipes, [], {}, None), training)
    assert second.config["data"] == {"train": "x", "batch_size": 4, "text": {"vocab_size": 5}}
    assert second.config["trainer"] == first.config["trainer"] == {"max_steps": 7, "a": 1}
    assert second.config["model"]["system"]["init_args"] == {"width": 2} and second.config["model"]["objectives"]
    assert second.config["model"]["optimizer"] == {"lr": 0.1 if training else 0.2}
    left = [one.key for one in compare_plan.differences([first, second])]
    assert left == (["data.text.vocab_size"] if training else ["data.text.vocab_size", "model.optimizer.lr"])


def test_sizes_and_options_as_fit_reads_them() -> None:
    (small, _) = compare_plan.resolve(["vilt.yaml", "clip.yaml"], [], {}, "tiny")
    assert small.config == compare_plan.resolve(["vilt.yaml", "clip.yaml"], [], {}, None)[0].config
    typed = {"model.optimizer.lr": "1e-5", "model.objectives.mlm.prob": "0.3"}
    base, other = compare_plan.resolve(["vilt", "vilt-long"], [], typed, "base")
    args = base.config["model"]["system"]["init_args"]
    assert args["blocks"]["init_args"]["width"] == 768 and (base.label, other.label) == ("vilt", "vilt-long")
    assert base.config["model"]["optimizer"]["lr"] == 1e-5 and base.config["model"]["objectives"]["mlm"]["init_args"]["prob"] == 0.3
    assert [one.label for one in compare_plan.resolve(["vilt-long", "vilt", "vilt.yaml"], [], {}, None)] == ["vilt-long", "vilt", "vilt-2"]
    with pytest.raises(UserError, match=r"there is no sizes/clip-base\.yaml; sizes of clip are .*vit-b-32"):
        compare_plan.resolve(["vilt", "clip"], [], {}, "base")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vilt"], "compare needs two recipes or more"),
        (["vilt", "clpi"], "there is no file 'clpi'.*Did you mean 'clip.yaml'"),
        (["vilt", "data/scenes.yaml"], "no recipe, because it names no model.system"),
        (["vilt", "clip", "--seeds", "a"], "--seeds a: whole numbers"),
        (["vilt", "clip", "--seed_everything", "3"], "--seed_everything: give --seeds to compare"),
        (["vilt", "clip", "--trainer.default_root_dir", "x"], "--trainer.default_root_dir: give --out to compare"),
        (["vilt", "clip", "--step", "3"], "unknown option '--step'. Did you mean '--steps'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_options_is_refused(recipes: list[str], tmp_path: Path) -> None:
    known, typed = options(*recipes, "--out", str(tmp_path / "out"))
    job = compare._jobs(known, typed)[0][0]
    compare_run.check(job, False)  # nothing there
    job.folder.mkdir(parents=True)
    with pytest.raises(UserError, match="there already, and not of a comparison"):
        compare_run.check(job, True)
    compare_run._save(job, trained=True, measured=list(job.measured))
    compare_run.check(job, False)
    assert not compare_run.finished(job)
    (job.folder / "evaluation.json").write_text("{}")
    assert compare_run.finished(job) and not compare_run.finished(job._replace(measured=("--limit", "1")))
    other = job._replace(recipe=job.recipe._replace(config={**job.recipe.config, "trainer": {"max_steps": 9}}))
    with pytest.raises(UserError, match=r"with other options \(trainer.max_steps: 7 there, 9 here\); choose another --out, or --restart"):
        compare_run.check(other, False)
    compare_run.check(other, True)
    assert not job.folder.exists()


def test_curves_are_means_over_seeds(recipes: list[str], tmp_path: Path) -> None:
    known, typed = options(*recipes, "--seeds", "0,1", "--out", str(tmp_path / "out"))
    jobs, _ = compare._jobs(known, typed)
    series = lambda *values: Series(tuple(range(1, 1 + len(values))), (0.0,) * len(values), values)
    runs = [(jobs[0], {"a": series(1.0, 2.0), "b": series(1.0)}), (jobs[2], {"a": series(3.0, 4.0, 5.0)})]
    assert compare_result.history(runs) == {"one": {"a": Series((1, 2), (0.0, 0.0), (2.0, 3.0))}}


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


def test_a_line_names_the_few() -> None:
    values = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 3, "f": 1}
    assert compare_plan.Difference("data.x", values).shown() == "data.x: 2 (b); 3 (e); 1 (the others)"
    assert compare_plan.Difference("data.x", {"a": 1, "b": 2, "c": 1}).shown() == "data.x: 1 (a, c); 2 (b)"


SMALL = ["--data.workers", "0", "--data.text.vocab_size", "200", "--loggers", "[]", "--measure.samples", "4", "--panels.samples", "2"]
SMALL += ["--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--data.val_batch_size", "4"]


@pytest.mark.slow
def test_two_recipes_from_the_command_to_the_page(tmp_path: Path) -> None:
    for split, count in (("train", 16), ("val", 8)):
        scenes.write(tmp_path / "few" / split, count, 0, split, shard_size=8, progress=False)
    sources = ["--data.train", str(tmp_path / "few" / "train"), "--data.val", json.dumps({"few": str(tmp_path / "few" / "val")})]
    words = ["compare", "vilt.yaml", "clip.yaml", "--steps", "2", "--batch", "4", "--limit", "4", "--out", "out", *sources, *SMALL]
    run = lambda *more: subprocess.run(
        [sys.executable, "-m", "mmpretrain_cli_entry", *words, *more], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    done = run()
    assert done.returncode == 0, done.stderr
    assert "warning: the recipes differ in more than the system; --alike takes them all from the first recipe" in done.stderr
    assert "not alike: trainer.gradient_clip_val: 1.0 (vilt); (not set) (clip)" in done.stderr
    assert "each recipe has its own model.optimizer, model.schedule, data.image" in done.stderr
    out = tmp_path / "out"
    told = json.loads((out / "comparison.json").read_text())
    assert told["systems"] == ["vilt", "clip"] and told["facts"]["parameters"]["vilt"]["mean"] == 324_130
    assert {name: told["facts"]["samples seen"][name]["mean"] for name in told["systems"]} == {"vilt": 8, "clip": 8}
    recall = next(line for line in told["measurements"] if line["name"] == "retrieval/few/i2t_R@1")
    assert recall["comparable"] and set(recall["systems"]) == {"vilt", "clip"} and recall["chance"] == 0.25
    assert "4 images, 4 captions" in recall["protocols"]["vilt"] and "4 images, 4 captions" in recall["protocols"]["clip"]
    assert "| retrieval/few/i2t_R@1 | 25.0 % |" in (out / "comparison.md").read_text()
    page = (out / "comparison.html").read_text()
    assert page.count("<svg") == 1 and "http" not in re.sub(r'xmlns="[^"]+"', "", page.split("<body>")[1].split("<script>")[0])
    assert yaml.safe_load((out / "configs" / "clip.yaml").read_text())["data"]["batch_size"] == 4
    again = run("--seeds", "0")
    assert again.returncode == 0 and again.stderr.count("finished before") == 2
