"""`python -m serving.scoring.worker FD`: a process that scores what the one at FD gives it."""

from __future__ import annotations

import signal
import sys

from serving.scoring.processes import without_collection


def main() -> None:
    """Import what is needed, as fast as can be, and follow."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with without_collection():
        from serving.scoring.engine import follow
    follow(int(sys.argv[1]))


if __name__ == "__main__":
    main()
