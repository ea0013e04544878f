"""``compare``: what is run and where recipes differ, without training; then two recipes on a few scenes, two steps each."""

from __future__ import annotations

import io
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
from mmpretrain.report import comparison
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
        (["vilt", "clip", "--seeds", "0,-1"], "--seeds 0,-1: a seed is a number from 0 to 4294967295, not -1"),
        (["vilt", "clip", "--alike", "--steps", "-3"], "argument --steps: at least 1, not -3"),
        (["vilt", "clip", "--steps=0"], "argument --steps: at least 1, not 0"),
        (["vilt", "clip", "--batch", "0"], "argument --batch: at least 1, not 0"),
        (["vilt", "clip", "--limit", "-3"], "argument --limit: at least 1, not -3"),
        (["vilt", "clip", "--limit", "few"], "argument --limit: a whole number, not 'few'"),
        (["vilt", "clip", "--seed_everything", "3"], "--seed_everything: give --seeds to compare"),
        (["vilt", "clip", "--trainer.default_root_dir", "x"], "--trainer.default_root_dir: give --out to compare"),
        (["vilt", "clip", "--only", "speed"], "argument --only: invalid choice: 'speed'"),
        (["vilt", "clip", "--data", "mine=no/such/folder"], "no/such/folder does not exist"),
        (["vilt", "clip", "--step", "3"], "unknown option '--step'. Did you mean '--steps'"),
        (["vilt", "clip", "--model.x", "3"], r"vilt: unknown key 'model.x' \(on the command line\)"),
        (["vilt", "clip", "--data.worker", "0"], r"vilt: unknown key 'data.worker' \(on .*line\). Did you mean 'data.workers'"),
        (
            ["vilt", "clip", "--model.objectives.itm.weight", "2"],
            r"clip: model.objectives.itm \(on .*line\): names no class_path.*contrastive",
        ),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["compare", *words, "--out", str(tmp_path / "out")])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_key_that_fit_does_not_know_is_named_with_its_file(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = write(tmp_path, "common.yaml", "data: {batch_sizes: 4}\n")
    monkeypatch.setattr(compare_run, "run_all", lambda jobs: pytest.fail("trained"))
    for words in ([], ["--alike"]):
        assert main(["compare", "clip", "siglip", "--config", common, *words, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert said == [f"mmpretrain: error: clip: unknown key 'data.batch_sizes' (in {common}). Did you mean 'data.batch_size'?"]


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


def test_each_run_says_when_it_begins_where_there_is_no_terminal(recipes: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    known, typed = options(*recipes, "--out", str(tmp_path / "out"))
    jobs, _ = compare._jobs(known, typed)
    said: list[str] = []
    monkeypatch.setattr(compare_run, "_run", lambda job, tell: said.append(capsys.readouterr().err))
    monkeypatch.setattr(compare_run, "finished", lambda job: job.recipe.label == "two")
    assert compare_run.run_all(jobs) == {}
    assert said == [f"run 1 of 2: one, seed 0, begun; it writes to {jobs[0].folder / 'log.txt'}\n"]
    assert capsys.readouterr().err == "run 1 of 2: one, seed 0, 0 s\nrun 2 of 2: two, seed 0, finished before\n"


def test_curves_are_means_over_seeds(recipes: list[str], tmp_path: Path) -> None:
    known, typed = options(*recipes, "--seeds", "0,1", "--out", str(tmp_path / "out"))
    jobs, _ = compare._jobs(known, typed)
    series = lambda *values: Series(tuple(range(1, 1 + len(values))), (0.0,) * len(values), values)
    runs = [(jobs[0], {"a": series(1.0, 2.0), "b": series(1.0)}), (jobs[2], {"a": series(3.0, 4.0, 5.0)})]
    assert compare_result.history(runs) == {"one": {"a": Series((1, 2), (0.0, 0.0), (2.0, 3.0))}}


def test_a_line_names_the_few() -> None:
    values = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 3, "f": 1}
    assert compare_plan.Difference("data.x", values).shown() == "data.x: 2 (b); 3 (e); 1 (the others)"
    assert compare_plan.Difference("data.x", {"a": 1, "b": 2, "c": 1}).shown() == "data.x: 1 (a, c); 2 (b)"


def test_many_systems_come_in_tables_that_fit() -> None:
    from rich.console import Console

    names = [f"system-{i}" for i in range(7)] + ["[red]", "[/x]"]
    rows = lambda value: (
        {"name": "retrieval/few/i2t_R@1", "value": value, "chance": 0.1, "stamp": {"data": "d", "protocol": "p", "count": 9}},
    )
    outcomes = [comparison.Outcome(name, 0, rows(0.1 * i), {"parameters": 1e6 + i}, "x") for i, name in enumerate(names)]
    made = comparison.compare(outcomes, names)
    for width, count in ((400, 1), (100, 2), (20, 9)):
        found = compare_result.tables(made, width)
        assert len(found) == count
        assert [str(column.header) for table in found for column in table.columns if str(column.header) in names] == names
    console = Console(width=100, record=True, file=io.StringIO())
    for table in compare_result.tables(made, 100):
        console.print(table)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 100 and text.count("retrieval/few/i2t_R@1") == 2
    assert [f"{10 * i}.0 %" in text for i in range(9)] == [True] * 9


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
