"""Several networks as one: what it answers, in every format, and which are worth averaging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from artifacts.backends import run_module
from artifacts.bundle import Bundle
from artifacts.configs import (
    CnnNetwork,
    EnsembleNetwork,
    LinearNetwork,
    MlpNetwork,
    NetworkConfig,
    ResnetNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.ensembles import Ensemble
from artifacts.errors import DataError
from artifacts.networks import DeployedClassifier, build_network
from artifacts.predictor import open_bundle
from artifacts.preprocess import Preprocess
from artifacts.steps import Step
from artifacts.summary import summary_lines
from serving.page import Page
from serving.settings import Settings
from tests.models import (
    BGR_STEPS,
    MIXED,
    MIXED_STEPS,
    PHOTO,
    PICTURE,
    PICTURE_STEPS,
    quiet,
    random_model,
    rows_of,
)
from tests.scored import parts_of, score_file
from training.batches import Batches
from training.calibration import probabilities_at
from training.data import Dataset, load_dataset
from training.encoding import preprocessing
from training.evaluation import logits_of, probabilities_of
from training.export import export_model
from training.fit import Fit, fit
from training.gate import open_formats, parity_gate
from training.losses import loss_of, predicted_class
from training.optim import hidden_matrices, make_optimizers
from training.preflight import preflight
from training.recipe import Recipe, TrainConfig, load_recipe
from training.release import Trained, release
from training.run import run
from training.schedule import resolve_schedule
from training.tuning.ensemble import assemble

CPU = torch.device("cpu")
BACKENDS = ("onnx", "torchscript", "export", "eager")
SMALL_TABLE = TableNetwork(hidden=(7,), members=3, bins=8)


def built(
    members: Sequence[NetworkConfig],
    classes: int = 3,
    shape: tuple[int, ...] = MIXED.shape,
    steps: Sequence[Step] = MIXED_STEPS,
) -> Ensemble:
    torch.manual_seed(0)
    network = build_network(EnsembleNetwork(members=tuple(members)), shape, steps, classes)
    assert isinstance(network, Ensemble)
    return network


def mixed_input(rows: int = 6) -> torch.Tensor:
    return Preprocess(MIXED_STEPS, MIXED.shape)(torch.from_numpy(rows_of(MIXED, rows)))


class Study:
    """Networks of a few epochs, each alone, on the same rows."""

    def __init__(self, source: str, members: Sequence[NetworkConfig], epochs: int) -> None:
        overrides = [f"train.epochs={epochs}", "train.device=cpu", "export.max_batch_size=64"]
        recipe = load_recipe(source, overrides)
        self.dataset: Dataset = load_dataset(recipe.data)
        self.steps = preprocessing(self.dataset, members[0])
        self.preprocess = Preprocess(self.steps, self.dataset.input.shape)
        self.batches = {name: Batches(part, CPU) for name, part in self.dataset.parts.items()}
        train = resolve_schedule(recipe.train, len(self.dataset.train))
        self.configs = tuple(members)
        self.networks: list[nn.Module] = []
        self.fits: list[Fit] = []
        for seed, config in enumerate(members):
            torch.manual_seed(seed)
            shape = self.dataset.input.shape
            network = build_network(config, shape, self.steps, len(self.dataset.labels))
            found = fit(
                network, self.preprocess, self.batches["train"], self.batches["validation"],
                train.model_copy(update={"seed": seed}), lambda *_: None,
            )  # fmt: skip
            self.networks.append(network)
            self.fits.append(found)
        self.config, self.ensemble = assemble(self.configs, self.networks)
        self.recipe: Recipe = recipe.model_copy(update={"model": self.config, "train": train})

    def deployed(self, network: nn.Module) -> DeployedClassifier:
        return DeployedClassifier(self.preprocess, network, 1.0).eval()

    def released(self, store: Path) -> Bundle:
        trained = Trained(
            self.recipe, self.recipe.model_dump(mode="json"), self.dataset, self.dataset.info(),
            self.deployed(self.ensemble), self.batches, self.fits[0],
        )  # fmt: skip
        return release(trained, store, lambda _: None, promote=True)


@pytest.fixture(scope="module")
def digits_study() -> Study:
    """Three networks of digits."""
    plain = MlpNetwork(hidden=(24,), dropout=0.1)
    return Study("digits", [plain, plain, MlpNetwork(hidden=(16, 12), activation="gelu")], 3)


@pytest.fixture(scope="module")
def digits_bundle(digits_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return digits_study.released(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def cancer_study() -> Study:
    """Two table networks of breast cancer, of other sizes."""
    first = TableNetwork(hidden=(16,), members=4, bins=8)
    return Study("breast-cancer", [first, TableNetwork(hidden=(9, 8), members=3, bins=8)], 3)


def check_in_every_format(study: Study, bundle: Bundle) -> None:
    """The released ensemble answers the mean of its members' logits, row by row the same bits."""
    raw, test = study.dataset.test.raw[:64], study.batches["test"]
    members = [logits_of(study.deployed(network), test)[:64] for network in study.networks]
    expected = np.mean(members, axis=0, dtype=np.float64)
    for backend in BACKENDS:
        predictor = open_bundle(str(bundle.path), backend=backend, device="cpu", threads=1)
        found, probabilities = predictor.run(raw)
        unscaled = found.astype(np.float64) * bundle.manifest.temperature
        np.testing.assert_allclose(unscaled, expected, rtol=2e-6, atol=2e-6, err_msg=backend)
        if backend != "onnx":
            continue
        for size in (1, 2, 7, 64):
            batches = [predictor.run(raw[start : start + size])[1] for start in range(0, 64, size)]
            np.testing.assert_array_equal(np.concatenate(batches), probabilities, f"by {size}")


