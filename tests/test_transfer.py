"""Torchvision's networks: weights that are taken over, defaults that come with them, and sizes."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from artifacts.configs import CnnNetwork, TorchvisionNetwork
from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.networks import build_network
from artifacts.pixels import _to_size
from artifacts.steps import Normalize, Reorder, Scale
from training.data import Dataset, Part
from training.encoding import preprocessing
from training.recipe import DataConfig, PixelsConfig, Recipe, TransferConfig
from training.run import _parameters_line, resolved_recipe
from training.transfer import head_names, load_backbone, weights_digest, with_backbone_defaults

NAME = "squeezenet1_1"
HEAD = {"classifier.1.weight", "classifier.1.bias"}


def recipe(
    weights: str = "none", name: str = NAME, data: dict[str, Any] | None = None, **transfer: Any
) -> Recipe:
    return Recipe(
        name="t",
        data=DataConfig(source="images", path="somewhere", **(data or {})),
        model=TorchvisionNetwork(kind=f"torchvision:{name}"),
        transfer=TransferConfig(weights=weights, **transfer),
    )


def network(outputs: int = 1000, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = TorchvisionNetwork(kind=f"torchvision:{NAME}")
    return build_network(config, (3, 32, 32), (), outputs)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return network().state_dict()


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pth", "w.pt", "nested.pth"])
def test_weights_of_a_file_are_taken_over_all_but_the_head(
    tmp_path: Path, state: dict[str, torch.Tensor], kind: str
) -> None:
    path = tmp_path / kind
    if kind == "w.safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested.pth" else state, path)
    ours = network(3, seed=2)
    fresh = {name: value.clone() for name, value in ours.state_dict().items()}
    chosen = recipe(str(path), freeze_epochs=2, backbone_lr=0.3)
    backbone = load_backbone(ours, chosen)
    assert backbone is not None
    assert backbone.head == HEAD and (backbone.freeze_epochs, backbone.lr) == (2, 0.3)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, fresh[name] if name in HEAD else state[name]), name
    assert load_backbone(ours, recipe()) is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_digest(chosen) == digest
    content = resolved_recipe(chosen, "cpu", "float32", 8)
    assert content["transfer"]["weights"] == kind
    assert content["transfer"]["weights_sha256"] == digest
    assert str(tmp_path) not in str(content) and "somewhere" not in str(content)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/nowhere/at/all"),))


def test_weights_that_cannot_be_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    first = "features.0.weight"
    cases: dict[str, tuple[Any, str]] = {
        "shape.pth": (
            {**state, first: torch.zeros(64, 1, 3, 3)},
            rf"shape.pth: {first}: expected shape \[64, 3, 3, 3\], found \[64, 1, 3, 3\]",
        ),
        "missing.pth": (
            {name: value for name, value in state.items() if name != first},
            rf"not weights of {NAME}: missing {first}, unknown none",
        ),
        "unknown.pth": ({**state, "more": state[first]}, "missing none, unknown more"),
        "prefixed.pth": (
            {f"module.{name}": value for name, value in state.items()},
            r"missing features.0.weight, .* more, unknown module\.features",
        ),
        "evil.pth": (Evil(), "evil.pth: cannot be read: it holds more than tensors"),
        "list.pth": ([state[first]], "expected a state_dict of tensors"),
        "numbers.pth": ({"lr": 3}, "expected a state_dict of tensors"),
        "keys.pth": ({3: state[first]}, "expected a state_dict of tensors"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(DataError, match=message) as error:
            load_backbone(network(3), recipe(str(tmp_path / name)))
        assert "\n" not in str(error.value)
    for name, raw in (
        ("bad.safetensors", b"no weights"),
        ("bad.pth", b"no weights"),
        ("pickled.pt", pickle.dumps(Evil())),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            load_backbone(network(3), recipe(str(tmp_path / name)))
    with pytest.raises(DataError, match=r"no such file: .*none\.pth"):
        load_backbone(network(3), recipe(str(tmp_path / "none.pth")))


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        DataError, match=r"default, or one of IMAGENET1K_V1, DEFAULT; found 'IMAGENET'"
    ):
        with_backbone_defaults(recipe("IMAGENET"))
    with pytest.raises(DataError, match=r"no classification network 'resnet19'; .*resnet18"):
        with_backbone_defaults(recipe(name="resnet19"))
    other = recipe("default").model_copy(update={"model": CnnNetwork()})
    with pytest.raises(DataError, match="only for torchvision networks, the model is cnn"):
        with_backbone_defaults(other)
    plain = other.model_copy(update={"transfer": TransferConfig()})
    assert with_backbone_defaults(plain) == plain


def test_data_is_what_torchvisions_preset_says_unless_the_recipe_does() -> None:
    from torchvision import models

    filled = with_backbone_defaults(recipe("default", name="resnet18")).data
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    assert filled.size == (224, 224) and filled.resize == preset.resize_size[0] == 256
    assert filled.channels == 3 and filled.interpolation == preset.interpolation.value
    assert filled.pixels == PixelsConfig(mean=tuple(preset.mean), std=tuple(preset.std))
    # Random weights know no pixel statistics.
    assert with_backbone_defaults(recipe()).data.pixels is None
    said = {
        "size": (40, 48), "interpolation": "bicubic", "channels": 3,
        "pixels": PixelsConfig(order="bgr", mean=(1.0,) * 3, std=(2.0,) * 3),
    }  # fmt: skip
    kept = with_backbone_defaults(recipe("default", data=said)).data
    assert {key: getattr(kept, key) for key in said} == said and kept.resize is None
    bicubic = with_backbone_defaults(recipe(name="efficientnet_b0", data={"size": (40, 48)})).data
    assert bicubic.size == (40, 48) and bicubic.interpolation == "bicubic"
    bilinear = recipe(name="efficientnet_b0", data={"interpolation": "bilinear"})
    assert with_backbone_defaults(bilinear).data.interpolation == "bilinear"
    stretched = with_backbone_defaults(recipe(data={"fit": "stretch"})).data
    assert stretched.resize is None and stretched.size == (224, 224)
    centered = with_backbone_defaults(recipe("default", name="googlenet")).data.pixels
    assert centered == PixelsConfig(mean=(0.5,) * 3, std=(0.5,) * 3)


def test_pixels_of_the_recipe_are_the_manifests_steps() -> None:
    raw = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    part = Part(raw, np.arange(4) % 2)
    spec = ImageInput(channels=3, height=32, width=32)
    dataset = Dataset("made", spec, ("a", "b"), part, part, part)
    pixels = PixelsConfig(order="bgr", factor=1.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    chosen = with_backbone_defaults(recipe("default", data={"pixels": pixels}))
    assert preprocessing(dataset, chosen.model, chosen.data.pixels) == (
        Reorder(channels=(2, 1, 0)),
        Scale(factor=1.0),
        Normalize(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)),
    )


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (NAME, HEAD),
        ("resnet18", {"fc.weight", "fc.bias"}),
        ("vit_b_32", {"heads.head.weight", "heads.head.bias"}),
    ],
)
def test_the_head_is_the_last_layer(name: str, head: set[str]) -> None:
    assert head_names(TorchvisionNetwork(kind=f"torchvision:{name}")) == head


def test_what_is_trained_is_said(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    ours = network(3)
    assert _parameters_line(ours, None) == "724,035 parameters, all trained"
    for epochs, words in ((1, "epoch"), (2, "2 epochs")):
        chosen = recipe(str(tmp_path / "w.safetensors"), freeze_epochs=epochs)
        line = _parameters_line(ours, load_backbone(ours, chosen))
        assert line == (
            f"724,035 parameters, 1,539 trained and 722,496 frozen for the first {words}"
        )
    line = _parameters_line(ours, load_backbone(ours, recipe(str(tmp_path / "w.safetensors"))))
    assert line == "724,035 parameters, all trained; all but the head at 0.1 of the rate"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_b_32", (3, 64, 64), "vit_b_32 cannot take .* 64 x 64 pixels .*Expected 224"),
        ("inception_v3", (3, 32, 40), "inception_v3 cannot take .* 32 x 40 pixels"),
        (NAME, (1, 64, 64), "cannot take pictures of 1 channels"),
    ],
)
def test_pictures_that_do_not_fit_a_network_are_named(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        build_network(TorchvisionNetwork(kind=f"torchvision:{name}"), shape, (), 3)
    assert "\n" not in str(error.value)


def test_looking_whether_pictures_fit_changes_nothing() -> None:
    from torchvision import models

    torch.manual_seed(1)
    plain = models.get_model(NAME, weights=None, num_classes=1000)
    after = torch.rand(1)
    ours = network()
    assert torch.equal(torch.rand(1), after) and ours.training
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_dropout_is_for_the_networks_that_take_one() -> None:
    config = TorchvisionNetwork(kind="torchvision:resnet18", dropout=0.3)
    with pytest.raises(DataError, match=r"model\.dropout: resnet18 takes none"):
        build_network(config, (3, 32, 32), (), 3)
    config = TorchvisionNetwork(kind=f"torchvision:{NAME}", dropout=0.3)
    assert build_network(config, (3, 32, 32), (), 3).classifier[0].p == 0.3


SIZES = [(37, 53), (53, 37), (224, 225), (9, 100), (40, 40), (5, 7), (1, 1), (3, 11), (641, 333)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "height", "width"), [(40, 32, 32), (37, 37, 36), (33, 20, 31), (232, 224, 224)]
)
def test_a_picture_is_resized_and_cut_as_torchvision_does(
    interpolation: str, resize: int, height: int, width: int
) -> None:
    from torchvision.transforms import functional

    mode = functional.InterpolationMode(interpolation)
    for channels in (1, 3):
        spec = ImageInput(
            channels=channels, height=height, width=width, resize=resize,
            interpolation=interpolation,
        )  # fmt: skip
        for rows, columns in SIZES:
            shape = (rows, columns) if channels == 1 else (rows, columns, 3)
            pixels = np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)
            image = Image.fromarray(pixels)
            resized = functional.resize(image, [resize], interpolation=mode)
            expected = functional.center_crop(resized, [height, width])
            np.testing.assert_array_equal(_to_size(image, spec), expected)
