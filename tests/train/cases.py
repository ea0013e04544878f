"""The runs whose results must not depend on the layout. Executed as a script by each rank of a test: ``cases.py OUT NAME...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from mmpretrain.train.optim import Optimizer
from mmpretrain.train.plateau import Plateau

SGD = {"model.layers.0": Optimizer(lr=3e-2, kind="sgd", weight_decay=5e-4, decay="all")}  # the rest: AdamW
CASES: dict[str, dict[str, Any]] = {
    "plain": {"flags": {"gradient_clip_val": 0.5}},
    "accumulate": {"flags": {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}},
    "foreach": {"optimizer": {"foreach": True}, "flags": {"gradient_clip_val": 0.5}},
    "fused": {"optimizer": {"fused": True}, "flags": {"gradient_clip_val": 0.5}},
    "muon": {"optimizer": {"kind": "muon", "matrix_lr": 3e-3}, "flags": {"gradient_clip_val": 0.5}},
    "two": {"optimizer": {"parts": SGD, "decay": "standard"}, "flags": {"gradient_clip_val": 0.5}},
    "bert": {"optimizer": {"kind": "bert_adam", "eps": 1e-6, "clip_each": 0.05}, "flags": {}},
    "value": {"flags": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
    "sample": {"module": {"task_schedule": "sample", "seed": 3}, "flags": {"gradient_clip_val": 0.5}},
    "adversarial": {
        "module": {"adversarial": {"lr": 0.3, "init": 0.1}},
        "flags": {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
    },
    "recompute": {"module": {"activation_checkpointing": True, "ema_decay": 0.9}, "flags": {"gradient_clip_val": 0.5}},
    # no loss is half as large as one before: a drop behind every second look
    "plateau": {
        "plateau": {"warmup": 2, "window": 2, "patience": 1, "threshold": 0.5},
        "module": {"ema_decay": 0.9, "ema_every": 3},
        "flags": {},
    },
}


def execute(name: str, **layout: Any) -> Any:
    """One case under a layout."""
    from train.runs import build, run

    case = CASES[name]
    module = build(optimizer=case.get("optimizer"), **case.get("module", {}))
    if "plateau" in case:
        module.schedule = Plateau(**case["plateau"])
    return module, run(module, **{**case["flags"], **layout})


def main() -> None:
    """Run ``STRATEGY:NAME`` cases on this rank; rank 0 writes the traces."""
    import mmpretrain.train.strategies  # noqa: F401  registers the names

    out, *names = sys.argv[1:]
    traces = {}
    for full_name in names:
        strategy, name = full_name.split(":")
        module, trace = execute(name, strategy=strategy, devices=2)
        entry = trace._asdict()
        if module.ema is not None:
            entry["ema"] = module.ema.state()
        traces[full_name] = entry
    if torch.distributed.get_rank() == 0:
        torch.save(traces, Path(out))


if __name__ == "__main__":
    main()
