"""What a study may change: spaces of recipes, their faults, and what trials make of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import GridSampler

from artifacts.errors import DataError
from training.recipe import Recipe, builtin_recipes, load_recipe
from training.tuning.config import Choices, Range, TuneConfig
from training.tuning.space import (
    check_space,
    default_params,
    describe_space,
    distributions,
    grid,
    recipe_of,
    suggest,
)

KINDS = {
    "model.kind": ["mlp", "cnn", "linear"],
    "model.hidden": {
        "length": [1, 3],
        "low": 8,
        "high": 64,
        "step": 8,
        "when": {"model.kind": "mlp"},
    },
    "model.channels": {"choices": [[4, 8], [8]], "when": {"model.kind": "cnn"}},
    "model.dropout": {"low": 0, "high": 0.5, "when": {"model.kind": ["mlp", "cnn"]}},
}
MOMENTUM = {
    "train.momentum": {"low": 0.8, "high": 0.99, "when": {"train.optimizer": "sgd"}},
    "train.optimizer": ["adam", "sgd"],
}


class DrawnTrial:
    """A trial whose every value is drawn by hypothesis, and which keeps them by Optuna's name."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self.params: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        assert isinstance(low, int) and isinstance(high, int) and (high - low) % step == 0
        steps = self._draw(st.integers(0, (high - low) // step))
        return self._keep(name, low + step * steps)

    def suggest_float(
        self, name: str, low: float, high: float, step: float | None = None, log: bool = False
    ) -> float:
        assert not log or low > 0
        if step is None:
            return self._keep(name, self._draw(st.floats(low, high)))
        steps = self._draw(st.integers(0, round((high - low) / step)))
        return self._keep(name, min(high, low + step * steps))

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._keep(name, choices[self._draw(st.integers(0, len(choices) - 1))])

    def _keep(self, name: str, value: Any) -> Any:
        assert name not in self.params
        self.params[name] = value
        return value


def with_space(space: Mapping[str, Any], recipe: str = "digits", *sets: str) -> Recipe:
    """A built-in recipe with this space, checked."""
    base = load_recipe(recipe, ["tune.space={}", *sets])
    tune = TuneConfig.model_validate({"space": space})
    base = base.model_copy(update={"tune": tune})
    check_space(base)
    return base


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_suggestion_makes_a_recipe_of_its_values(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(builtin_recipes())))
    base = load_recipe(name)
    trial = DrawnTrial(data.draw)
    values = suggest(trial, base.tune.space)
    made = recipe_of(base, values)
    assert list(values) == list(base.tune.space)
    content = made.model_dump(mode="json")
    for key, value in values.items():
        section, _, rest = key.partition(".")
        found = content[section]
        for part in rest.split("."):
            found = found[part]
        assert found == value
    assert made.tune == base.tune and made.data == base.data
    # The parameters of a recipe are those of the trial that made it.
    params = default_params(made)
    assert params.keys() == trial.params.keys()
    assert all(params[each] == pytest.approx(trial.params[each]) for each in params)
    of_space = distributions(base.tune.space)
    assert all(of_space[each]._contains(of_space[each].to_internal_repr(params[each]))
               for each in params)  # fmt: skip


_NUMBER = st.one_of(
    st.builds(
        lambda low, wide, log: {"low": low, "high": low + wide, "log": log},
        st.floats(1e-6, 10), st.floats(0, 10), st.booleans(),
    ),
    st.builds(
        lambda low, step, steps: {"low": low, "high": low + step * steps, "step": step},
        st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(1, 20),
    ),
)  # fmt: skip
_WHOLE = st.builds(
    lambda low, step, wide: {"low": low, "high": low + step + wide, "step": step},
    st.integers(1, 50), st.integers(1, 9), st.integers(0, 50),
)  # fmt: skip
_SPACES = st.fixed_dictionaries(
    {},
    optional={
        "train.lr": _NUMBER,
        "train.epochs": _WHOLE,
        "model.hidden": _WHOLE.map(lambda whole: {**whole, "length": [1, 4]}),
        "train.nesterov": st.just([True, False]),
        "train.momentum": st.just([0, 0.9]),
        "train.schedule": st.just(["cosine", "plateau"]),
        "train.patience": st.just({"low": 0, "high": 10}),
        "train.optimizer": st.just(["sgd", "adam"]),
        "train.augment": st.just([{}, {"flip": True}]),
    },
)


@settings(max_examples=60, deadline=None)
@given(_SPACES, st.data())
def test_values_of_a_checked_space_are_refused_only_together(
    space: dict[str, Any], data: st.DataObject
) -> None:
    base = load_recipe("digits", ["tune.space={}", "train.optimizer=sgd", "train.nesterov=true"])
    base = base.model_copy(update={"tune": TuneConfig.model_validate({"space": space})})
    refused = _reason(check_space, base)
    if refused:
        # All that this space can be refused for: momentum 0 where nesterov cannot be off.
        assert "train.momentum: 0 does not go with the recipe" in refused
        assert len([key for key in space if key.startswith("train.")]) == 1
        return
    values = suggest(DrawnTrial(data.draw), base.tune.space)
    refused = _reason(recipe_of, base, values)
    if refused:
        together = ("train: nesterov=true needs momentum", "train: with plateau_patience=4")
        assert any(text in refused for text in together)
        return
    made = recipe_of(base, values)
    assert all(
        type(values[key]) is (int if key == "train.epochs" else float)
        for key in ("train.epochs", "train.lr")
        if key in values
    )
    assert set(values) == set(base.tune.space)
    assert made.train.lr == values.get("train.lr", base.train.lr)


def _reason(what: Callable[..., object], *args: Any) -> str:
    try:
        what(*args)
    except DataError as error:
        return str(error)
    return ""


def test_a_space_of_a_recipe_is_the_same_after_a_round_trip() -> None:
    for recipe in [*builtin_recipes().values(), with_space(KINDS), with_space(MOMENTUM)]:
        content = json.loads(recipe.model_dump_json(exclude_unset=True))
        assert Recipe.model_validate(content) == recipe


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "mnist", "breast-cancer"])
def test_the_fully_connected_recipes_have_the_well_known_space(name: str) -> None:
    assert load_recipe(name).tune.space == {
        "model.hidden": Range(length=(1, 5), low=8, high=128, step=8),
        "model.dropout": Range(low=0.1, high=0.5),
        "model.batch_norm": Choices(choices=(True, False)),
        "train.epochs": Range(low=10, high=50),
        "train.lr": Range(low=1e-5, high=1e-1, log=True),
        "train.batch_size": Choices(choices=(16, 32, 64, 128)),
        "train.optimizer": Choices(choices=("adam", "adamw", "sgd")),
        "train.weight_decay": Range(low=1e-5, high=1e-3, log=True),
    }


