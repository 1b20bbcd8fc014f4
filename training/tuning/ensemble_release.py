"""The networks of several trials, averaged in one graph, to a released bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from artifacts.bundle import Bundle
from artifacts.manifest import DataInfo
from artifacts.networks import DeployedClassifier
from training.batches import Batches
from training.build import build_model
from training.data import Dataset
from training.fit import Fit
from training.precision import compute_precision
from training.release import Trained, max_batch_size, release
from training.run import resolved_recipe, say
from training.schedule import resolve_schedule
from training.transfer import with_backbone_defaults
from training.tuning.after import Member, Winner
from training.tuning.ensemble import assemble


def release_ensemble(
    members: list[Member],
    winner: Winner,
    dataset: Dataset,
    info: DataInfo,
    store: Path,
    device: str,
    *,
    promote: bool,
    console: Console,
) -> Bundle:
    """Release the mean of the members' logits, beside the curves of the first.

    The manifest's recipe is the first member's, with the ensemble as its model; the study says
    which trials the others are of.
    """
    models = []
    for member in members:
        recipe = with_backbone_defaults(member.recipe)
        built = build_model(recipe, dataset, "cpu")
        assert member.result.weights is not None
        built.model.network.load_state_dict(member.result.weights)
        models.append(built.model.eval())
    config, network = assemble(
        [member.recipe.model for member in members], [model.network for model in models]
    )
    first = with_backbone_defaults(members[0].recipe)
    recipe = first.model_copy(
        update={"model": config, "train": resolve_schedule(first.train, len(dataset.train))}
    )
    model = DeployedClassifier(models[0].preprocess, network, temperature=1.0).to(device)
    where = torch.device(device)
    batches = {
        name: Batches(part, where, recipe.data.workers) for name, part in dataset.parts.items()
    }
    precision = compute_precision(network, recipe.train, where)
    resolved = resolved_recipe(recipe, device, precision, max_batch_size(recipe, dataset))
    numbers = tuple(member.trial for member in members)
    study = winner.study.model_copy(update={"members": numbers})
    fitted = Fit(members[0].result.history, members[0].result.kept_epoch, stopped_early=False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    say(console, f"model: ensemble of {len(members)}, {parameters:,} parameters")
    trained = Trained(recipe, resolved, dataset, info, model, batches, fitted, study)
    return release(trained, store, lambda line: say(console, line), promote=promote)
