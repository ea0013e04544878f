"""A short run on generated scenes that writes panels; executed as a script by each rank of a test.

``panels_run.py FOLDER SHARDS SYSTEM STRATEGY DEVICES``
"""

from __future__ import annotations

import sys


def main() -> None:
    from train.measured_run import data, module
    from train.runs import quiet, trainer

    import mmpretrain.train.strategies  # noqa: F401  registers the names
    from mmpretrain.train.panels import Panels

    folder, shards, system, strategy, devices = sys.argv[1:]
    quiet()
    callback = Panels(samples=4, queries=2, folder=folder)
    fitter = trainer(2, [callback], val_check_interval=1.0, limit_train_batches=2, strategy=strategy, devices=int(devices))
    fitter.fit(module(system), datamodule=data(shards, system))
    if callback._reported:
        raise SystemExit(f"panels failed: {callback._reported}")


if __name__ == "__main__":
    main()