def test_every_builtin_recipe_has_a_space_which_it_passes() -> None:
    for name, recipe in builtin_recipes().items():
        assert {"train.lr", "train.weight_decay", "train.batch_size"} <= set(recipe.tune.space)
        assert load_recipe(name).tune.space == recipe.tune.space


@pytest.mark.parametrize("name", ["table", "digits-cnn", "images", "cifar10-resnet"])
def test_a_recipe_in_its_space_is_made_again_by_its_own_params(name: str) -> None:
    base = load_recipe(name)
    trial = optuna.trial.FixedTrial(default_params(base))
    assert recipe_of(base, suggest(trial, base.tune.space)) == base


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.lr": {"low": 0, "high": 1, "log": True}},
         r"tune\.space\.train\.lr: log = true needs low above 0, found 0$"),
        ({"train.lr": {"low": 1, "high": 2, "log": True, "step": 1}}, "exclude each other"),
        ({"train.lr": {"low": 2, "high": 1}}, r"train\.lr: expected low at most high.*2.*1"),
        ({"train.lr": {"low": 1, "high": 2, "step": 3}}, r"train\.lr: .*no larger than.*found 3"),
        ({"train.lr": {"low": 1, "high": 2, "step": 0}}, r"train\.lr\.step: .*greater than 0"),
        ({"train.lr": {"low": True, "high": 2}}, r"train\.lr\.low: .*number, found True"),
        ({"train.lr": {"low": 1}}, r"train\.lr\.high is required"),
        ({"train.lr": {"low": 1, "hihg": 2}}, r"train\.lr: unknown key hihg; allowed: low, high"),
        ({"train.lr": {"choices": [1], "low": 2}}, "unknown key low; allowed: choices, when"),
        ({"train.lr": 3}, r"train\.lr: expected a list of choices, or a table.*found 3"),
        ({"train.lr": []}, r"train\.lr: expected at least one choice"),
        ({"train.lr": [1, 2, 1.0]}, r"train\.lr: expected each choice once, found 1\.0 twice"),
        ({"train.lr": ["fast"]}, r"tune\.space\.train\.lr: .*found 'fast'"),
        ({"train.lr": {"low": 0, "high": 1}}, r"train\.lr: .*greater than 0, found 0"),
        ({"model.dropout": {"low": 0, "high": 1}}, r"model\.dropout: .*less than 1, found 1"),
        ({"train.epochs": {"low": 1.5, "high": 3}},
         r"tune\.space\.train\.epochs: expected low to be a whole number, found 1\.5"),
        ({"train.epochs": {"low": 1, "high": 3, "step": 0.5}}, "step to be a whole number"),
        ({"train.optimizer": {"low": 1, "high": 2}}, r"train\.optimizer: .*expected choices"),
        ({"train.nesterov": {"low": 0, "high": 1}}, r"train\.nesterov: .*expected choices"),
        ({"model.hidden": {"low": 8, "high": 16}}, r"model\.hidden: it is a list; expected leng"),
        ({"train.lr": {"low": 1, "high": 2, "length": [1, 2]}}, r"train\.lr: it is one number"),
        ({"model.hidden": {"low": 8, "high": 16, "length": [3, 2]}}, r"hidden: length: .*\[3, 2"),
        ({"model.hidden": {"low": 8, "high": 16, "length": [0, 2]}}, r"length\.0: .*equal to 1"),
        ({"model.hidden": {"low": 0, "high": 16, "length": [1, 2]}}, r"model\.hidden\.0: .*found"),
        ({"model.hiden": [[8]]}, r"tune\.space: unknown key model\.hiden; allowed: kind, hidden"),
        ({"tarin.lr": [1], "tarin.epochs": [1]}, r"unknown key tarin; allowed: name"),
        ({"a = 1\nb": [1]}, "unknown key a = 1"),
        ({"train.lr.x": [1]}, r"train\.lr\.x: train\.lr is a value"),
        ({"train": [{}]}, r"tune\.space\.train is a section; expected a key in it"),
        ({"train": {"lr": [1]}}, r'in quotes, such as "train\.lr", found the table train'),
        ({"train.augment": [{}], "train.augment.crop": [1]}, r"crop: found train\.augment in"),
        ({"train.nesterov": [True]}, r"nesterov: true does not go with the recipe: .*momentum"),
        ({"train.lr": {"choices": [1], "when": {"train.optimizer": "sgd"}}},
         r"train\.lr: when names train\.optimizer, which is not in the space"),
        ({**MOMENTUM, "train.optimizer": ["adam", "adamw"]},
         r"train\.momentum: when: train\.optimizer never is sgd; found .*adam, adamw"),
        ({"train.epochs": {"low": 2, "high": 9, "step": 2},
          "train.lr": {"choices": [1], "when": {"train.epochs": 9}}}, "epochs never is 9"),
        ({"train.lr": {"low": 1, "high": 2},
          "train.epochs": {"choices": [1], "when": {"train.lr": 2}}}, "lr never is 2"),
        ({"train.lr": {"choices": [1], "when": {"train.epochs": [1]}},
          "train.epochs": {"choices": [1], "when": {"train.lr": 1}}},
         r"train\.lr: when leads back.*train\.epochs: when leads back"),
        ({"train.optimizer": ["sgd", "adam"],
          "train.lr": {"choices": [1], "when": {"train.optimizer": "sgd"}},
          "train.epochs": {"choices": [1],
                           "when": {"train.optimizer": "adam", "train.lr": 1}}},
         r"train\.epochs: its conditions never hold together"),
        ({"model.kind": ["mlp", "cnn"], "model.hidden": [[8]]},
         r"unknown key model\.hidden; allowed: kind, channels.*where model\.kind is cnn"),
        ({"model.kind": ["mlp", "tree"]}, r"tune\.space\.model\.kind: expected one of linear, mlp"),
    ],
)  # fmt: skip
def test_a_faulty_space_is_refused_by_the_key(space: dict[str, Any], message: str) -> None:
    sets = f"tune.space={_toml(space)}"
    with pytest.raises(DataError, match=message) as caught:
        load_recipe("digits", [sets, "train.optimizer=sgd", "train.momentum=0"])
    assert str(caught.value).startswith("recipe digits: tune.space")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}={_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_toml, value)) + "]"
    return json.dumps(value)


