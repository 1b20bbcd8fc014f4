"""A recipe and its data -> the network that is about to be trained, within the exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from artifacts.networks import DeployedClassifier, build_network
from artifacts.preprocess import Preprocess
from artifacts.steps import Step
from training.data import Dataset
from training.encoding import preprocessing
from training.fit import Backbone
from training.recipe import Recipe
from training.transfer import load_backbone


@dataclass(frozen=True)
class Untrained:
    """backbone: the part of the network that came with weights of its own."""

    model: DeployedClassifier
    backbone: Backbone | None


def build_model(
    recipe: Recipe, dataset: Dataset, device: str, steps: Sequence[Step] | None = None
) -> Untrained:
    """The model on `device`, at temperature 1, its weights drawn from the recipe's seed.

    steps: what `training.encoding.preprocessing` gives for this recipe and set, where it is known.
    Raises DataError where the network does not fit the data.
    """
    torch.manual_seed(recipe.train.seed)
    if steps is None:
        steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
    network = build_network(recipe.model, dataset.input.shape, steps, len(dataset.labels))
    backbone = load_backbone(network, recipe)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = Preprocess(steps, dataset.input.shape)
    return Untrained(DeployedClassifier(preprocess, network, temperature=1.0).to(device), backbone)
