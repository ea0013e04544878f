"""Tables on the terminal, in a pipe or in a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000  # characters, more than any table has


def printer() -> Console:
    """For tables: as wide as the terminal; a pipe or a file has no width to fit into."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)