@pytest.mark.parametrize(
    "key",
    [
        "name", "summary", "tune.folds", "export.calibrate", "train.seed", "train.device",
        "train.threads", "data.source", "data.path", "data.target", "data.test_path",
        "data.val_fraction", "data.test_fraction", "data.limit", "data.seed", "data.skip_bad",
        "data.memory_mb", "data.workers", 'train."seed"',
    ],
)  # fmt: skip
def test_what_a_study_must_not_choose_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(DataError) as caught:
        with_space({key: [1, 2]})
    assert f"tune.space.{key}: a study must not change it: " in str(caught.value)


def test_how_data_is_encoded_may_be_in_a_space() -> None:
    space = {"data.min_count": {"low": 1, "high": 20}, "data.columns.age": ["number", "drop"]}
    base = with_space(space, "table")
    made = recipe_of(base, {"data.min_count": 7, "data.columns.age": "drop"})
    assert made.data.min_count == 7 and made.data.columns == {"age": "drop"}


def test_a_conditional_key_comes_after_its_condition_and_only_where_it_holds() -> None:
    space = with_space(MOMENTUM).tune.space
    adam = suggest(optuna.trial.FixedTrial({"train.optimizer": "adam"}), space)
    assert adam == {"train.optimizer": "adam"}
    sgd = suggest(
        optuna.trial.FixedTrial({"train.optimizer": "sgd", "train.momentum": 0.85}), space
    )
    assert list(sgd.items()) == [("train.optimizer", "sgd"), ("train.momentum", 0.85)]


