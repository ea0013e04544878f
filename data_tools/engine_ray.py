"""A Ray cluster for :mod:`mmpretrain.data_tools.engine`: the same functions, the same results."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.engine import call, environment


def replies(ref: str, texts: Mapping[str, str], workers: int) -> Generator[tuple[str, dict[str, Any]]]:
    """(name, reply) of every item as it finishes; at most ``workers`` at a time.

    ``RAY_ADDRESS`` names the cluster; without it, and without ``ray.init`` before, one is started here and ended with the last item.

    Raises:
        DataError: Ray is not installed, the cluster cannot be reached, or one of its workers died, naming the item.
    """
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs Ray: pip install 'mmpretrain-vl[ray]', or use --engine local") from None
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    try:
        remote = ray.remote(num_cpus=1, max_retries=0)(call)
        todo = iter(texts.items())
        running: dict[Any, str] = {}
        while True:
            while len(running) < workers and (entry := next(todo, None)) is not None:
                running[remote.remote(ref, entry[1])] = entry[0]
            if not running:
                return
            (future,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(future)
            try:
                yield name, ray.get(future)
            except ray.exceptions.RayError as error:
                text = str(error).strip().splitlines()[0]
                raise DataError(f"{name}: the Ray worker failed ({text}). Run the command again to continue") from None
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    wanted: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        wanted["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    else:
        variables = {name: environment()[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        wanted |= {"num_cpus": workers, "include_dashboard": False, "runtime_env": {"env_vars": variables}}
    try:
        ray.init(**wanted)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS") or "this machine"
        raise DataError(f"--engine ray: no Ray instance on {where} ({' '.join(str(error).split())[:200]})") from None
