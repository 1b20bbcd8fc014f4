"""A recipe: everything that decides what a run makes, as one frozen model read from TOML.

recipe = load_recipe("digits", ["train.epochs=5", "model.hidden=[32]"])
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

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
from artifacts.errors import DataError, nearest
from artifacts.inputs import Frozen, MissingPolicy
from artifacts.shelves import NAME_PATTERN
from training.tuning.config import TuneConfig

NETWORKS: dict[Any, type[BaseModel]] = {
    "linear": LinearNetwork,
    "mlp": MlpNetwork,
    "table": TableNetwork,
    "cnn": CnnNetwork,
    "resnet": ResnetNetwork,
    "torchvision": TorchvisionNetwork,
    "ensemble": EnsembleNetwork,
}
# key=value, where "=" in a quoted part of the key does not end it.
_OVERRIDE = re.compile(r'((?:[^="]|"[^"]*")+)=(.*)', re.DOTALL)
EMBEDDED = ("digits", "breast-cancer")
Source = Literal["digits", "breast-cancer", "fashion-mnist", "mnist", "cifar10", "table", "images"]
ColumnType = Literal["number", "boolean", "category", "date", "drop"]


class PixelsConfig(Frozen):
    """[data.pixels]: how pixels become network input, for weights that expect it so.

    pixel * factor, in the channels' order, minus mean, by std. Without this section mean and std
    are computed on the training part, or are those that torchvision's weights were trained with.

    order: of the channels. factor: what a pixel of 0 to 255 is multiplied by.
    mean, std: one value for each channel, in that order.
    """

    order: Literal["rgb", "bgr"] = "rgb"
    factor: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)


class DataConfig(Frozen):
    """[data]: where labelled rows come from and how they are split.

    source: a set by its name, or "table" or "images" for your own.
    path: the file or folder that holds the set; for the downloaded ones, by default `data` under
    the working directory. target: the label's column of a table.
    test_path: a table of its own for the test part.
    val_fraction: of all rows, or of the training part where the set has a test part of its own;
    unused where the set has a validation part of its own.
    test_fraction: of all rows; unused where the set has a test part of its own.
    limit: at most so many training rows, stratified. seed: of the split.

    columns: of a table, a column's type where the inferred one is not meant, or "drop".
    min_count, max_categories: of a table, a text that fewer than min_count training rows have, or
    that is not among the max_categories most frequent, is a rare one.
    missing: of a table, "reject" makes a missing cell an error in columns that had none missing in
    training; "fill" answers it all the same.

    size: of pictures, [height, width], by default their own where all have the same, at most 256 a
    side, and 128 x 128 otherwise. channels: 1 for gray, 3 for RGB, by default those of the
    pictures. fit: what becomes of a picture of another size: "crop" resizes the shorter side and
    cuts the middle out, "stretch" resizes both sides. resize: for "crop", the length that the
    shorter side gets; without it, just what is cut out.
    interpolation: of the resizing. skip_bad: leave out pictures that cannot be read.
    memory_mb, workers: sets whose pixels take more than memory_mb are decoded anew in each epoch,
    by so many processes; by default half of the machine's memory, and one process for each core.
    """

    source: Source
    path: str | None = None
    target: str | None = None
    test_path: str | None = None
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    limit: int | None = Field(default=None, ge=10)
    seed: int = Field(default=0, ge=0)
    columns: dict[str, ColumnType] = Field(default_factory=dict)
    min_count: int = Field(default=2, ge=1)
    max_categories: int = Field(default=128, ge=1, le=65536)
    missing: MissingPolicy = "fill"
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    channels: Literal[1, 3] | None = None
    fit: Literal["crop", "stretch"] = "crop"
    resize: int | None = Field(default=None, ge=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    skip_bad: bool = False
    memory_mb: int | None = Field(default=None, ge=1)
    workers: int | None = Field(default=None, ge=0, le=256)
    pixels: PixelsConfig | None = None


class AugmentConfig(Frozen):
    """[train.augment]: pictures changed at random while training; nothing by default.

    flip: left to right, half of them. crop: moved by up to so many pixels. pad: what comes in
    there, the picture mirrored, or black. rotate: by up to so many degrees. shift, zoom: by up to
    this share of the size. colour: brightness, contrast and saturation by up to this share.
    cutout: a square of so many pixels a side becomes the mean. mixup, cutmix: rows are mixed in
    pairs, by shares drawn from Beta(a, a) with this a (Zhang et al. 2018, Yun et al. 2019); 0 is
    off. Where both are set, either one for each batch; mixup alone is for tables too.
    """

    flip: bool = False
    crop: int = Field(default=0, ge=0, le=1024)
    pad: Literal["mirror", "black"] = "mirror"
    rotate: float = Field(default=0, ge=0, le=180)
    shift: float = Field(default=0, ge=0, lt=1)
    zoom: float = Field(default=0, ge=0, lt=1)
    colour: float = Field(default=0, ge=0, lt=1)
    cutout: int = Field(default=0, ge=0, le=1024)
    mixup: float = Field(default=0, ge=0)
    cutmix: float = Field(default=0, ge=0)


class TransferConfig(Frozen):
    """[transfer]: weights that a torchvision network starts from.

    weights: "none", a .pt, .pth or .safetensors file, "default", or a name of torchvision's, such
    as "IMAGENET1K_V1" (downloaded where there is a network).
    freeze_epochs: so long only the head is trained; batch norm under it keeps its statistics.
    backbone_lr: the rate of everything but the head, as a share of train.lr.
    """

    weights: str = "none"
    freeze_epochs: int = Field(default=0, ge=0)
    backbone_lr: float = Field(default=0.1, gt=0)


def _muon(found: dict[str, Any]) -> bool:
    return found.get("optimizer") == "muon"


class TrainConfig(Frozen):
    """[train]: how the weights are found.

    epochs, batch_size: "auto" fits them to the number of rows, for tables: batches of 32 to 256,
    about 1,200 steps, 15 to 100 epochs.
    optimizer: what moves the weights. "muon" is for the matrices of hidden linear layers, adamw
    then for the rest. lr: the highest rate. momentum: of sgd (0.9 by default) and muon (0.95).
    nesterov: whether momentum looks ahead, of sgd (off by default) and muon (on). beta2: of adam
    and adamw. weight_decay: decoupled but for sgd and adam; not on norms and biases.
    clip_norm: the longest gradient, 0 for any.
    rates: parts that learn at another rate, by patterns of their parameters' names ("0.*" = 0.1):
    multiples of it; where several match, all count. 0 leaves a part as it is.
    schedule: the rate over the run. "one-cycle" also moves the momentum (adam's beta1), from 0.95
    to 0.85 and back. plateau_factor, plateau_patience: "plateau" multiplies the rate by
    plateau_factor after more than plateau_patience epochs without a better validation figure.
    warmup: epochs of linear warm-up, fractions allowed; of one-cycle the epochs of its rise, by
    default 0.3 of all. patience: epochs without a better validation figure before stopping, 0 for
    never. monitor: which figure of the validation part that is. keep: whether the weights of its
    best epoch are kept or those of the last.
    ema: each step the kept weights move to the trained ones by 1 - ema; 0 is off.
    label_smoothing: the share of a label that is spread over all of them.
    class_weight: "balanced" weighs a row by the inverse of its class's frequency.
    precision: of the arithmetic. "auto" is bfloat16 for convolutions where the device computes it
    fast.
    accumulate: a step's rows go through the network in so many pieces, whose gradients add up: the
    same step with less memory. compile: by torch.compile, which takes a minute and a compiler.
    seed: of the weights, the order of rows and everything drawn at random. device: "auto" is CUDA
    where there is one, which is always said. threads: torch's CPU threads, its own choice without
    one.
    """

    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = 30
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 128
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default_factory=lambda found: 0.95 if _muon(found) else 0.9, ge=0, lt=1)
    nesterov: bool = Field(default_factory=lambda found: _muon(found))
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip_norm: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    schedule: Literal["cosine", "linear", "one-cycle", "plateau", "constant"] = "cosine"
    plateau_factor: float = Field(default=0.1, gt=0, lt=1)
    plateau_patience: int = Field(default=4, ge=0)
    warmup: float = Field(default=1.0, ge=0, le=1e6)
    patience: int = Field(default=10, ge=0)
    monitor: Literal["loss", "accuracy"] = "loss"
    keep: Literal["best", "last"] = "best"
    ema: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weight: Literal["none", "balanced"] = "none"
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: int = Field(default=1, ge=1, le=4096)
    compile: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=512)

    @model_validator(mode="after")
    def _settings_work_together(self) -> TrainConfig:
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs momentum above 0, found 0")
        if self.schedule == "plateau" and 0 < self.patience <= self.plateau_patience + 1:
            raise ValueError(
                f"with plateau_patience={self.plateau_patience} the rate falls after "
                f"{self.plateau_patience + 1} epochs; expected patience above that or 0, "
                f"found {self.patience}"
            )
        return self


class ExportConfig(Frozen):
    """[export]: what a released bundle holds.

    golden: "real" keeps held-out rows in the bundle, "synthetic" made ones in the same ranges.
    max_batch_size: the largest batch that the gate proves and that serving and scoring use; by
    default 1024, and less, down to 64, for large pictures.
    calibrate: divide the logits by the temperature that suits the validation part best.
    threshold: for two labels, what the second one's probability must exceed to be the answer; or
    "f1", "balanced": the one with the best F1 of that label, or the best balanced accuracy, on the
    validation part. 0.5 answers the most probable label.
    """

    golden: Literal["real", "synthetic"] = "real"
    max_batch_size: int | None = Field(default=None, ge=64, le=65536)
    calibrate: bool = True
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["f1", "balanced"] = 0.5


class Recipe(Frozen):
    """A whole recipe.

    name: of the bundles that it makes: letters, digits, dots, dashes and underscores, at most 64.
    summary: its line in `parityline recipes`.
    """

    name: str = Field(pattern=NAME_PATTERN)
    summary: str = ""
    data: DataConfig
    model: NetworkConfig = MlpNetwork()
    transfer: TransferConfig = TransferConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    tune: TuneConfig = TuneConfig()


def builtin_recipes() -> dict[str, Recipe]:
    """The recipes that come with Parityline, by name."""
    recipes = {}
    for file in sorted(_folder().iterdir(), key=lambda entry: entry.name.removesuffix(".toml")):
        if file.name.endswith(".toml"):
            recipe = validated(tomllib.loads(file.read_text(encoding="utf-8")), file.name)
            recipes[recipe.name] = recipe
    return recipes


def load_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    data: str | None = None,
    target: str | None = None,
    skip_bad: bool = False,
) -> Recipe:
    """A built-in recipe by name, or a TOML file by path, with overrides applied.

    overrides: "section.key=value", the value in TOML's syntax or a bare string. "model.kind="
    with another kind starts that network from its defaults, without what the recipe's study
    would change of the one it had.
    name, data, target, skip_bad: shorthands for the keys name, data.path, data.target and
    data.skip_bad.
    Raises DataError naming the recipe, key or value.
    """
    content, label = _read(recipe), f"recipe {recipe}"
    pairs = [_parse_override(text) for text in overrides]
    if name is not None:
        pairs.append((["name"], name))
    if data is not None:
        pairs.append((["data", "path"], data))
    if target is not None:
        pairs.append((["data", "target"], target))
    if skip_bad:
        pairs.append((["data", "skip_bad"], True))
    set_keys(content, pairs, "--set ")
    loaded = validated(content, label)
    if loaded.tune.space:
        # Imported here: it builds recipes itself.
        from training.tuning.space import check_space

        try:
            check_space(loaded)
        except DataError as error:
            raise DataError(f"{label}: {error}") from error
    return loaded


def set_keys(content: dict[str, Any], pairs: Sequence[tuple[list[str], Any]], what: str) -> None:
    """Set these keys, by their parts, in a recipe's content.

    Another kind of network starts from its defaults: the other keys of "model" go, and those of
    the space with them where the kind is not in it; those among the pairs, in any order, stay.
    Raises DataError, which begins with `what`, where a part of a key is a value.
    """
    model = content.setdefault("model", {})
    if isinstance(model, dict):
        model.setdefault("kind", "mlp")
        for key, value in pairs:
            if key == ["model", "kind"] and model["kind"] != value:
                content["model"] = model = {"kind": value}
                _leave_network_out_of_space(content)
    for key, value in pairs:
        section = content
        for depth, part in enumerate(key[:-1]):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise DataError(f"{what}{'.'.join(key)}: {'.'.join(key[: depth + 1])} is a value")
        section[key[-1]] = value


def content_with(recipe: Recipe, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A recipe's content but for [tune], with these keys set as `set_keys` does.

    What the recipe leaves to the defaults is left out: some of them depend on other keys.
    """
    content = recipe.model_dump(mode="json", exclude_unset=True, exclude={"tune"})
    set_keys(content, [(key_parts(key) or [key], value) for key, value in values.items()], what)
    return content


def _leave_network_out_of_space(content: dict[str, Any]) -> None:
    tune = content.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    if isinstance(space, dict) and "model.kind" not in space:
        for key in [key for key in space if key.startswith("model.")]:
            del space[key]


def _read(recipe: str) -> dict[str, Any]:
    if "/" not in recipe and not recipe.endswith(".toml"):
        known = builtin_recipes()
        if recipe not in known:
            names = ", ".join(known)
            raise DataError(
                f"no recipe named {recipe!r}; there are: {names}; or a .toml file"
                f"{nearest(recipe, known)}"
            )
        return known[recipe].model_dump(mode="json", exclude_unset=True)
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"recipe {recipe}: cannot be read: {error.strerror}; `parityline recipes` lists those "
            "that are built in"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"recipe {recipe}: not a UTF-8 text file") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"recipe {recipe}: not TOML: {error}") from error