def test_a_key_whose_condition_depends_on_an_absent_key_is_absent() -> None:
    chain = {
        **MOMENTUM,
        "train.nesterov": {"choices": [True, False], "when": {"train.optimizer": "sgd"}},
        "train.clip_norm": {"choices": [1, 2], "when": {"train.nesterov": True}},
    }
    base = with_space(chain, "digits", "train.optimizer=adam", "train.nesterov=true")
    adam = suggest(optuna.trial.FixedTrial({"train.optimizer": "adam"}), base.tune.space)
    assert list(adam) == ["train.optimizer"]
    assert default_params(base) == {"train.optimizer": "adam"}
    base = with_space(chain, "digits", "train.optimizer=sgd", "train.nesterov=true")
    assert default_params(base) == {
        "train.optimizer": "sgd",
        "train.momentum": 0.9,
        "train.nesterov": True,
    }


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_another_kind_starts_from_its_defaults_with_its_own_keys(data: st.DataObject) -> None:
    base = with_space(KINDS)
    values = suggest(DrawnTrial(data.draw), base.tune.space)
    model = recipe_of(base, values).model
    kind = values["model.kind"]
    allowed = {
        "mlp": {"model.kind", "model.hidden", "model.dropout"},
        "cnn": {"model.kind", "model.channels", "model.dropout"},
        "linear": {"model.kind"},
    }
    assert set(values) == allowed[kind]
    given_keys = {key: value for key, value in values.items() if key != "model.kind"}
    sets = [f"{key}={json.dumps(value)}" for key, value in given_keys.items()]
    assert model == load_recipe("digits", [f"model.kind={kind}", *sets]).model


