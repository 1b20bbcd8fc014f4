"""The networks of tables and pictures: what they answer, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from artifacts.configs import (
    CnnNetwork,
    LinearNetwork,
    MlpNetwork,
    ResnetNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.ensembles import TableEnsemble
from artifacts.errors import DataError
from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from artifacts.steps import CategoryEncoding, Encode, NumberEncoding


def number(edges: int, indicator: bool = False) -> NumberEncoding:
    rising = tuple(float(edge) for edge in range(edges))
    return NumberEncoding(fill=0, center=1, scale=2, edges=rising, indicator=indicator)


def category(size: int) -> CategoryEncoding:
    return CategoryEncoding(values=tuple(range(-1, size - 1)))


@st.composite
def encodings(draw: st.DrawFn) -> Encode:
    numbers = st.builds(number, st.sampled_from([0, 2, 3, 6]), st.booleans())
    categories = st.builds(category, st.sampled_from([1, 2, 8, 9, 40]))
    return Encode(inputs=tuple(draw(st.lists(numbers | categories, min_size=1, max_size=5))))


def raw_rows(encode: Encode, rows: int = 7) -> Tensor:
    raw = torch.randint(-1, 12, (rows, len(encode.inputs))).double()
    return torch.where(raw < 0, torch.nan, raw)


def table(encode: Encode, outputs: int = 3, **settings: Any) -> TableEnsemble:
    torch.manual_seed(0)
    config = TableNetwork(
        **{"hidden": (6, 5), "members": 4, "dropout": 0.0, "category_dropout": 0.0, **settings}
    )
    network = build_network(config, (len(encode.inputs),), (encode,), max(2, outputs))
    assert isinstance(network, TableEnsemble)
    for name, parameter in network.named_parameters():
        if name == "bin_weight":
            # It starts at 0.
            nn.init.normal_(parameter)
    return network


@settings(deadline=None)
@given(encode=encodings(), members=st.sampled_from([1, 4]), outputs=st.sampled_from([1, 3]))
def test_the_answer_is_the_mean_of_the_members(encode: Encode, members: int, outputs: int) -> None:
    network = table(encode, outputs, members=members)
    inputs = Preprocess((encode,), (len(encode.inputs),))(raw_rows(encode))
    each = network(inputs)
    assert each.shape == (7, members, outputs)
    network.eval()
    answer = network(inputs)
    assert answer.shape == (7, outputs)
    torch.testing.assert_close(answer, each.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_members_differ_from_the_start() -> None:
    encode = Encode(inputs=(number(3), category(3)))
    each = table(encode)(Preprocess((encode,), (2,))(raw_rows(encode)))
    assert each.std(dim=1).min() > 1e-3


@pytest.mark.parametrize("size", [3, 20])
def test_a_category_never_seen_is_answered_as_a_hidden_one_was_trained(size: int) -> None:
    encode = Encode(inputs=(category(size), number(3)))
    preprocess = Preprocess((encode,), (2,))
    network = table(encode, category_dropout=0.999999)
    raw = torch.tensor([[0.0, 1.5], [1.0, 1.5], [999.0, 1.5]], dtype=torch.float64)
    inputs = preprocess(raw)
    assert (inputs[2, -size:] == 0).all() and (inputs[:2, -size:].sum(dim=1) == 1).all()
    hidden = network(inputs).mean(dim=1)
    torch.testing.assert_close(hidden[0], hidden[1])
    network.eval()
    answer = network(inputs)
    assert answer.isfinite().all() and not torch.allclose(answer[0], answer[1])
    torch.testing.assert_close(answer[2], hidden[0], rtol=1e-4, atol=1e-5)


def test_categories_are_hidden_as_often_as_is_said_and_never_when_answering() -> None:
    encode = Encode(inputs=(category(3),))
    network = table(encode, category_dropout=0.3)
    inputs = Preprocess((encode,), (1,))(torch.ones(4000, 1, dtype=torch.float64))
    torch.manual_seed(0)
    hidden = (network._embedded(inputs).sum(dim=1) == 0).float().mean()
    assert hidden == pytest.approx(0.3, abs=0.03)
    network.eval()
    assert (network._embedded(inputs).sum(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("config", "smallest"),
    [
        (CnnNetwork(channels=(4, 4, 4), depth=1), 8),
        (ResnetNetwork(channels=(4, 4, 4), pairs=(1, 0)), 4),
    ],
)
@pytest.mark.parametrize("classes", [2, 5])
def test_pictures_too_small_for_the_pooling_are_named(
    config: CnnNetwork | ResnetNetwork, smallest: int, classes: int
) -> None:
    network = build_network(config, (3, smallest, smallest + 3), (), classes)
    answer = network(torch.zeros(2, 3, smallest, smallest + 3))
    assert answer.shape == (2, 1 if classes == 2 else classes)
    with pytest.raises(
        DataError, match=rf"of at least {smallest} pixels, found 40 x {smallest - 1}"
    ):
        build_network(config, (3, 40, smallest - 1), (), classes)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_a_cnn_has_the_blocks_that_its_recipe_says(pooling: str) -> None:
    config = CnnNetwork(channels=(4, 6), depth=2, pooling=pooling, dropout=0.5)
    network = build_network(config, (1, 8, 8), (), 3)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 4, 6, 6]
    assert sum(isinstance(m, nn.MaxPool2d) for m in network.modules()) == 2
    last = nn.AdaptiveAvgPool2d if pooling == "average" else nn.AdaptiveMaxPool2d
    assert isinstance(network[4], last) and network[6].p == 0.5


def test_a_resnet_has_the_pairs_that_its_recipe_says() -> None:
    config = ResnetNetwork(channels=(4, 5, 6), pairs=(2, 0))
    network = build_network(config, (3, 8, 8), (), 3)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == [
        "Sequential", "Sequential", "ResidualPair", "ResidualPair", "Sequential",
        "AdaptiveMaxPool2d", "Flatten", "Linear",
    ]  # fmt: skip
    network.eval()
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(network[2](x), x + network[2].blocks(x))
    with pytest.raises(ValueError, match="pairs: expected 2 counts, found 3"):
        ResnetNetwork(channels=(4, 5, 6), pairs=(2, 0, 1))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (TableNetwork(), (3, 8, 8), "a table network takes tables, found pictures"),
        (CnnNetwork(), (5,), "cnn takes pictures, found a table"),
        (ResnetNetwork(), (5,), "resnet takes pictures, found a table"),
        (TorchvisionNetwork(kind="torchvision:resnet18"), (5,), "takes pictures, found a table"),
    ],
)
def test_a_network_of_another_kind_of_data_is_refused(
    config: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_network(config, shape, (), 3)


@pytest.mark.parametrize("config", [LinearNetwork(), MlpNetwork(hidden=(4,))])
def test_plain_networks_take_encoded_tables(config: Any) -> None:
    encode = Encode(inputs=(number(4, indicator=True), category(5)))
    network = build_network(config, (2,), (encode,), 3).eval()
    answer = network(Preprocess((encode,), (2,))(raw_rows(encode)))
    assert answer.shape == (7, 3) and answer.isfinite().all()
