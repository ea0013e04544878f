"""What recipes reach over several seeds, beside what their heads reach without looking: a table of finished runs.

    for s in 0 1 2; do MMPRETRAIN_RUN_DIR=runs/uniter-$s mmpretrain fit --config uniter.yaml --seed_everything $s; done
    MMPRETRAIN_RUN_DIR=runs/uniter-blind mmpretrain fit --config uniter.yaml --config blind.yaml
    python benchmarks/against_blind.py runs

``blind.yaml``::

    trainer: {max_steps: 600, val_check_interval: 300}
    model: {transforms: [{class_path: mmpretrain.methods.blind.Blind}], optimizer: {kind: adamw, lr: 0.03}}

Every hidden state is then zero, so that heads learn frequencies, majorities and means. Of every system and objective the last
validation of the first set is shown: accuracies in percent where the objective has them, else its loss, and of LXMERT's objects the
loss of the features too.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

BLIND = "blind"
ACCURACIES = ("accuracy", "obj_accuracy", "attr_accuracy")
LOSSES = ("loss", "feat")


def last(run: Path) -> dict[str, float]:
    """The losses and accuracies of the last validation of a run, by ``objective/what``; empty where it has not ended."""
    if not (run / "result.json").is_file():
        return {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    row: dict[str, float] = next((row for row in reversed(rows) if "val/loss" in row), {})
    names = [name.split("/") for name in row]
    own = [parts for parts in names if len(parts) == 3 and parts[0] == "val" and parts[1] != "compositional"]
    return {"/".join(parts[1:]): row["/".join(parts)] for parts in own}


def shown(found: dict[str, dict[str, float]], name: str) -> tuple[list[str], bool]:
    """The cells of one figure, the blind one first, and whether every seed is better."""
    better = -1 if name.rsplit("/", 1)[1] in LOSSES else 1
    percent = name.rsplit("/", 1)[1] in ACCURACIES
    cells = [f"{100 * values[name]:.1f} %" if percent else f"{values[name]:.3f}" for values in found.values() if name in values]
    blind = found.get(BLIND, {}).get(name)
    return cells, blind is not None and all(better * values[name] > better * blind for run, values in found.items() if run != BLIND)


def main() -> None:
    """See the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="runs NAME-SEED and NAME-blind")
    args = parser.parse_args()
    systems: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for run in sorted(args.folder.iterdir(), key=lambda path: (not path.name.endswith(BLIND), path.name)):
        name, _, which = run.name.rpartition("-")
        if values := last(run):
            systems[name][which] = values
    for system, found in sorted(systems.items()):
        print(f"\n| {system} | {' | '.join(found)} | better |\n|---|{'---|' * (len(found) + 1)}")
        names = dict.fromkeys(name for values in found.values() for name in values)
        objectives = {name.split("/")[0] for name in names if name.split("/")[1] in ACCURACIES}
        for name in names:
            what = name.split("/")[1]
            if what in (*ACCURACIES, "feat") or (what == "loss" and name.split("/")[0] not in objectives):
                cells, better = shown(found, name)
                print(f"| {name} | {' | '.join(cells)} | {'yes' if better else 'no'} |")


if __name__ == "__main__":
    main()
