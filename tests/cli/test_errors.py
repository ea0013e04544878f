"""What a user sees for a wrong option, key, value or file: one line that names it, exit code 2, no traceback."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch

from mmpretrain.cli.errors import one_line
from mmpretrain.cli.main import main
from mmpretrain.cli.train import prepare
from mmpretrain.data.errors import BadSample
from mmpretrain.nn.misfit import Misfit


def refused(capfd, *words: str) -> str:
    """The one line that the command prints to stderr."""
    assert main(["fit", *words]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line and not line.startswith("INFO")]
    assert len(lines) == 1 and lines[0].startswith("mmpretrain: error: "), lines
    return lines[0].removeprefix("mmpretrain: error: ")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trainer.max_stps", "3"], r"unknown option '--trainer.max_stps'. Did you mean '--trainer.max_steps'\?"),
        (["--trainer.max_stps=3"], r"unknown option '--trainer.max_stps'. Did you mean '--trainer.max_steps'\?"),
        (["max_steps"], r"'max_steps' is not an option; options start with '--'"),
        (["--trainer.max_steps", "abc"], r"trainer.max_steps.*int.*abc"),
        (["--model.optimizer.lrr", "1"], r"model.optimizer: mmpretrain.train.optim.Optimizer has no argument 'lrr'.* Did you mean 'lr'\?"),
        (["--model.optimizer.lr", "fast"], r"model.optimizer.lr.*float.*fast"),
        (
            ["--model.objectives.mlm.init_args.prb=0.3"],
            r"^model.objectives.*MLM has no argument 'prb' \(on the command line\)",
        ),
        (
            ["--model.system.init_args.text.widht", "5"],
            r"no argument 'widht' \(on the command line\). Did you mean 'width'\?",
        ),
        (
            ["--model.system.init_args.widht", "5"],
            r"ViLT has no argument 'widht' \(on .*line\).*'text.width' or .* 'blocks.width'\?",
        ),
        (["--data.val", "nothing"], r"^data.val \(on the command line\): a mapping NAME: SOURCE, for example \{mine: nothing\}$"),
        (["--data.val=[1]"], r"^data.val \(on the command line\): a mapping NAME: SOURCE, for example \{mine: scenes:val\}$"),
        (["--trainer.callbacks", "5"], r"trainer.callbacks \(on the command line\): expected list\[.*, null, not 5"),
        (["--data.batch_size.x", "3"], r"data.batch_size: .*int.*\{x: 3\}"),
        (["--data.image.mode", "vlit"], r"^data.image.mode \(on the command line\): .*vlit"),
        (["--config"], r"--config needs the name of a file"),
        (["--config", "vlit.yaml"], r"there is no file 'vlit.yaml'.*Did you mean 'vilt.yaml'"),
        (["--ckpt_path", "nothing.ckpt"], r"there is no checkpoint nothing.ckpt"),
        (["--ckpt_path", "last"], r"no run of vilt under .* has a checkpoint yet"),
        (["--data.train", "no/such/folder"], r"no/such/folder does not exist"),
        (["--model.objectives.itm.init_args.negatives", "{pictures: 1.0}"], r"unknown kind of negatives pictures"),
        (
            ["--model.objectives.mml.prob", "0.3"],
            r"^model.objectives.mml \(on .*line\): names no class_path. Did you mean 'mlm'\? .*: mlm, itm, wpa.$",
        ),
        (
            ["--model.objectives.itm", "{class_path: mmpretrain.objectives.mlm.MaskedText}"],
            r"^model.objectives.*: of mmpretrain.objectives.mlm.MaskedText there are no objects; name a class that is built on it$",
        ),
        (["--model.schedule", "mmpretrain.train.schedule.Schedule"], r"^model.schedule.*: of .*Schedule there are no objects;"),
        (["--model.objectives.itm.negatives", "2"], r"^model.objectives.itm.negatives \(on the command line\): expected dict.*, not 2$"),
        (["--model.task_weights", "{mlm:2}"], r"^model.task_weights \(on .*line\): .*YAML wants a space behind each colon: \{a: 1\}$"),
        (["--trainer.accumulate_grad_batches", "0"], r"accumulate_grad_batches=0"),
    ],
)
def test_on_the_command_line(capfd, words, says):
    assert re.search(says, refused(capfd, "--config", "vilt.yaml", *words))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {max_stps: 3}", r"unknown key 'trainer.max_stps' \(in .*mine.yaml\). Did you mean 'trainer.max_steps'\?"),
        ("trainr: {max_steps: 3}", r"unknown key 'trainr.max_steps' \(in .*mine.yaml\)"),
        ("model: {optimizer: {lrr: 1}}", r"Optimizer has no argument 'lrr'.*Did you mean 'lr'\?"),
        ("model: {system: {class_path: mmpretrain.models.vilt.VILT}}", r"model.system.*mmpretrain.models.vilt.VILT"),
        ("data: {val: nothing}", r"^data.val \(in .*mine.yaml\): a mapping NAME: SOURCE, for example \{mine: nothing\}"),
        (
            "model: {system: {init_args: {text: {init_args: {widht: 3}}}}}",
            r"'widht' \(in .*mine.yaml\). Did you mean 'width'\?",
        ),
        ("data: {batch_size: many}", r"data.batch_size \(in .*mine.yaml\).*int.*many"),
        ("a: [1", r"mine.yaml, line 2.*not readable as YAML"),
        ("model:\n  optimizer: {lr: {{ lr }}}", r"mine.yaml, line 2, column 20: not readable as YAML: a key must be.*'\{\{ ... \}\}'"),
        ("? [a, b]\n: 1", r"mine.yaml, line 1, column 3: not readable as YAML: a key must be a word"),
        ("a: 2026-99-01", r"mine.yaml: not readable as YAML: month must be"),
    ],
)
def test_in_a_file(capfd, tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    assert re.search(says, refused(capfd, "--config", "vilt.yaml", "--config", "mine.yaml"))


def test_nothing_given_says_where_to_start(capfd):
    assert re.search(r"missing: model.system.*--config vilt.yaml", refused(capfd))


def test_a_file_that_is_no_checkpoint(capfd, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    assert "a.ckpt: not a readable checkpoint" in refused(capfd, "--config", "vilt.yaml", "--ckpt_path", "a.ckpt")


@pytest.mark.parametrize("content", [object, b"nothing"])
def test_nobody_is_advised_to_load_what_may_run_code(capfd, tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")  # an archive; its manifest is not asked for
    if content is not object:
        (tmp_path / "a.ckpt").write_bytes(content)
        (tmp_path / "a.ckpt.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    said = refused(capfd, "--config", "vilt.yaml", "--ckpt_path", "a.ckpt")
    assert said.endswith("a.ckpt: not a readable checkpoint (it is damaged, or holds more than tensors and plain types)")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["steps", "0"], "model.adversarial.steps=0 must be a whole number of at least 1; enabled: false turns it off"),
        (["modality", "texts"], "model.adversarial.modality (on the command line): Expected one of ['text', 'image', 'both', 'alternate']"),
    ],
)
def test_a_part_that_may_be_null_says_what_is_wrong_with_it(capfd, words, says):
    assert refused(capfd, "--config", "villa.yaml", f"--model.adversarial.{words[0]}", words[1]).startswith(says)


@pytest.mark.parametrize("typed", [True, False])
def test_an_option_of_a_part_of_an_objective(capfd, tmp_path, typed):
    mrc = "{class_path: mmpretrain.objectives.mrc.MRC, init_args: {target: kl, masker: {zeros: 0.5}}}"
    (tmp_path / "mine.yaml").write_text(f"model: {{objectives: {{mrc: {mrc}}}}}\n")
    words = ["--model.objectives.mrc.masker", "{zeros: 0.5}"] if typed else ["--config", "mine.yaml"]
    where = "on the command line" if typed else f"in {tmp_path / 'mine.yaml'}"
    says = "model.objectives.mrc.masker: mmpretrain.objectives.region_masking.RegionMasker has no argument 'zeros'"
    assert refused(capfd, "--config", "vilbert.yaml", *words) == f"{says} ({where}). Did you mean 'zero'?"


def test_an_argument_that_a_part_needs(capfd):
    said = refused(capfd, "--config", "uniter.yaml", "--model.transforms", "[{class_path: mmpretrain.weights.bert.FromBERT}]")
    assert said == "model.transforms (on the command line): mmpretrain.weights.bert.FromBERT needs folder"


def test_no_run_folder_is_left_behind(capfd, tmp_path):
    refused(capfd, "--config", "vilt.yaml", "--trainer.max_stps", "3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "nothing"], "there is no checkpoint nothing"),
        (["export", "nothing", "--to", "onnx", "--out", "x"], "invalid choice: 'onnx'"),
        (["data", "scenes", "--out", "x", "--n", "4", "--sed", "1"], "'--sed'. Did you mean '--seed'? See mmpretrain data scenes"),
        (["data", "index", "nothing"], "nothing does not exist; check the path, or make shards there: mmpretrain data --help"),
        (["data", "indx"], "there is no tool 'data indx'. Did you mean 'index'? See mmpretrain data --help"),
        (["report", "nothing"], "nothing"),
        (["report", "nothing", "--out", "."], "--out .: there is a folder of that name; name a file"),
        (["evaluate", "nothing", "--out", "."], "--out .: there is a folder of that name; name a file"),
        (["evaluate", "nothing", "--limit", "-3"], "evaluate: argument --limit: at least 1, not -3. See mmpretrain evaluate --help"),
        (["generate", "--ckpt", "x", "--dvae", "y", "--n", "0"], "generate: argument --n: at least 1, not 0."),
        (["embed", "x", "--data", "y", "--out", "z.npz", "--btach", "3"], "unknown option '--btach'. See mmpretrain embed --help"),
        (["embed", "x", "--data", "y", "--out", "z.npz", "--part-sise", "3"], "'--part-sise'. Did you mean '--part-size'?"),
        (["embed", "nothing", "--data", "x", "--out", "x.npz"], "there is no checkpoint nothing"),
    ],
)
def test_the_other_commands(capfd, words, says):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    error = capfd.readouterr().err
    assert code == 2 and error.count("\n") == 1 and says in error, error


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    from mmpretrain.cli import train

    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(train, "prepare", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["fit", "--config", "vilt.yaml"])


def test_a_user_error_shows_where_it_came_from_on_request(monkeypatch):
    from mmpretrain.cli.errors import UserError

    monkeypatch.setenv("MMPRETRAIN_TRACEBACK", "1")
    with pytest.raises(UserError):
        main(["fit", "--config", "vlit.yaml"])


@pytest.mark.parametrize(("words", "says"), [(["systems", "--jsn"], "Did you mean '--json'?"), (["doctor", "--x"], "unknown option '--x'")])
def test_commands_without_a_run_refuse_in_one_line(capfd, words, says):
    with pytest.raises(SystemExit) as left:
        main(words)
    (line,) = capfd.readouterr().err.splitlines()
    assert left.value.code == 2 and says in line


def test_measuring_without_a_checkpoint_says_whose_weights_it_measures(capfd):
    prepare("validate", ["--config", "clip.yaml"])
    assert "validate without --ckpt_path: the weights are those that the model begins with" in capfd.readouterr().err


def test_an_error_of_a_worker_is_its_message():
    class Set(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            error = BadSample.of("0.tar", "k1", "picture cannot be decoded (OSError: BadSample: cut)")
            error.add_note("mmpretrain: while at 0.tar key 'k1'")
            raise error

    with pytest.raises(BadSample, match="Original Traceback") as caught:
        next(iter(torch.utils.data.DataLoader(Set(), num_workers=1)))
    assert one_line(caught.value) == "0.tar key 'k1': picture cannot be decoded (OSError: BadSample: cut)"
    assert one_line(Misfit("Caught nothing: set x")) == "Caught nothing: set x"
