"""The optimizers: which parameter is moved by which, how fast, and with how much weight decay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from artifacts.ensembles import Ensemble, TableEnsemble
from artifacts.errors import DataError
from training.muon import Float32Muon
from training.recipe import TrainConfig

# Parts of the names of parameters that are no weights of a linear map.
_NOT_DECAYED = ("bias", "norm", "scale", "token", "pos_embedding", "position")
# The last part of the name of a linear map's weights; attention has the second in one matrix.
_MATRICES = ("weight", "in_proj_weight")
_NAMES_SHOWN = 40


def make_optimizers(
    network: nn.Module, config: TrainConfig, head: Collection[str] | None = None, share: float = 1.0
) -> list[torch.optim.Optimizer]:
    """The optimizers that `config` names; weight decay on matrices, not on norms, biases, scales.

    One for "sgd", "adam" and "adamw"; for "muon" two, torch's Muon for `hidden_matrices` and AdamW
    for the rest. All but Muon, which has no such kernel, are fused.
    head: the parameters that learn at the full rate, by name; the others at `share` of it. All of
    them without `head`. What it is multiplied by: a network's own `rates` by parameter (how much
    faster it learns and how much of the decay it gets), and config.rates. Each group has the
    product as "share"; `set_rates` uses it. A share of 0 leaves parameters as they are.
    Raises DataError for a pattern in config.rates that no parameter's name matches, for rates that
    leave nothing to train, and for "muon" where there is no hidden matrix.
    """
    shares = _shares(network, config.rates)
    own: dict[str, tuple[float, float]] = getattr(network, "rates", {})
    parameters: dict[str, tuple[nn.Parameter, float, float]] = {}
    for name, parameter in network.named_parameters():
        faster, decay = own.get(name, (1.0, 1.0))
        if parameter.ndim < 2 or any(part in name for part in _NOT_DECAYED):
            decay = 0.0
        if head is not None and name not in head:
            faster *= share
        parameters[name] = (parameter, faster * shares[name], config.weight_decay * decay)
    if config.optimizer != "muon":
        groups = _groups(parameters.values())
        if config.optimizer == "sgd":
            sgd = torch.optim.SGD(
                groups, config.lr, config.momentum, nesterov=config.nesterov, fused=True
            )
            return [sgd]
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return [kind(groups, config.lr, betas=(0.9, config.beta2), fused=True)]
    hidden = hidden_matrices(network, head)
    if not hidden:
        raise DataError(
            "train.optimizer: muon trains the matrices of linear layers before the last one, "
            "found none in this network: take adamw or sgd"
        )
    on_cpu = all(parameters[name][0].device.type == "cpu" for name in hidden)
    # Steps as long as AdamW's (Liu et al. 2025): one rate and one decay suit both.
    muon = (Float32Muon if on_cpu else torch.optim.Muon)(
        _groups(parameters[name] for name in parameters if name in hidden),
        config.lr, momentum=config.momentum, nesterov=config.nesterov,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = _groups(parameters[name] for name in parameters if name not in hidden)
    return [muon, torch.optim.AdamW(rest, config.lr, betas=(0.9, config.beta2), fused=True)]


def set_rates(
    optimizers: Sequence[torch.optim.Optimizer], lr: float, momentum: float | None
) -> None:
    """Before a step: each group's rate is its share of `lr`; its momentum, Adam's beta1, if given.

    lr, momentum: what `Schedule.at` says of the step.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


def hidden_matrices(network: nn.Module, head: Collection[str] | None = None) -> frozenset[str]:
    """The names of the matrices that Muon is for: those of linear layers that give no logits.

    The others are what its author leaves to AdamW: the head, embeddings, biases, norms; and
    convolutions, which torch's Muon does not take. The first layer is among them: without it the
    fashion-mnist recipe (5,400 rows, 8 epochs, one seed, torch 2.15 on a CPU) came to a validation
    loss of 0.508 and 0.502 at rates of 2e-3 and 5e-3, with it to 0.496 and 0.473, and a run took
    30 s instead of 8 s.
    head: the names of the last layer's parameters, where they are known.
    """
    if isinstance(network, Ensemble):
        return frozenset(
            f"members.{index}.{name}"
            for index, member in enumerate(network.members)
            for name in hidden_matrices(member)
        )
    matrices = [
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim == 2 and name.rpartition(".")[2] in _MATRICES
    ]
    if head is not None:
        return frozenset(matrices).difference(head)
    # A table network's head is no matrix: it has one for each member.
    return frozenset(matrices if isinstance(network, TableEnsemble) else matrices[:-1])


def _shares(network: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """By parameter's name the product of the rates whose patterns match it."""
    shares = {name: 1.0 for name, _ in network.named_parameters()}
    for pattern, rate in rates.items():
        found = [name for name in shares if fnmatchcase(name, pattern)]
        if not found:
            names = list(shares)
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            raise DataError(
                f"train.rates: no parameter is named like {pattern!r}; "
                f"there are: {', '.join(names[:_NAMES_SHOWN])}{more}"
            )
        for name in found:
            shares[name] *= rate
    if not any(shares.values()):
        raise DataError("train.rates: 0 for every parameter leaves nothing to train")
    return shares


def _groups(parameters: Iterable[tuple[nn.Parameter, float, float]]) -> list[dict[str, Any]]:
    """torch's parameter groups of (parameter, share of the rate, weight decay)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, share, decay in parameters:
        groups.setdefault((share, decay), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "share": share}
        for (share, decay), members in groups.items()
    ]