def test_a_released_ensemble_of_mlps_answers_alike_in_every_format(
    digits_study: Study, digits_bundle: Bundle
) -> None:
    assert digits_bundle.manifest.network == digits_study.config
    check_in_every_format(digits_study, digits_bundle)


def test_a_released_ensemble_of_two_class_tables_answers_alike_in_every_format(
    cancer_study: Study, tmp_path: Path
) -> None:
    bundle = cancer_study.released(tmp_path)
    check_in_every_format(cancer_study, bundle)
    assert (np.diff(open_bundle(str(bundle.path)).run(cancer_study.dataset.test.raw)[0]) != 0).all()


def test_an_ensemble_is_shown_served_and_scored_as_any_model(
    digits_bundle: Bundle, digits_study: Study, tmp_path: Path
) -> None:
    what = "ensemble of 3 mlp"
    assert any(what in line for line in summary_lines(digits_bundle))
    assert what in digits_bundle.read("report.html").decode()
    predictor = open_bundle(str(digits_bundle.path), device="cpu")
    page = Page(predictor, Settings(), max_rows=1).render("http://here")
    assert what in page.decode()
    raw = digits_study.dataset.test.raw[:40]
    np.savez(tmp_path / "rows.npz", images=raw)
    score_file(predictor, tmp_path / "rows.npz", tmp_path / "out", batch_size=16)
    scored = parts_of(tmp_path / "out")
    assert scored["index"].to_pylist() == predictor.predict(raw).index.tolist()