def test_a_kind_set_by_hand_takes_the_other_kinds_keys_out_of_the_space() -> None:
    space = load_recipe("digits", ["model.kind=cnn"]).tune.space
    assert [key for key in space if key.startswith("model.")] == []
    assert "train.lr" in space
    own = 'tune.space."model.depth"={low=1,high=3}'
    assert "model.depth" in load_recipe("digits", [own, "model.kind=cnn"]).tune.space


def test_combinations_that_the_recipe_refuses_are_errors_that_name_them() -> None:
    base = load_recipe("digits")
    with pytest.raises(DataError, match=r"^recipe digits: train: nesterov=true needs momentum"):
        recipe_of(
            base,
            {"train.optimizer": "sgd", "train.nesterov": True, "train.momentum": 0.0},
        )
    with pytest.raises(DataError, match=r"train: with plateau_patience=9.*found 5"):
        recipe_of(
            base, {"train.schedule": "plateau", "train.plateau_patience": 9, "train.patience": 5}
        )
    with pytest.raises(DataError, match=r"unknown key train\.epoch; allowed: epochs"):
        recipe_of(base, {"train.epoch": 9})


def test_a_value_that_goes_with_some_of_another_key_passes() -> None:
    space = {"train.nesterov": [True, False], "train.momentum": [0, 0.9]}
    base = with_space(space, "digits", "train.optimizer=sgd", "train.nesterov=true")
    assert recipe_of(base, {"train.nesterov": False, "train.momentum": 0}).train.momentum == 0


def test_defaults_that_depend_on_other_keys_follow_them() -> None:
    assert recipe_of(load_recipe("digits"), {"train.optimizer": "muon"}).train.momentum == 0.95


def test_params_outside_the_space_or_off_its_steps_are_left_out() -> None:
    space = {
        "model.hidden": {"length": [1, 2], "low": 8, "high": 128, "step": 8},
        "train.lr": {"low": 1e-3, "high": 9e-3, "step": 2e-3},
        "train.epochs": {"low": 10, "high": 50, "step": 20},
        "train.batch_size": ["auto", 64],
        "train.augment": [{"flip": True}, {"crop": 0}],
    }
    inside = ["model.hidden=[8,128]", "train.lr=5e-3", "train.epochs=50", "train.batch_size=auto"]
    assert default_params(with_space(space, "digits", *inside)) == {
        "model.hidden.length": 2,
        "model.hidden[0]": 8,
        "model.hidden[1]": 128,
        "train.lr": 5e-3,
        "train.epochs": 50,
        "train.batch_size": "auto",
        "train.augment": '{"crop": 0}',
    }
    for outside in (
        ["model.hidden=[8,12]", "train.lr=4e-3", "train.epochs=40", "train.batch_size=32"],
        ["model.hidden=[8,8,8]", "train.lr=2e-2", "train.epochs=70", "train.batch_size=2"],
        ["model.hidden=[136]", "train.lr=1e-4", "train.epochs=auto", "train.augment.crop=2"],
    ):
        params = default_params(with_space(space, "digits", *outside))
        assert set(params) <= {"train.augment", "train.batch_size"}
        assert ("train.augment" in params) == ("train.augment.crop=2" not in outside)


def test_lists_and_tables_are_suggested_by_their_json() -> None:
    base = with_space({"model.hidden": [[8], [16, 8]], "train.augment": [{}, {"flip": True}]})
    trial = optuna.trial.FixedTrial({"model.hidden": "[16, 8]", "train.augment": '{"flip": true}'})
    values = suggest(trial, base.tune.space)
    assert values == {"model.hidden": [16, 8], "train.augment": {"flip": True}}
    made = recipe_of(base, values)
    assert made.model.kind == "mlp" and made.model.hidden == (16, 8) and made.train.augment.flip


