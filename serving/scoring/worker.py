"""`python -m serving.scoring.worker FD`: a process that scores what the one at FD gives it."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Begin as soon as can be."""
    # Nothing of what is imported is garbage: to look for some is a tenth of a start.
    gc.disable()
    from serving.scoring.engine import follow

    follow(int(sys.argv[1]))


if __name__ == "__main__":
    main()
