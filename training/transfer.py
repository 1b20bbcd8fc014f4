"""Torchvision's networks with weights of their own: what these expect, and taking them over."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.configs import TorchvisionNetwork
from artifacts.errors import DataError
from artifacts.networks import torchvision_network
from training.fit import Backbone
from training.recipe import PixelsConfig, Recipe

_FILES = (".pt", ".pth", ".safetensors")
# Heads that some of torchvision's weights have beside the last one, for training alone.
_SECOND_HEADS = ("aux1.", "aux2.", "AuxLogits.")
# Their torchvision weights expect pixels from -1 to 1 (`transform_input` there).
_CENTERED = ("googlenet", "inception_v3")


def with_backbone_defaults(recipe: Recipe) -> Recipe:
    """The recipe with what its torchvision network expects, where the recipe does not say.

    Size, colours and interpolation are those of torchvision's preset for the network; pixel
    statistics too, unless the weights are random.
    """
    if not isinstance(recipe.model, TorchvisionNetwork):
        if recipe.transfer.weights != "none":
            raise DataError(
                f"transfer.weights: only for torchvision networks, the model is {recipe.model.kind}"
            )
        return recipe
    name, data = recipe.model.name, recipe.data
    # Says first whether there is such a network.
    torchvision_network_names(recipe.model)
    from torchvision import models

    choice = _torchvision_weights(recipe) or models.get_model_weights(name).DEFAULT
    preset = choice.transforms()
    update: dict[str, Any] = {"channels": data.channels or 3}
    if data.size is None:
        (side,), (resize,) = preset.crop_size, preset.resize_size
        update["size"] = (side, side)
        if data.fit == "crop":
            update["resize"] = data.resize or resize
    if "interpolation" not in data.model_fields_set:
        update["interpolation"] = preset.interpolation.value
    if data.pixels is None and recipe.transfer.weights != "none":
        centered = name in _CENTERED
        mean = (0.5,) * 3 if centered else tuple(preset.mean)
        std = (0.5,) * 3 if centered else tuple(preset.std)
        update["pixels"] = PixelsConfig(mean=mean, std=std)
    return recipe.model_copy(update={"data": data.model_copy(update=update)})


def load_backbone(network: nn.Module, recipe: Recipe) -> Backbone | None:
    """Load the weights that [transfer] names into `network`, all but its head, in place.

    Returns None where there are none. Raises DataError for weights of another network.
    """
    if recipe.transfer.weights == "none":
        return None
    assert isinstance(recipe.model, TorchvisionNetwork)
    head = head_names(recipe.model)
    given = {
        name: value
        for name, value in _read_weights(recipe).items()
        if name not in head and not name.startswith(_SECOND_HEADS)
    }
    expected = {name: value for name, value in network.state_dict().items() if name not in head}
    label = f"transfer.weights {Path(recipe.transfer.weights).name}"
    for name, value in given.items():
        if name in expected and value.shape != expected[name].shape:
            raise DataError(
                f"{label}: {name}: expected shape {list(expected[name].shape)}, "
                f"found {list(value.shape)}"
            )
    absent = [n for n in expected if n not in given and not n.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in expected]
    if absent or unknown:
        raise DataError(
            f"{label}: not weights of {recipe.model.name}: missing {_some(absent)}, "
            f"unknown {_some(unknown)}"
        )
    network.load_state_dict(given, strict=False)
    transfer = recipe.transfer
    return Backbone(head, freeze_epochs=transfer.freeze_epochs, lr=transfer.backbone_lr)


def head_names(config: TorchvisionNetwork) -> frozenset[str]:
    """The parameters whose shape depends on the number of outputs: the last layer's."""
    with torch.device("meta"):
        ours = torchvision_network(config, 2).state_dict()
        other = torchvision_network(config, 3).state_dict()
    return frozenset(name for name in ours if ours[name].shape != other[name].shape)


def weights_digest(recipe: Recipe) -> str | None:
    """sha256 of the file that [transfer] starts from, None where it is none."""
    if not recipe.transfer.weights.endswith(_FILES):
        return None
    with Path(recipe.transfer.weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torchvision_network_names(config: TorchvisionNetwork) -> None:
    """Raise DataError unless torchvision has this network."""
    with torch.device("meta"):
        torchvision_network(config, 2)


def _torchvision_weights(recipe: Recipe) -> Any:
    """The member of torchvision's enum that the recipe names, None for a file or none."""
    from torchvision import models

    assert isinstance(recipe.model, TorchvisionNetwork)
    wanted = recipe.transfer.weights
    if wanted == "none" or wanted.endswith(_FILES):
        return None
    known = models.get_model_weights(recipe.model.name)
    name = "DEFAULT" if wanted == "default" else wanted
    if name not in known.__members__:
        raise DataError(
            f"transfer.weights: expected none, a file that ends in {', '.join(_FILES)}, default, "
            f"or one of {', '.join(known.__members__)}; found {wanted!r}"
        )
    return known[name]


def _read_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    choice = _torchvision_weights(recipe)
    if choice is not None:
        try:
            state: Any = choice.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise DataError(
                f"transfer.weights {choice.name}: cannot be downloaded from {choice.url}: {error}; "
                "download the file elsewhere and give its path"
            ) from error
        return dict(state)
    path = Path(recipe.transfer.weights)
    if not path.is_file():
        raise DataError(f"transfer.weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    # safetensors has an exception of its own, which shares no base with torch's.
    except Exception as error:
        reason = (
            "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else error
        )
        raise DataError(f"transfer.weights {path.name}: cannot be read: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise DataError(f"transfer.weights {path.name}: expected a state_dict of tensors")
    return state


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
