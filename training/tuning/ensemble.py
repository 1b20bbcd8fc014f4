"""The best trials' networks as one: which of them to average, and the network that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import ValidationError
from torch import nn

from artifacts.configs import MOST_MEMBERS, EnsembleNetwork, NetworkConfig
from artifacts.decision import decide
from artifacts.ensembles import Ensemble, TableEnsemble
from artifacts.errors import DataError
from artifacts.estimates import log_losses
from training.calibration import probabilities_at
from training.metrics import area_under_curve

Objective = Literal["accuracy", "log_loss", "auc"]

# What rounding alone can bring is no improvement.
_LEAST_GAIN = 1e-6


def assemble(
    configs: Sequence[NetworkConfig], networks: Sequence[nn.Module]
) -> tuple[EnsembleNetwork, nn.Module]:
    """The config, and the module in eval mode, of an ensemble of trained networks.

    configs: of each of the networks, which were trained behind the same preprocessing. The module
    holds the networks themselves, no copies of their weights.
    Raises DataError where they do not fit together: fewer than 2 or more than 16, an ensemble among
    them, another number of outputs, or another input, such as with and without bins.
    """
    if len(configs) != len(networks):
        raise DataError(
            f"ensemble: expected a config for each network, found {len(configs)} configs and "
            f"{len(networks)} networks"
        )
    members = tuple(each for each in configs if not isinstance(each, EnsembleNetwork))
    if len(members) < len(configs):
        raise DataError("ensemble: expected members of other kinds, found an ensemble among them")
    try:
        config = EnsembleNetwork(members=members)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"ensemble: {reason}") from error
    _check_same_input(config, networks)
    return config, Ensemble(config, networks).eval()


def _check_same_input(config: EnsembleNetwork, networks: Sequence[nn.Module]) -> None:
    """Raise DataError where the networks' first layers show that they take different input."""
    found: dict[str, dict[int, str]] = {}
    for member, network in zip(config.members, networks, strict=True):
        unit, count = _takes(network)
        found.setdefault(unit, {}).setdefault(count, member.kind)
    for unit, kinds in found.items():
        if len(kinds) > 1:
            shown = ", ".join(f"{count} of {kind}" for count, kind in kinds.items())
            raise DataError(
                f"ensemble: the members take different input: expected the same number of {unit}, "
                f"found {shown}; a table network takes bins that others do not"
            )


def _takes(network: nn.Module) -> tuple[str, int]:
    if isinstance(network, TableEnsemble):
        return "values", network.input_width
    for module in network.modules():
        if isinstance(module, nn.Linear):
            return "values", module.in_features
        if isinstance(module, nn.Conv2d):
            return "channels", module.in_channels
    raise AssertionError("every kind of network begins with a linear layer or a convolution")


def choose_ensemble(
    logits: Sequence[np.ndarray], labels: np.ndarray, objective: Objective
) -> tuple[int, ...]:
    """Which candidates' mean logit is best: their places, in the order in which they were added.

    logits: float32 [N, K] of each candidate, the best one first; labels: int64 [N], of rows that
    none was trained on. Forward selection from the first (Caruana et al. 2004, Ensemble Selection
    from Libraries of Models), without replacement: in each step the candidate is added whose
    addition is best, the earlier one on a tie, as long as it improves `objective` at temperature 1,
    and up to 16. (0,) where no other improves on the first alone, or where AUC is not defined.
    Raises DataError where there are no candidates, or their shapes differ.
    """
    _check_shapes(logits)
    chosen, total = [0], logits[0]
    best = _score(total, labels, objective)
    while len(chosen) < min(len(logits), MOST_MEMBERS):
        scores = {
            place: _score((total + candidate) / (len(chosen) + 1), labels, objective)
            for place, candidate in enumerate(logits)
            if place not in chosen
        }
        place = max(scores, key=lambda place: scores[place])
        if not scores[place] > best + _LEAST_GAIN:
            break
        chosen.append(place)
        total, best = total + logits[place], scores[place]
    return tuple(chosen)


def _score(logits: np.ndarray, labels: np.ndarray, objective: Objective) -> float:
    """More is better; -inf where it is not defined."""
    probabilities = probabilities_at(logits, 1.0)
    if objective == "accuracy":
        score = float((decide(probabilities) == labels).mean())
    elif objective == "log_loss":
        score = -float(log_losses(probabilities, labels).mean())
    else:
        area = area_under_curve(probabilities, labels)
        score = math.nan if area is None else area.value
    return score if np.isfinite(probabilities).all() and math.isfinite(score) else -math.inf


def _check_shapes(logits: Sequence[np.ndarray]) -> None:
    shapes = sorted({each.shape for each in logits})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise DataError(
            "ensemble: expected logits [rows, classes], the same for each member, found "
            f"{', '.join(map(str, map(list, shapes))) or 'none'}"
        )