def _folder() -> resources.abc.Traversable:
    return resources.files("training") / "recipes"


def _parse_override(text: str) -> tuple[list[str], Any]:
    match = _OVERRIDE.fullmatch(text)
    parts = [] if match is None else key_parts(match[1])
    if match is None or not parts:
        raise DataError(f"--set {text!r}: expected key=value, such as train.epochs=5")
    value = match[2]
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return parts, value.strip()
    return parts, parsed["value"] if len(parsed) == 1 else value.strip()


def key_parts(key: str) -> list[str]:
    """A dotted key as TOML reads it, parts in quotes too; [] where it is none."""
    try:
        level: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        # Column names that TOML wants in quotes are taken without them.
        parts = [part.strip().strip('"') for part in key.split(".")]
        return parts if all(parts) else []
    parts = []
    while isinstance(level, dict):
        if len(level) != 1:
            return []
        ((part, level),) = level.items()
        parts.append(part)
    return parts


def validated(content: dict[str, Any], label: str) -> Recipe:
    """The recipe of this content. Raises DataError: the label, then a line for each problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{label}: {'; '.join(_problems(error).values())}") from error


def problems_of(content: dict[str, Any]) -> dict[str, str]:
    """What makes this content no recipe, one line for each key; empty where it is one."""
    try:
        Recipe.model_validate(content)
    except ValidationError as error:
        return _problems(error)
    return {}


def _problems(error: ValidationError) -> dict[str, str]:
    # One line for a key that may be of several types: that of the first.
    lines: dict[str, str] = {}
    for entry in error.errors():
        # Follows from another one.
        if entry["type"] == "default_factory_not_called":
            continue
        lines.setdefault(_key(entry), _explain(entry))
    return lines


def _section(annotation: Any) -> Any:
    """The model in an annotation that may allow None beside it."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)