def test_the_answer_is_the_mean_of_the_members_logits(digits_study: Study) -> None:
    rows = torch.from_numpy(digits_study.dataset.test.raw[:50])
    with torch.no_grad():
        inputs = digits_study.preprocess(rows)
        answer = digits_study.ensemble(inputs).double()
        members = [network(inputs).double() for network in digits_study.networks]
    torch.testing.assert_close(answer, torch.stack(members).mean(dim=0), rtol=1e-6, atol=1e-6)
    # That is the normalised geometric mean of their probabilities.
    product = torch.stack([torch.softmax(each, 1) for each in members]).log().mean(dim=0)
    torch.testing.assert_close(
        torch.softmax(answer, 1), torch.softmax(product, 1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("study", ["digits_study", "cancer_study"])
def test_a_study_measures_what_the_network_will_answer(
    study: str, request: pytest.FixtureRequest
) -> None:
    of: Study = request.getfixturevalue(study)
    validation = of.batches["validation"]
    logits = [logits_of(of.deployed(network), validation) for network in of.networks]
    found = probabilities_at(sum(logits) / len(logits), 1.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, probabilities_of(of.deployed(of.ensemble), validation), rtol=1e-5, atol=1e-7
    )


def test_the_ensemble_holds_the_networks_themselves(digits_study: Study) -> None:
    networks = [network.train() for network in digits_study.networks]
    config, ensemble = assemble(digits_study.configs, networks)
    assert config.members == digits_study.configs
    assert not any(module.training for module in ensemble.modules())
    own = [parameter for network in networks for parameter in network.parameters()]
    assert [id(parameter) for parameter in ensemble.parameters()] == [id(each) for each in own]


def test_members_of_every_kind_for_pictures_pass_the_gate_in_all_formats() -> None:
    members = (
        CnnNetwork(channels=(5, 8), depth=1),
        ResnetNetwork(channels=(4, 6), pairs=(1,)),
        MlpNetwork(hidden=(9,), activation="silu"),
        LinearNetwork(),
    )
    model = random_model(PICTURE, PICTURE_STEPS, EnsembleNetwork(members=members), 2)
    exported = export_model(model, rows_of(PICTURE, 16), "images")
    eager = run_module(model, "cpu")
    parity_gate(eager, open_formats(exported.files), [rows_of(PICTURE, 70)], PICTURE, 64, quiet)


def test_trained_as_a_whole_each_network_has_a_loss_of_its_own() -> None:
    tables = SMALL_TABLE.model_copy(update={"dropout": 0.0, "category_dropout": 0.0})
    other = tables.model_copy(update={"members": 2})
    mlp = MlpNetwork(hidden=(9,), dropout=0.0, batch_norm=False)
    ensemble = built([tables, mlp, other]).train()
    inputs, labels = mixed_input(), torch.arange(6) % 3
    logits = ensemble(inputs)
    # 3, 1 and 2 members, each network with 6 places.
    assert logits.shape == (6, 18, 3)
    alone = [member(inputs) for member in ensemble.members]
    own = torch.stack([loss_of(each, labels) for each in alone])
    torch.testing.assert_close(loss_of(logits, labels), own.mean())
    answered = ensemble.eval()(inputs)
    torch.testing.assert_close(logits.mean(dim=1), answered, rtol=1e-4, atol=1e-5)
    assert (predicted_class(logits) == predicted_class(answered)).all()


def test_members_that_cannot_be_trained_side_by_side_are_named() -> None:
    tables = [SMALL_TABLE.model_copy(update={"members": count}) for count in (31, 37, 41)]
    ensemble = built(tables)
    with pytest.raises(DataError, match=r"small common multiple, found 31, 37, 41"):
        ensemble(mixed_input())
    assert ensemble.eval()(mixed_input()).shape == (6, 3)


def test_each_member_keeps_the_rates_and_the_hidden_matrices_that_it_has_alone() -> None:
    mlp = MlpNetwork(hidden=(9, 8))
    ensemble = built([mlp, SMALL_TABLE])
    assert hidden_matrices(ensemble) == {
        f"members.{place}.{name}"
        for place, member in enumerate(ensemble.members)
        for name in hidden_matrices(member)
    }
    groups = make_optimizers(ensemble, TrainConfig(weight_decay=0.5))[0].param_groups
    fast = [group for group in groups if group["share"] == 4.0]
    bins = ensemble.get_parameter("members.1.bin_weight")
    assert any(bins is parameter for group in fast for parameter in group["params"])
    assert {group["weight_decay"] for group in fast} == {0.05}


def test_a_recipe_of_members_is_checked_trained_released_and_opened(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\n[data]\nsource = "breast-cancer"\n[model]\nkind = "ensemble"\n'
        '[[model.members]]\nkind = "table"\nhidden = [8]\nmembers = 3\nbins = 4\n'
        '[[model.members]]\nkind = "mlp"\nhidden = [8]\n'
        '[train]\nepochs = 2\noptimizer = "muon"\ndevice = "cpu"\n'
        "[export]\nmax_batch_size = 64\n"
    )
    with (tmp_path / "log").open("w") as log:
        console = Console(file=log, width=200)
        bundle = run(load_recipe(str(recipe)), tmp_path, promote=False, console=console)
    assert bundle is not None and bundle.manifest.verdict is not None
    assert "preflight:" in (tmp_path / "log").read_text()
    # Both take the bins that the table network wants.
    assert 1 < bundle.manifest.preprocessing[0].bins <= 4
    for backend in BACKENDS:
        predictor = open_bundle(str(bundle.path), backend=backend, device="cpu")
        assert predictor.checked.max_abs_diff < 1e-4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("[]", r"model: .*expected 2 to 16 members, found 0"),
        ('[{kind="mlp"}]', r"model: .*expected 2 to 16 members, found 1"),
        (
            '[{kind="mlp"}, {kind="mlp", hiden=[3]}]',
            r"unknown key model\.members\.1\.hiden; .*hidd",
        ),
        ('[{kind="mlp"}, {kind="mlp", hidden=[0]}]', r"model\.members\.1\.hidden\.0: .*found 0"),
        (
            '[{kind="mlp"}, {kind="ensemble"}]',
            r"model\.members\.1\.kind: expected one of linear, mlp, table, cnn, resnet, "
            r"torchvision:NAME, found 'ensemble'$",
        ),
        ("[{hidden=[3]}, {}]", r"model\.members\.0\.kind: expected one of linear"),
        (
            '[{kind="table", bins=8}, {kind="table", bins=16}]',
            r"expected the same bins, found 8, 16",
        ),
    ],
)
def test_a_bad_member_in_a_recipe_is_named_with_its_place(members: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_recipe("breast-cancer", ["model.kind=ensemble", f"model.members={members}"])


def test_an_ensemble_without_members_says_what_is_required() -> None:
    with pytest.raises(DataError, match=r"model\.members is required"):
        load_recipe("digits", ["model.kind=ensemble"])


def test_two_class_networks_of_one_and_two_logits_cannot_be_averaged() -> None:
    members = (
        MlpNetwork(hidden=(4,)),
        TorchvisionNetwork(kind="torchvision:squeezenet1_1"),
    )
    message = r"found 1 of mlp, 2 of torchvision:squeezenet1_1; for two classes"
    networks = [build_network(each, PHOTO.shape, BGR_STEPS, 2) for each in members]
    with pytest.raises(DataError, match=message):
        build_network(EnsembleNetwork(members=members), PHOTO.shape, BGR_STEPS, 2)
    with pytest.raises(DataError, match=message):
        assemble(members, networks)
    three = [build_network(each, PHOTO.shape, BGR_STEPS, 3) for each in members]
    assert assemble(members, three)[1](torch.zeros(2, *PHOTO.shape)).shape == (2, 3)


def test_networks_that_do_not_fit_together_are_refused() -> None:
    mlp, narrow = MlpNetwork(hidden=(4,)), MlpNetwork(hidden=(3,))
    table = build_network(SMALL_TABLE, MIXED.shape, MIXED_STEPS, 3)
    plain = [build_network(each, (5,), (), 3) for each in (mlp, narrow)]
    with pytest.raises(
        DataError, match=r"different input: .* values, found \d+ of table, 5 of mlp"
    ):
        assemble([SMALL_TABLE, mlp], [table, plain[0]])
    pictures = [build_network(CnnNetwork(channels=(4,)), (n, 8, 8), (), 3) for n in (1, 3)]
    with pytest.raises(DataError, match=r"number of channels, found 1 of cnn, 3 of cnn"):
        assemble([CnnNetwork(channels=(4,))] * 2, pictures)
    with pytest.raises(DataError, match="found 1 configs and 2 networks"):
        assemble([mlp], plain)
    with pytest.raises(DataError, match="^ensemble: expected 2 to 16 members, found 1$"):
        assemble([mlp], plain[:1])
    with pytest.raises(DataError, match="expected 2 to 16 members, found 17"):
        assemble([mlp] * 17, plain[:1] * 17)
    nested, network = assemble([mlp, narrow], plain)
    with pytest.raises(DataError, match="found an ensemble among them"):
        assemble([mlp, nested], [plain[0], network])


def test_preflight_reaches_every_member(cancer_study: Study) -> None:
    members = (SMALL_TABLE, MlpNetwork(hidden=(9,)))
    of = cancer_study.dataset
    steps = preprocessing(of, EnsembleNetwork(members=members))
    network = built(members, 2, of.input.shape, steps)
    preprocess, train = Preprocess(steps, of.input.shape), cancer_study.batches["train"]
    config = TrainConfig(epochs=1, batch_size=64)
    assert "rows learned" in preflight(network, preprocess, train, 2, config, seconds=60)
    network.members[1].register_forward_hook(lambda *found: found[-1].detach())
    with pytest.raises(DataError, match=r"no gradient reaches 6 of \d+ parameters: members\.1\.1"):
        preflight(network, preprocess, train, 2, config, seconds=60)
