from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.errors import DataError
from training.recipe import builtin_recipes, load_recipe
from training.run import resolved_recipe
from training.tuning.config import Choices, Range


def test_each_builtin_recipe_is_found_by_its_file_name() -> None:
    recipes = builtin_recipes()
    assert {"digits", "breast-cancer", "fashion-mnist", "mnist"} <= set(recipes)
    for name, recipe in recipes.items():
        assert load_recipe(name) == recipe
        assert recipe.summary


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"no recipe named 'digit'.*breast-cancer, .*digits"):
        load_recipe("digit")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key train\.epoch; allowed: epochs, batch_size"),
        ("model.hiden=[3]", r"unknown key model\.hiden; allowed: kind, hidden"),
        ("tarin.epochs=3", r"unknown key tarin; allowed: name, summary, data"),
        ("train.epochs=0", r"train\.epochs: .*greater than or equal to 1, found 0"),
        ("train.epochs=many", r"train\.epochs: .*found 'many'"),
        ("train.lr=nan", r"train\.lr: .*finite"),
        ("model.kind=forest", "model.kind: expected one of linear, mlp, .*, found 'forest'"),
        ("tune.objective=f1", r"tune\.objective: .*'accuracy', 'log_loss' or 'auc', found 'f1'"),
        ("tune.folds=0", r"tune\.folds: .*greater than or equal to 1, found 0"),
        ("tune.spaces={}", r"unknown key tune\.spaces; allowed: objective, folds, seeds, space"),
        ("tune.space=3", r"tune\.space: .*found 3"),
        ("tune=3", r"tune: .*found 3"),
        ("data.source=imagenet", r"data\.source: .*'imagenet'"),
        ("train.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("name.first=3", "name is a value"),
    ],
)
def test_a_bad_override_names_the_key_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_recipe("digits", [override])


def test_overrides_set_what_a_study_does_and_may_change() -> None:
    rate = 'tune.space."train.lr"={low=1e-4,high=1e-2,log=true}'
    recipe = load_recipe("digits", ["tune.objective=auc", "tune.folds=3", rate])
    assert (recipe.tune.objective, recipe.tune.folds, recipe.tune.seeds) == ("auc", 3, 1)
    assert recipe.tune.space["train.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert recipe.tune.space["train.epochs"] == Range(low=10, high=50)
    only = load_recipe("digits", ['tune.space={"train.lr"=[0.1, 0.2]}']).tune.space
    assert only == {"train.lr": Choices(choices=(0.1, 0.2))}


def test_what_a_run_makes_does_not_depend_on_what_a_study_would_do() -> None:
    makes = [
        resolved_recipe(load_recipe("digits", sets), "cpu", "float32", 64)
        for sets in ([], ["tune.objective=auc", "tune.space={}"])
    ]
    assert makes[0] == makes[1] and "tune" not in makes[0]


def test_overrides_take_toml_values_and_bare_strings() -> None:
    recipe = load_recipe(
        "digits",
        ["train.lr=1e-2", "model.hidden=[7, 5]", "train.optimizer=sgd", "train.device='cpu'"],
        name="mine",
    )
    assert recipe.name == "mine"
    assert recipe.train.lr == 1e-2
    assert recipe.model.kind == "mlp" and recipe.model.hidden == (7, 5)
    assert (recipe.train.optimizer, recipe.train.device) == ("sgd", "cpu")


def test_another_kind_of_network_starts_from_its_own_defaults() -> None:
    assert load_recipe("digits", ["model.kind=linear"]).model.kind == "linear"


def test_a_recipe_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[data]\nsource = "digits"\n[train]\nepochs = 2\n')
    assert load_recipe(str(path)).train.epochs == 2
    path.write_text("name = ")
    with pytest.raises(DataError, match=r"mine\.toml: not TOML"):
        load_recipe(str(path))
    path.write_text('name = "mine"\n')
    with pytest.raises(DataError, match="data is required"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        load_recipe(str(path))
    with pytest.raises(DataError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))


def test_a_recipe_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("digits").train.epochs = 3
