"""Which parameter is moved by which optimizer, at which rate, and that it can be interrupted."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from artifacts.configs import (
    CnnNetwork,
    LinearNetwork,
    MlpNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.errors import DataError
from artifacts.networks import build_network, torchvision_network
from artifacts.steps import CategoryEncoding, Encode, NumberEncoding
from tests.test_fit import rows
from training.losses import loss_of
from training.muon import Float32Muon, orthogonalize
from training.optim import hidden_matrices, make_optimizers, set_rates
from training.recipe import TrainConfig, load_recipe
from training.schedule import Schedule

OPTIMIZERS = ["sgd", "adam", "adamw", "muon"]
ENCODE = Encode(
    inputs=(
        NumberEncoding(fill=0, center=0, scale=1, edges=(0, 1, 2), indicator=True),
        CategoryEncoding(values=tuple(range(12))),
    )
)


def mlp(hidden: tuple[int, ...] = (8, 6)) -> nn.Module:
    torch.manual_seed(1)
    return build_network(MlpNetwork(hidden=hidden, dropout=0.0), (5,), (), 3)


def table() -> nn.Module:
    torch.manual_seed(0)
    return build_network(TableNetwork(hidden=(6, 5), members=2), (2,), (ENCODE,), 3)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return build_network(CnnNetwork(channels=(4,), depth=1), (1, 4, 4), (), 2)


def by_name(network: nn.Module, optimizers: list[torch.optim.Optimizer], key: str) -> dict:
    """What each parameter's group says of `key`; every parameter is in exactly one group."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    found: dict[str, Any] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[parameter] not in found
                found[names[parameter]] = group[key]
    assert set(found) == set(names.values())
    return found


def train(
    network: nn.Module, config: TrainConfig, optimizers: list[torch.optim.Optimizer], steps: range
) -> list[float]:
    """The losses of some steps on the same rows."""
    part = rows(64)
    raw, labels = torch.from_numpy(part.raw), torch.from_numpy(part.labels)
    schedule, losses = Schedule(config, 10), []
    for step in steps:
        set_rates(optimizers, *schedule.at(step))
        loss = loss_of(network(raw), labels)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def test_settings_of_the_optimizer_arrive_and_its_steps_are_fused() -> None:
    (adam,) = make_optimizers(mlp(), TrainConfig(beta2=0.95))
    assert adam.defaults["betas"] == (0.9, 0.95) and type(adam) is torch.optim.AdamW
    (plain,) = make_optimizers(mlp(), TrainConfig(optimizer="adam"))
    assert type(plain) is torch.optim.Adam
    config = TrainConfig(optimizer="sgd", momentum=0.8, nesterov=True)
    (sgd,) = make_optimizers(mlp(), config)
    assert sgd.defaults["momentum"] == 0.8 and sgd.defaults["nesterov"]
    config = TrainConfig(optimizer="muon", beta2=0.95, momentum=0.7, nesterov=False)
    muon, rest = make_optimizers(mlp(), config)
    assert isinstance(muon, torch.optim.Muon) and type(rest) is torch.optim.AdamW
    assert muon.defaults["momentum"] == 0.7 and not muon.defaults["nesterov"]
    assert rest.defaults["betas"] == (0.9, 0.95)
    for optimizer in (adam, plain, sgd, rest):
        assert all(group["fused"] for group in optimizer.param_groups)