def test_distributions_are_those_that_a_trial_is_asked_for() -> None:
    base = with_space({**KINDS, **MOMENTUM, "train.lr": {"low": 1e-5, "high": 1e-1, "log": True}})
    found = distributions(base.tune.space)
    assert found["model.hidden[2]"] == IntDistribution(8, 64, step=8)
    assert found["model.hidden.length"] == IntDistribution(1, 3)
    assert found["train.lr"] == FloatDistribution(1e-5, 1e-1, log=True)
    assert "model.hidden[3]" not in found and "model.hidden" not in found
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: dict[str, Any] = {}
    for _ in range(40):
        trial = study.ask()
        suggest(trial, base.tune.space)
        seen |= trial.distributions
    assert seen == found


def test_a_range_ends_at_its_last_step_without_a_warning() -> None:
    # Optuna warns, which is an error here, where the steps do not end at high.
    space = {
        "train.lr": {"low": 0.1, "high": 1.0, "step": 0.2},
        "train.epochs": {"low": 1, "high": 10, "step": 4},
    }
    found = distributions(with_space(space).tune.space)
    assert (found["train.lr"].high, found["train.epochs"].high) == (0.9, 9)


def test_a_grid_has_every_combination_once() -> None:
    space = {
        "train.lr": {"low": 0.1, "high": 0.3, "step": 0.1},
        "train.epochs": {"low": 1, "high": 4},
        "train.batch_size": [16, "auto"],
        "model.hidden": [[8], [16, 8]],
    }
    base = with_space(space)
    values = grid(base, base.tune.space)
    assert values == {
        "train.lr": [0.1, 0.2, 0.3],
        "train.epochs": [1, 2, 3, 4],
        "train.batch_size": [16, "auto"],
        "model.hidden": ["[8]", "[16, 8]"],
    }
    study = optuna.create_study(sampler=GridSampler(values, seed=0))
    seen = []
    study.optimize(lambda trial: seen.append(str(suggest(trial, base.tune.space))) or 0.0)
    assert len(seen) == len(set(seen)) == math.prod(map(len, values.values())) == 48


def test_what_a_grid_cannot_enumerate_is_named() -> None:
    base = load_recipe("digits")
    with pytest.raises(DataError) as caught:
        grid(base, base.tune.space)
    text = str(caught.value)
    for key in ("model.hidden: a grid has no lists", "model.dropout: expected a step",
                "train.lr: expected a step", "train.weight_decay: expected a step"):  # fmt: skip
        assert key in text
    assert "train.epochs" not in text and "train.optimizer" not in text
    base = with_space(MOMENTUM)
    with pytest.raises(DataError, match=r"train\.momentum: a grid has no conditions"):
        grid(base, base.tune.space)
    base = with_space({"train.epochs": {"low": 1, "high": 10**9}})
    with pytest.raises(DataError, match=r"train\.epochs: expected at most.*found 1,000,000,000"):
        grid(base, base.tune.space)
    wide = {"low": 1, "high": 1000}
    base = with_space({"train.epochs": wide, "train.patience": wide})
    with pytest.raises(DataError, match=r"found 1,000,000$"):
        grid(base, base.tune.space)


def test_each_key_is_described_in_a_line() -> None:
    space = {
        "train.lr": {"low": 1e-5, "high": 0.1, "log": True},
        "train.batch_size": [16, "auto"],
        **KINDS,
    }
    assert describe_space(with_space(space).tune.space) == [
        "train.lr: 1e-05 to 0.1 (log)",
        "train.batch_size: 16, auto",
        "model.kind: mlp, cnn, linear",
        "model.hidden: 1 to 3 of 8 to 64 by 8, when model.kind is mlp",
        "model.channels: [4, 8], [8], when model.kind is cnn",
        "model.dropout: 0 to 0.5, when model.kind is mlp or cnn",
    ]


def test_a_space_is_read_and_suggested_without_optuna() -> None:
    code = "import sys, training.tuning.space; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
