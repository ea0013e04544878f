"""The console script. It looks at the installed metadata before it imports ``mmpretrain``.

OpenMMLab's toolbox is called ``mmpretrain`` on PyPI and has the same import name: installed beside this suite, before or after it,
it overwrites files of the package. This module has a name of its own, so it is always ours, and stops with the remedy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

OURS = "mmpretrain-vl"
THEIRS = "mmpretrain"  # OpenMMLab's distribution


def clash() -> str | None:
    """What is wrong with the installation and how to mend it, or None."""
    try:
        theirs = importlib.metadata.version(THEIRS)
    except importlib.metadata.PackageNotFoundError:
        theirs = None
    if theirs is not None:
        return (
            f"OpenMMLab's 'mmpretrain' {theirs} is installed in this environment; it has the same import name and overwrites files of "
            f"'{OURS}'. Remedy: pip uninstall -y {THEIRS} {OURS} && pip install {OURS} (from this repository: pip install .), "
            "or use an environment of its own for each."
        )
    if importlib.util.find_spec("mmpretrain") is None or importlib.util.find_spec("mmpretrain.cli.main") is None:
        return (
            f"the files of '{OURS}' are damaged (another package named 'mmpretrain' was installed over them and removed?). "
            f"Remedy: pip install --force-reinstall --no-deps {OURS} (from this repository: pip install --force-reinstall --no-deps .)"
        )
    return None


def main() -> int:
    """Run the command line; returns the exit code."""
    problem = clash()
    if problem is not None:
        print(f"mmpretrain: {problem}", file=sys.stderr)
        return 2
    from mmpretrain.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