def test_momentum_is_what_is_usual_for_the_optimizer_unless_the_recipe_says() -> None:
    found = {name: TrainConfig(optimizer=name) for name in OPTIMIZERS}
    assert (found["sgd"].momentum, found["sgd"].nesterov) == (0.9, False)
    assert (found["muon"].momentum, found["muon"].nesterov) == (0.95, True)
    said = load_recipe("mnist", ["train.optimizer=muon", "train.momentum=0.9"]).train
    assert (said.momentum, said.nesterov) == (0.9, True)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(DataError, match=r"train: .*nesterov=true needs momentum above 0"):
        load_recipe("mnist", ["train.optimizer=sgd", "train.nesterov=true", "train.momentum=0"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_spares_norms_and_biases(optimizer: str) -> None:
    network = mlp()
    optimizers = make_optimizers(network, TrainConfig(optimizer=optimizer, weight_decay=0.5))
    decays = by_name(network, optimizers, "weight_decay")
    for name, parameter in network.named_parameters():
        assert decays[name] == (0.5 if parameter.ndim == 2 else 0.0), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_spares_all_but_the_matrices_of_linear_maps(optimizer: str) -> None:
    expected = {
        "bin_weight": 0.05, "categories.0": 0.05, "head": 0.5, "layers.0.weight": 0.5,
        "layers.3.weight": 0.5, "0.0.weight": 0.5, "4.weight": 0.5,
    }  # fmt: skip
    for network in (table(), cnn()) if optimizer == "adamw" else (table(),):
        config = TrainConfig(optimizer=optimizer, weight_decay=0.5)
        optimizers = make_optimizers(network, config)
        decays = by_name(network, optimizers, "weight_decay")
        decayed = {name: value for name, value in decays.items() if value}
        assert decayed == {name: expected[name] for name in decays if name in expected}
        quick = {name for name, share in by_name(network, optimizers, "share").items() if share > 1}
        assert quick == {"bin_weight", "categories.0"} & set(decays)


def test_what_a_parameters_rate_is_multiplied_by_is_a_product() -> None:
    network = table()
    config = TrainConfig(rates={"layers.*": 0.5, "*.weight": 0.1, "bin_weight": 3.0})
    optimizers = make_optimizers(network, config, head={"head", "head_bias"}, share=0.2)
    shares = by_name(network, optimizers, "share")
    assert shares["layers.0.weight"] == pytest.approx(0.5 * 0.1 * 0.2)
    assert shares["layers.0.bias"] == pytest.approx(0.5 * 0.2)
    # Its own rate, as an embedding's, is 4.
    assert shares["bin_weight"] == pytest.approx(4 * 3 * 0.2)
    assert shares["head"] == shares["head_bias"] == 1.0
    set_rates(optimizers, 0.01, None)
    rates = by_name(network, optimizers, "lr")
    assert rates == {name: pytest.approx(0.01 * share) for name, share in shares.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_of_0_leaves_a_part_bit_for_bit_as_it_is(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, lr=0.01, weight_decay=0.5, rates={"1.*": 0, "4.*": 0})
    network = mlp()
    before = copy.deepcopy(dict(network.named_parameters()))
    train(network, config, make_optimizers(network, config), range(5))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(("1.", "4.")), name


def test_a_pattern_that_matches_nothing_lists_the_names_there_are() -> None:
    message = r"train\.rates: no parameter is named like 'O\.\*'; there are: 1\.weight, 1\.bias, 2"
    with pytest.raises(DataError, match=message):
        make_optimizers(mlp(), TrainConfig(rates={"1.*": 0.1, "O.*": 0.1}))
    with pytest.raises(DataError, match=r", 29\.weight, 29\.bias and 42 more$"):
        make_optimizers(mlp((4,) * 20), TrainConfig(rates={"x": 1}))
    with pytest.raises(DataError, match="leaves nothing to train"):
        make_optimizers(mlp(), TrainConfig(rates={"*": 0}))


def test_rates_are_set_on_the_command_line_with_the_pattern_in_quotes() -> None:
    config = load_recipe("mnist", ['train.rates."0.*"=0.1', "train.rates.head=2"]).train
    assert config.rates == {"0.*": 0.1, "head": 2}
    with pytest.raises(DataError, match=r"train\.rates\.0\.\*: .*greater than or equal to 0"):
        load_recipe("mnist", ['train.rates."0.*"=-1'])


def test_a_backbone_has_its_share_of_the_rate() -> None:
    network = cnn()
    head = {"4.weight", "4.bias"}
    shares = by_name(network, make_optimizers(network, TrainConfig(), head, 0.25), "share")
    assert shares == {name: 1.0 if name in head else 0.25 for name in shares}


def test_momentum_that_is_given_is_beta1_of_adam_and_otherwise_all_stays() -> None:
    optimizers = make_optimizers(mlp(), TrainConfig(optimizer="muon"))
    optimizers += make_optimizers(mlp(), TrainConfig(optimizer="sgd", momentum=0.7))
    set_rates(optimizers, 0.1, None)
    muon, adamw, sgd = (optimizer.param_groups[0] for optimizer in optimizers)
    assert (muon["momentum"], adamw["betas"], sgd["momentum"]) == (0.95, (0.9, 0.999), 0.7)
    set_rates(optimizers, 0.1, 0.87)
    assert (muon["momentum"], adamw["betas"], sgd["momentum"]) == (0.87, (0.87, 0.999), 0.87)


def test_muon_has_the_matrices_before_the_last_layer() -> None:
    assert hidden_matrices(mlp()) == {"1.weight", "4.weight"}
    assert hidden_matrices(table()) == {"layers.0.weight", "layers.3.weight"}
    with torch.device("meta"):
        transformer = torchvision_network(TorchvisionNetwork(kind="torchvision:vit_b_16"), 3)
    of_a_block = {"in_proj_weight", "out_proj.weight", "mlp.0.weight", "mlp.3.weight"}
    found = hidden_matrices(transformer)
    assert len(found) == 12 * 4
    assert all(name.endswith(tuple(of_a_block)) for name in found)
    assert hidden_matrices(transformer, {"heads.head.weight", "heads.head.bias"}) == found
    network = table()
    muon, _ = make_optimizers(network, TrainConfig(optimizer="muon"))
    theirs = {parameter for group in muon.param_groups for parameter in group["params"]}
    names = {name for name, parameter in network.named_parameters() if parameter in theirs}
    assert names == hidden_matrices(network)


@pytest.mark.parametrize("kind", ["linear", "cnn"])
def test_muon_without_a_hidden_matrix_is_refused(kind: str) -> None:
    network = cnn() if kind == "cnn" else build_network(LinearNetwork(), (5,), (), 3)
    with pytest.raises(DataError, match=r"train\.optimizer: muon .* found none in this network"):
        make_optimizers(network, TrainConfig(optimizer="muon"))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_an_orthogonalized_matrix_has_the_singular_vectors_and_values_near_1(
    shape: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    inner = left.T @ found @ right.T
    values = inner.diagonal()
    assert values.min() > 0.5 and values.max() < 1.5
    assert (inner - torch.diag(values)).abs().max() < 1e-4


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_in_float32(nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(optimizer="muon", lr=0.02, weight_decay=0.3, nesterov=nesterov)

    def moved(kind: type[torch.optim.Muon]) -> list[Tensor]:
        network = mlp((16, 12))
        optimizers = make_optimizers(network, config)
        assert type(optimizers[0]) is Float32Muon
        optimizers[0].__class__ = kind
        before = copy.deepcopy(network.state_dict())
        train(network, config, optimizers, range(6))
        names = sorted(hidden_matrices(network))
        return [network.state_dict()[name] - before[name] for name in names]

    ours, theirs = moved(Float32Muon), moved(torch.optim.Muon)
    for mine, rough in zip(ours, theirs, strict=True):
        assert (mine - rough).norm() < 0.05 * rough.norm()
    # But for the precision of one function it is the same.
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", orthogonalize)
    for mine, exact in zip(ours, moved(torch.optim.Muon), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_saved_state_to_the_same_bits(
    optimizer: str, schedule: str
) -> None:
    config = TrainConfig(
        epochs=2, optimizer=optimizer, lr=0.02, schedule=schedule, nesterov=optimizer == "sgd",
        rates={"1.*": 0.5},
    )  # fmt: skip
    whole = mlp()
    losses = train(whole, config, make_optimizers(whole, config), range(20))
    assert losses[-1] < 0.6 * losses[0]
    network = mlp()
    optimizers = make_optimizers(network, config)
    train(network, config, optimizers, range(7))
    file = io.BytesIO()
    torch.save([network.state_dict(), [o.state_dict() for o in optimizers]], file)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    network = mlp()
    network.load_state_dict(weights)
    optimizers = make_optimizers(network, config)
    for fresh, state in zip(optimizers, states, strict=True):
        fresh.load_state_dict(state)
    assert train(network, config, optimizers, range(7, 20)) == losses[7:]
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_at_the_rates_of_its_kind(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, lr=0.05, epochs=4, warmup=0.5)
    network = mlp()
    losses = train(network, config, make_optimizers(network, config), range(40))
    assert np.isfinite(losses).all() and losses[-1] < 0.4 * losses[0]
