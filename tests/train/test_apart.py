"""One rank is slow, or was given other data: the others wait, or all refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import write_shards
from train.apart import SECONDS
from train.spawn import ranks

from mmpretrain.data.reader import ShardReader


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("apart")
    for rank in (0, 1):
        shards = write_shards(folder / f"shards-{rank}", (12, 12), more={"rank": rank})
        ShardReader(sorted(shards.glob("*.tar")))  # their indexes
    for rank, done in enumerate(ranks(Path(__file__).with_name("apart.py"), str(folder))):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.fault(29)
def test_a_slow_rank_is_waited_for(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, results = found
    assert all(result["slow"]["equal"] and result["slow"]["seconds"] >= SECONDS for result in results)
    events = [json.loads(line) for line in (folder / "slow" / "events.jsonl").read_text().splitlines()]
    assert events and {event["event"] for event in events} == {"stalled"}  # said, and gone on


@pytest.mark.slow
@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "what,says", [("shards", "data.fingerprint: "), ("seed", "data.seed: 0 on rank 0, 1"), ("size", "data.batch_size: 8")]
)
def test_ranks_with_other_data_refuse_at_the_start(found: tuple[Path, list[dict[str, Any]]], what: str, says: str) -> None:
    messages = [result["other"][what] for result in found[1]]
    assert messages[0] == messages[1] and messages[0].startswith(f"ranks disagree on {says}"), messages
