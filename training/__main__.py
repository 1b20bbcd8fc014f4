"""`parityline train` as a module, for torchrun: torchrun --nproc-per-node 2 -m training RECIPE."""

from __future__ import annotations

import sys

import parityline

if __name__ == "__main__":
    sys.argv = ["parityline", "train", *sys.argv[1:]]
    parityline.main()
