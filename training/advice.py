"""What to try when a fit is not right: keys of the recipe, with values that `--set` takes."""

from __future__ import annotations

from training.recipe import AugmentConfig, Recipe

_MOST = 4
_TABLES = ("table", "breast-cancer")


def against_overfitting(recipe: Recipe, *, past: bool) -> tuple[str, ...]:
    """For a model that knows its training rows better than others, the most promising first.

    past: whether the weights are from after the best epoch. Each begins with key=value.
    """
    train, model, found = recipe.train, recipe.model, []
    if past and train.keep == "last":
        found.append("train.keep=best (now last)")
    elif past and train.monitor == "accuracy":
        found.append("train.monitor=loss (now accuracy)")
    if recipe.data.limit is not None:
        found.append(f"data.limit={10 * recipe.data.limit} (now {recipe.data.limit}): more rows")
    if train.augment == AugmentConfig():
        if recipe.data.source in _TABLES:
            found.append("train.augment.mixup=0.4 (now 0)")
        else:
            found.append("train.augment.shift=0.1 (now 0), with rotate, flip or mixup as they suit")
    if recipe.transfer.weights != "none" and not recipe.transfer.freeze_epochs:
        found.append("transfer.freeze_epochs=5 (now 0)")
    dropout = getattr(model, "dropout", None)
    if dropout is not None and dropout < 0.5:
        found.append(f"model.dropout={min(0.5, dropout + 0.2):g} (now {dropout:g})")
    decay = train.weight_decay
    if decay < 0.1:
        found.append(f"train.weight_decay={10 * decay if decay else 0.01:g} (now {decay:g})")
    smaller = _resized(recipe, 0.5)
    if smaller is not None:
        found.append(smaller)
    return tuple(found[:_MOST])


def against_underfitting(recipe: Recipe, *, unfinished: bool, balanced: bool) -> tuple[str, ...]:
    """For a model that does not fit its training rows either; each begins with key=value.

    unfinished: whether it was still getting better. balanced: whether the labels are about equally
    frequent.
    """
    train, model, found = recipe.train, recipe.model, []
    assert train.epochs != "auto"
    if unfinished:
        found.append(f"train.epochs={max(10, 2 * train.epochs)} (now {train.epochs})")
    usual, high = (0.1, 0.3) if train.optimizer == "sgd" else (1e-3, 3e-3)
    if train.lr < usual / 3:
        found.append(f"train.lr={usual:g} (now {train.lr:g})")
    elif not unfinished:
        found.append(f"train.lr={train.lr / 10:g} (now {train.lr:g})")
    elif train.lr < high:
        found.append(f"train.lr={high:g} (now {train.lr:g})")
    if not unfinished and not balanced and train.class_weight == "none":
        found.append("train.class_weight=balanced (now none)")
    if model.kind == "linear":
        kind = "table" if recipe.data.source in _TABLES else "mlp"
        found.append(f"model.kind={kind} (now linear)")
    dropout = getattr(model, "dropout", None)
    if dropout is not None and dropout > 0.2:
        found.append(f"model.dropout={dropout / 2:g} (now {dropout:g})")
    if train.weight_decay >= 0.1:
        found.append(f"train.weight_decay={train.weight_decay / 10:g} (now {train.weight_decay:g})")
    larger = _resized(recipe, 2)
    if larger is not None:
        found.append(larger)
    return tuple(found[:_MOST])


def _resized(recipe: Recipe, factor: float) -> str | None:
    """The network's widths times factor, within 16 and 1024; None where that changes nothing."""
    for key in ("hidden", "channels"):
        widths = getattr(recipe.model, key, None)
        if widths is not None:
            changed = [int(min(max(16, factor * width), max(1024, width))) for width in widths]
            if changed == list(widths):
                return None
            return f"model.{key}={_list(changed)} (now {_list(widths)})"
    return None


def _list(widths: list[int] | tuple[int, ...]) -> str:
    return f"[{','.join(map(str, widths))}]"
