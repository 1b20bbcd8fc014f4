"""From probabilities to the one label that is answered."""

from __future__ import annotations

import numpy as np


def decide(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The answered label's index, int64 [N], of probabilities, float32 [N, K].

    At 0.5 it is the most probable label, the first one on a tie. Another threshold is for two
    labels: the second is answered where its probability, as a double, is above the threshold.
    """
    index: np.ndarray
    if threshold == 0.5:
        index = probabilities.argmax(axis=1)
    else:
        assert probabilities.shape[1] == 2
        index = (probabilities[:, 1].astype(np.float64) > threshold).astype(np.int64)
    return index
