"""What preflight lets pass, what it stops and how it says so, and that it leaves no trace."""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from typer.testing import CliRunner

from artifacts.configs import CnnNetwork, LinearNetwork, MlpNetwork, NetworkConfig
from artifacts.errors import DataError
from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from artifacts.steps import CategoryEncoding, Encode, Normalize, NumberEncoding, Scale, Step
from parityline import app
from training.batches import Batches
from training.data import Dataset, Part, load_dataset
from training.encoding import preprocessing
from training.fit import Backbone, fit
from training.memorize import RATES, STEPS, independent_rows, memorize
from training.preflight import class_by_class, copy_without_dropout, preflight
from training.recipe import TrainConfig, load_recipe
from training.run import run

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=32)
PLAIN = MlpNetwork(hidden=(32,), dropout=0.0, batch_norm=False)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(load_recipe("digits").data)


def check(
    network: nn.Module,
    part: Part,
    classes: int,
    steps: tuple[Step, ...] | nn.Module,
    **options: object,
) -> str:
    """Preflight without a clock, so that no verdict depends on the machine."""
    preprocess = steps if isinstance(steps, nn.Module) else Preprocess(steps, part.raw.shape[1:])
    settings = {"config": CONFIG, "seconds": math.inf, **options}
    return preflight(network, preprocess, Batches(part, CPU), classes, **settings)


def made(
    data: Dataset, model: NetworkConfig = PLAIN, seed: int = 0
) -> tuple[nn.Module, tuple[Step, ...]]:
    torch.manual_seed(seed)
    steps = preprocessing(data, model)
    return build_network(model, data.input.shape, steps, len(data.labels)), steps


def table(rows: int = 200, columns: int = 10, classes: int = 3, seed: int = 0) -> Part:
    """Noise, with labels that have nothing to do with it."""
    generator = np.random.default_rng(seed)
    raw = generator.normal(0, 1, (rows, columns))
    return Part(raw, generator.integers(0, classes, rows))


def small(columns: int = 10, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, outputs))


class ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@pytest.mark.parametrize("name", ["digits", "digits-cnn", "breast-cancer"])
def test_the_builtin_recipes_learn_8_rows(name: str) -> None:
    recipe = load_recipe(name)
    data = load_dataset(recipe.data)
    network, steps = made(data, recipe.model)
    line = check(network, data.train, len(data.labels), steps, config=recipe.train)
    pattern = r"preflight: 8 of 8 rows learned in \d+ steps?; loss at the start \d\.\d\d \(ln "
    assert re.match(pattern, line), line


@pytest.mark.parametrize(
    "model",
    [LinearNetwork(), MlpNetwork(hidden=(3,)), CnnNetwork(channels=(4,), depth=1, dropout=0.5)],
)
def test_other_networks_that_can_be_trained_pass(digits: Dataset, model: NetworkConfig) -> None:
    network, steps = made(digits, model)
    assert "ln 10 = 2.30" in check(network, digits.train, 10, steps)


def test_table_networks_pass_with_missing_cells_and_members() -> None:
    part = table(classes=2)
    part.raw[::3, 2] = np.nan
    torch.manual_seed(0)
    number = NumberEncoding(fill=0, center=0, scale=1, edges=(-2.0, -1.0, 0.0, 1.0, 2.0))
    steps = (Encode(inputs=(number.model_copy(update={"indicator": True}),) + (number,) * 9),)
    network = build_network(load_recipe("table").model, (10,), steps, 2)
    assert "8 of 8 rows learned" in check(network, part, 2, steps)