def _key(entry: Any) -> str:
    """The recipe's key that one of pydantic's errors is about.

    Inside a union the location has the name of a type or a tag, such as "mlp" in
    model.mlp.hidden or "literal['auto']" in train.epochs: not a key.
    """
    tags = {*NETWORKS, "int"}
    types = ("constrained-", "literal[")
    parts = [str(part) for part in entry["loc"]]
    if entry["type"] == "union_tag_invalid":
        parts.append("kind")
    return ".".join(part for part in parts if part not in tags and not part.startswith(types))


def _nearest_key(key: str) -> str:
    from training.recipe_keys import recipe_keys

    known = recipe_keys()
    # One that is in another section: `epochs`.
    elsewhere = [name for name in known if name.endswith(f".{key.rpartition('.')[2]}")]
    return f"; did you mean {elsewhere[0]!r}?" if len(elsewhere) == 1 else nearest(key, known)


def _explain(entry: Any) -> str:
    """One of pydantic's errors with the recipe's key, and what is allowed there."""
    key = _key(entry)
    if entry["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in entry["loc"][:-1]:
            if isinstance(part, int):
                continue  # the place in a list
            section = NETWORKS.get(part) or _section(section.model_fields[part].annotation)
        allowed = ", ".join(section.model_fields)
        return f"unknown key {key}; allowed: {allowed}{_nearest_key(key)}"
    if entry["type"] == "union_tag_invalid":
        # In an ensemble there is none.
        allowed = [kind for kind in NETWORKS if kind not in entry["loc"]]
        kinds = ", ".join("torchvision:NAME" if kind == "torchvision" else kind for kind in allowed)
        return f"{key}: expected one of {kinds}, found {entry['ctx']['tag']!r}"
    if entry["type"] == "missing":
        if key == "data":
            return f"data is required: a section [data] with source, {', '.join(get_args(Source))}"
        return f"{key} is required"
    if key == "name" and entry["type"] == "string_pattern_mismatch":
        return (
            "name: expected 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a "
            f"digit, found {entry['input']!r}"
        )
    if entry["type"] == "value_error":
        return f"{key}: {entry['ctx']['error']}"
    found = entry.get("input")
    shown = "" if isinstance(found, dict) else f", found {found!r}"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]}{shown}"
