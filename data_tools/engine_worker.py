"""A process of the pool: ``python -m mmpretrain.data_tools.engine_worker module:function``, one line of JSON for each item and each reply.

It ends when its standard input does, so that nothing is left behind when the program that started it is killed.
"""

from __future__ import annotations

import json
import os
import sys

from mmpretrain.data_tools.engine import call


def main(ref: str) -> int:
    """Serve items until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a function prints goes to stderr, not between the replies
    try:
        for line in sys.stdin:
            print(json.dumps(call(ref, line)), file=replies, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)  # nothing is left to tidy up, and an interpreter that shuts down may wait for threads of libraries