def test_nothing_is_changed_and_the_run_after_it_ends_with_the_same_weights(
    digits: Dataset,
) -> None:
    model = MlpNetwork(hidden=(16,), dropout=0.3)
    ends = []
    for first in (False, True):
        network, steps = made(digits, model)
        network[1].eval()
        network[0].requires_grad_(False)
        network[-1].bias.requires_grad_(False)
        before = copy.deepcopy(network.state_dict())
        modes = [module.training for module in network.modules()]
        trained = [value.requires_grad for value in network.parameters()]
        generator = torch.get_rng_state()
        if first:
            check(network, digits.train, 10, steps)
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert [module.training for module in network.modules()] == modes
        assert [value.requires_grad for value in network.parameters()] == trained
        assert all(value.grad is None for value in network.parameters())
        assert torch.equal(torch.get_rng_state(), generator)
        parts = (Batches(part, CPU) for part in (digits.train, digits.validation))
        fit(network, Preprocess(steps, (1, 8, 8)), *parts, CONFIG, lambda *_: None)
        ends.append(network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Noisy(nn.Module):
    """Draws random numbers, as a network with its own kind of dropout would."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 1e-3 * torch.randn_like(x))


def test_random_numbers_drawn_in_it_are_given_back() -> None:
    network = Noisy(small())
    generator = torch.get_rng_state()
    check(network, table(), 3, ToFloat32())
    assert torch.equal(torch.get_rng_state(), generator)


def test_pixels_that_are_not_scaled_are_named_with_their_range(digits: Dataset) -> None:
    network, _ = made(digits)
    with pytest.raises(
        DataError,
        match=r"loss at the start is \d{2,3}.*expected about ln 10 = 2\.30.*from 0 to 255",
    ):
        check(network, digits.train, 10, (Scale(factor=1.0),))


def test_weights_that_explode_or_are_no_numbers_are_named(digits: Dataset) -> None:
    network, steps = made(digits)
    with torch.no_grad():
        network[-1].weight.mul_(1000)
    with pytest.raises(DataError, match=r"loss at the start is .*model.init"):
        check(network, digits.train, 10, steps)
    with torch.no_grad():
        network[-1].weight[3, 4] = math.nan
    with pytest.raises(DataError, match=r"loss at the start is nan: not finite are 3\.weight"):
        check(network, digits.train, 10, steps)


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_a_label_out_of_range_is_named_with_its_row(label: int) -> None:
    part = table()
    part.labels[[41, 60]] = label
    with pytest.raises(
        DataError, match=rf"row 41 .*from 0 to 2, found {label} \(labels out of range: 2\)"
    ):
        check(small(), part, 3, ToFloat32())


def test_one_class_is_none() -> None:
    part = table()
    part.labels[:] = 1
    with pytest.raises(DataError, match=r"at least two classes, found 200 rows of the classes \[1"):
        check(small(), part, 3, ToFloat32())


@pytest.mark.parametrize(
    ("value", "place"), [(math.nan, (17, 3)), (math.inf, (199, 0)), (-math.inf, (0, 9))]
)
def test_a_value_that_is_no_number_is_named_with_its_row_and_place(
    value: float, place: tuple[int, int]
) -> None:
    part = table()
    part.raw[place] = value
    # A later one is not the first.
    part.raw[199, 0] = value
    steps = (Normalize(mean=(0.0,) * 10, std=(1.0,) * 10),)
    with pytest.raises(
        DataError,
        match=rf"row {place[0]} .*found {value:g} at \[{place[1]}\]; raw, {value:g} at "
        rf"\[{place[1]}\]",
    ):
        check(small(), part, 3, steps)


def test_what_overflows_float32_only_after_preprocessing_is_found() -> None:
    part = table(rows=3000)
    part.raw[2500, 4] = 1e39
    with pytest.raises(DataError, match=r"row 2500 .*found inf at \[4\]; raw, it has values from"):
        check(small(), part, 3, ToFloat32())


def test_pixels_are_checked_by_what_the_preprocessing_makes_of_them(digits: Dataset) -> None:
    network, _ = made(digits)
    steps = (Scale(factor=1e38), Scale(factor=1.0))
    with pytest.raises(DataError, match=r"row 0 .*found inf at \[0, \d, \d\]; raw, it has values"):
        check(network, digits.train, 10, steps)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        DataError, match=r"network cannot take .*float32 \[64, 10\]: .*\(64x10 and 7x32\)"
    ):
        check(small(columns=7), table(), 3, ToFloat32())
    steps = (Normalize(mean=(0.0,) * 4, std=(1.0,) * 4),)
    with pytest.raises(DataError, match=r"preprocessing cannot take float64 \[64, 10\]: The size"):
        check(small(), table(), 3, steps)
    with pytest.raises(DataError, match=r"expected logits \[64, 3\] .*found float32 \[64, 4\]"):
        check(small(outputs=4), table(), 3, ToFloat32())


class Detached(nn.Module):
    def __init__(self, detach: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.detach = nn.Linear(10, 32), nn.Linear(32, 3), detach

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.detach(self.body(x).relu()))


def test_a_layer_that_is_cut_off_from_the_loss_is_named() -> None:
    with pytest.raises(
        DataError, match=r"no gradient reaches 2 of 4 parameters: body\.weight, body\.bias: "
    ):
        check(Detached(lambda x: x.detach()), table(), 3, ToFloat32())
    frozen = Detached(lambda x: x.detach())
    frozen.body.requires_grad_(False)
    assert "learned" in check(frozen, table(), 3, ToFloat32())


def test_a_network_of_which_nothing_is_trained_yet_learns_8_rows_all_the_same() -> None:
    network = small().requires_grad_(False)
    assert "8 of 8 rows learned" in check(network, table(), 3, ToFloat32())


def test_gradients_of_zero_are_named() -> None:
    network = small()
    with torch.no_grad():
        network[0].bias.fill_(-1e6)
    with pytest.raises(
        DataError, match=r"gradient of 3 of 4 parameters is zero on 4 .*0\.weight, 0\.bias, 2\.w"
    ):
        check(network, table(), 3, ToFloat32())


def test_gradients_that_are_no_numbers_are_named() -> None:
    network = Detached(lambda x: x + (x * 0).sqrt())
    with pytest.raises(DataError, match=r"gradient of 2 of 4 .* not finite: body\.weight"):
        check(network, table(), 3, ToFloat32())


class TakenAway(nn.Linear):
    """Its bias gets a gradient of zeros, as before a batch norm without rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + (self.bias - self.bias)


def test_a_head_that_starts_at_zero_and_biases_before_a_norm_are_no_faults() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(TakenAway(10, 32), nn.ReLU(), nn.Linear(32, 3))
    nn.init.zeros_(network[2].weight)
    assert "8 of 8 rows learned" in check(network, table(), 3, ToFloat32())


def test_of_a_backbone_that_stays_frozen_only_the_head_needs_a_gradient() -> None:
    network = Detached(lambda x: x.detach())
    head = frozenset({"head.weight", "head.bias"})
    for freeze_epochs in (2, 100):
        backbone = Backbone(head, freeze_epochs=freeze_epochs, lr=0.1)
        assert "learned" in check(network, table(), 3, ToFloat32(), backbone=backbone)
    backbone = Backbone(head, freeze_epochs=1, lr=0.1)
    with pytest.raises(DataError, match=r"no gradient reaches 2 of 4"):
        check(network, table(), 3, ToFloat32(), backbone=backbone)


class Deaf(nn.Module):
    """All its parameters are trained, and its input is not heard."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.ones_like(x))


def test_a_network_that_ignores_its_input_is_found() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        DataError,
        match=r"8 rows cannot be learned .*same answer for every row gives 1\.0\d*\).*cut off from",
    ):
        check(Deaf(), table(), 3, ToFloat32())


def test_inputs_that_are_all_alike_are_found(digits: Dataset) -> None:
    raw = np.full_like(digits.train.raw, 7)
    network, _ = made(digits)
    with pytest.raises(
        DataError, match=r"64 of 10 classes that are alike .*from 0\.7 to 0\.7, .*deviation 0"
    ):
        check(network, Part(raw, digits.train.labels), 10, (Scale(factor=0.1),))


@pytest.mark.parametrize("columns", [1, 2])
def test_in_few_dimensions_fewer_rows_are_to_be_learned(columns: int) -> None:
    network = small(columns=columns)
    line = check(network, table(columns=columns), 3, ToFloat32())
    assert f"{columns + 1} of {columns + 1} rows learned" in line


def test_rows_that_contradict_each_other_are_not_chosen() -> None:
    part = table(rows=400)
    part.raw[:] = part.raw[np.arange(400) % 12]
    assert "8 of 8 rows learned" in check(small(), part, 3, ToFloat32())


def test_the_rows_to_be_learned_differ_and_have_all_the_classes_there_are() -> None:
    inputs = torch.from_numpy(table(rows=50).raw)
    labels = torch.tensor([0] * 40 + [1] * 10)
    inputs[1] = inputs[0]
    rows = independent_rows(inputs, labels, 8)
    assert len(rows) == 8 and rows.unique().numel() == 8 and not {0, 1} <= set(rows.tolist())
    assert torch.bincount(labels[rows]).tolist() == [4, 4]
    points = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    rows = independent_rows(points, torch.tensor([0, 1, 0, 0]), 8).tolist()
    assert rows[0] == 1 and rows[1] in (2, 3) and len(rows) == 2
    assert len(independent_rows(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]), 8)) == 1


def test_rows_are_looked_at_class_by_class() -> None:
    labels = torch.tensor([0] * 20 + [2] * 3 + [5] * 2)
    order = class_by_class(labels, seed=0)
    assert order.sort().values.tolist() == list(range(25))
    assert labels[order][:9].tolist() == [0, 2, 5, 0, 2, 5, 0, 2, 0]
    assert torch.equal(order, class_by_class(labels, seed=0))
    assert not torch.equal(order, class_by_class(labels, seed=1))


def test_a_clock_that_has_run_out_is_no_failure() -> None:
    torch.manual_seed(0)
    line = check(Deaf(), table(), 3, ToFloat32(), seconds=-1.0)
    assert "in 0 steps, when its time was over: no verdict" in line


def test_learning_by_heart_stops_at_the_first_rate_that_does_it_and_tries_all_otherwise() -> None:
    cast = torch.enable_grad
    x, y = torch.randn(8, 10), torch.arange(8) % 2
    found = memorize(small(outputs=2), x, y, cast, math.inf)
    assert found.learned and found.right == 8 and 0 < found.steps < STEPS and not found.failed
    calls = 0

    def counted(*_: object) -> None:
        nonlocal calls
        calls += 1

    deaf = nn.Sequential(nn.Linear(10, 2))
    deaf.register_forward_hook(counted)
    found = memorize(deaf, torch.ones(8, 10), y, cast, math.inf)
    assert found.failed and found.finished and found.alike == pytest.approx(math.log(2))
    assert calls == len(RATES) * (STEPS + 1)


def test_nothing_is_dropped_while_checking() -> None:
    config = load_recipe("table").model.model_copy(update={"category_dropout": 0.9})
    entry = CategoryEncoding(values=(0, 1, 2))
    ensemble = build_network(config, (1,), (Encode(inputs=(entry,)),), 3)
    network = nn.Sequential(nn.Dropout(0.5), StochasticDepth(0.5, "row"), ensemble)
    trial = copy_without_dropout(network)
    x = torch.eye(3)
    assert all(torch.equal(trial(x), trial(x)) for _ in range(5))
    assert trial(x).ndim == 3 and not torch.equal(network(x), network(x))


class Reached(Exception):
    """Training would begin here."""


def test_a_run_begins_with_it_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("training.run.fit", begin)
    for preflight_too in (True, False):
        console = Console(file=io.StringIO(), width=300)
        with pytest.raises(Reached):
            run(
                load_recipe("digits"), tmp_path / "store", promote=False, console=console,
                preflight=preflight_too,
            )  # fmt: skip
        assert ("preflight: 8 of 8 rows" in console.file.getvalue()) == preflight_too
    broken = load_recipe(
        "digits", ["data.pixels={factor=1.0, mean=[0.0], std=[1.0]}", "model.batch_norm=false"]
    )
    with pytest.raises(DataError, match=r"^preflight: the loss at the start is "):
        run(broken, tmp_path / "store", promote=False, console=console)


@pytest.mark.parametrize(
    ("words", "expected"), [((), True), (("--preflight",), True), (("--no-preflight",), False)]
)
def test_the_command_passes_it_on(
    words: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("training.run.run", lambda *_, **options: seen.append(options))
    result = CliRunner().invoke(app, ["train", "digits", *words])
    assert result.exit_code == 0, result.output
    assert [options["preflight"] for options in seen] == [expected]
