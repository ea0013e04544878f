"""Reading a run directory: tolerant of what a killed or young run leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmpretrain.report.run import NoRunError, Run


def _run(tmp_path: Path, lines: list[str]) -> Run:
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    return Run.open(tmp_path)


def test_a_truncated_last_line_is_left_out_silently(tmp_path: Path) -> None:
    run = _run(tmp_path, ['{"step": 1, "epoch": 0, "time": 5.0, "train/loss": 2.5}', '{"step": 2, "epoch": 0, "tim'])
    assert run.metrics()["train/loss"].values == (2.5,)
    assert run.warnings == []


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path, ['{"step": 1, "train/loss": 2.5}', "rubbish", '{"step": 2, "train/loss": 2.0}'])
    assert run.metrics()["train/loss"].steps == (1, 2)
    assert "line 2" in run.warnings[0]


def test_a_resumed_run_keeps_the_later_value_of_a_step_and_sorts(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "time": t, "train/loss": v}) for s, t, v in [(1, 1, 9.0), (2, 2, 8.0), (3, 3, 7.0), (2, 10, 6.0)]]
    series = _run(tmp_path, lines).metrics()["train/loss"]
    assert (series.steps, series.values, series.times) == ((1, 2, 3), (9.0, 6.0, 7.0), (1.0, 10.0, 3.0))


def test_not_a_number_is_kept_as_it_happened(tmp_path: Path) -> None:
    series = _run(tmp_path, ['{"step": 1, "train/loss": NaN}', '{"step": 2, "train/loss": null, "train/lr": 1e-4}']).metrics()
    assert math.isnan(series["train/loss"].values[0])
    assert math.isnan(series["train/lr"].times[0])


def test_result_rows_and_notes(tmp_path: Path) -> None:
    stamp = {"data": "emoji_val@1a2b", "protocol": "all pairs", "precision": "float32", "count": 64, "weights": "raw"}
    rows = [{"name": "i2t_R@1", "value": 0.5, "chance": 0.1, "stamp": stamp}, {"name": "bad", "value": None}, "junk", {"value": 1}]
    run = _run(tmp_path, [])
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows, "checkpoint": "last.ckpt"}))
    result = run.result()
    assert result is not None and dict(result.notes) == {"checkpoint": "last.ckpt"}
    assert result.rows[0].stamp == "emoji_val@1a2b · all pairs · float32 · 64 counted · raw weights"
    assert result.rows[1].value == "–" and len(result.rows) == 2
    (tmp_path / "result.json").write_text(json.dumps(rows))  # a bare list of rows is read too
    assert run.result().rows == result.rows


def test_unreadable_parts_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    run = _run(tmp_path, ['{"step": 1, "train/loss": 2.5}'])
    (tmp_path / "result.json").write_text('{"rows": [')
    (tmp_path / "panels" / "1").mkdir(parents=True)
    (tmp_path / "panels" / "1" / "x.json").write_text('{"version": 1, "kind": "masked", "step": 1, "body": {"examples": 3}}')
    assert run.result() is None and run.panels() == [] and run.metrics()
    assert len(run.warnings) == 2 and "body.examples: expected a list" in run.warnings[1]


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NoRunError) as caught:
            Run.open(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("vilt-20260101-120000", "vilt"), ("clip-b-32-20260101-120000", "clip-b-32"), ("vilt-20260101-120000-1", "vilt"), ("mine", "mine")],
)
def test_the_recipe_is_the_name_without_date(tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.yaml").write_text("a: 1\n")
    assert Run.open(tmp_path / folder).name == name
