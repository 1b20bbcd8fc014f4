"""Networks, as data: what `artifacts.networks` builds. Part of the manifest."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from artifacts.inputs import Frozen

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh"]
MOST_MEMBERS = 16
_Width = Annotated[int, Field(ge=1, le=65536)]


class LinearNetwork(Frozen):
    """Logistic regression, one linear layer.

    init: of the weights.
    """

    kind: Literal["linear"] = "linear"
    init: Literal["kaiming", "xavier"] = "xavier"


class MlpNetwork(Frozen):
    """Fully connected: for each width linear, batch norm if asked, activation, dropout; a head.

    The activations are those that ONNX Runtime computes bit for bit alike at every batch size on
    CPU (ELU, SELU and Mish differ in the last bit with a row's place in the batch).

    hidden: the widths. activation: between layers. batch_norm: after each linear layer.
    dropout: the share that is dropped while training. init: of the weights.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[_Width, ...] = Field(default=(128, 64), min_length=1)
    activation: Activation = "relu"
    batch_norm: bool = True
    dropout: float = Field(default=0.2, ge=0, lt=1)
    init: Literal["kaiming", "xavier"] = "kaiming"


class TableNetwork(Frozen):
    """For tables: `members` fully connected networks in one, which share their weights.

    Each number, with its bins, and each category of more than a few values is first embedded in a
    few inputs of its own. Then for each width in `hidden` a linear layer whose input and output
    are scaled for each member, activation, dropout (TabM, Gorishniy et al. 2024, arXiv
    2410.24210); each member is trained on its own loss, the answer is their mean logit.

    hidden: the widths. members: how many networks share the weights. bins: at most so many of each
    number. embedding: inputs of each number. activation: between layers. dropout: the share that is
    dropped while training. category_dropout: how often a category is hidden while training, so that
    one never seen has an answer that was learnt.
    """

    kind: Literal["table"] = "table"
    hidden: tuple[_Width, ...] = Field(default=(192, 192), min_length=1)
    members: int = Field(default=16, ge=1, le=256)
    bins: int = Field(default=64, ge=0, le=1024)
    embedding: int = Field(default=12, ge=1, le=1024)
    activation: Activation = "relu"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    category_dropout: float = Field(default=0.02, ge=0, lt=1)


class CnnNetwork(Frozen):
    """Convolutional: for each of `channels` `depth` blocks of 3 x 3 convolution, batch norm and
    activation, the last of them with 2 x 2 max pooling; global pooling, dropout, a linear head.

    channels: the widths. depth: blocks of each width. activation: of each block. pooling: the
    global one. dropout: before the head.
    """

    kind: Literal["cnn"] = "cnn"
    channels: tuple[_Width, ...] = Field(default=(64, 128, 256), min_length=1)
    depth: int = Field(default=2, ge=1, le=16)
    activation: Activation = "relu"
    pooling: Literal["average", "max"] = "average"
    dropout: float = Field(default=0.2, ge=0, lt=1)


class ResnetNetwork(Frozen):
    """A small residual network: a block of channels[0]; then for each further width a block with
    2 x 2 max pooling and as many residual pairs of blocks as `pairs` says; global max pooling,
    dropout, a linear head. A block is 3 x 3 convolution, batch norm, activation.

    After David Page's ResNet-9 (https://myrtle.ai/learn/how-to-train-your-resnet/).

    channels: the widths, of at least two stages. pairs: residual pairs of each stage after the
    first. activation: of each block. dropout: before the head.
    """

    kind: Literal["resnet"] = "resnet"
    channels: tuple[_Width, ...] = Field(default=(64, 128, 256, 512), min_length=2)
    pairs: tuple[Annotated[int, Field(ge=0, le=16)], ...] = (1, 0, 1)
    activation: Activation = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _a_count_for_each_stage(self) -> ResnetNetwork:
        if len(self.pairs) != len(self.channels) - 1:
            raise ValueError(
                f"pairs: expected {len(self.channels) - 1} counts, found {len(self.pairs)}"
            )
        return self


class TorchvisionNetwork(Frozen):
    """A classification network of torchvision's, by its name there, with a head of our labels.

    dropout: before the head, for the networks that take one; by default torchvision's own.
    """

    kind: str = Field(pattern=r"^torchvision:[a-z][a-z0-9_]{0,63}$")
    dropout: float | None = Field(default=None, ge=0, lt=1)

    @property
    def name(self) -> str:
        """What torchvision calls it."""
        return self.kind.removeprefix("torchvision:")


def network_kind(value: Any) -> str:
    """Which of the networks a config, or its JSON, is of."""
    kind = value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", "")
    return "torchvision" if str(kind).startswith("torchvision:") else str(kind)


_Single = (
    Annotated[LinearNetwork, Tag("linear")]
    | Annotated[MlpNetwork, Tag("mlp")]
    | Annotated[TableNetwork, Tag("table")]
    | Annotated[CnnNetwork, Tag("cnn")]
    | Annotated[ResnetNetwork, Tag("resnet")]
    | Annotated[TorchvisionNetwork, Tag("torchvision")]
)


class EnsembleNetwork(Frozen):
    """Several networks of the other kinds, each with weights of its own: their mean logit.

    They all take the same preprocessed input, so table networks must ask for as many bins.

    members: 2 to 16 networks, each as a table with its kind and keys.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Annotated[_Single, Discriminator(network_kind)], ...]

    @model_validator(mode="after")
    def _members_go_together(self) -> EnsembleNetwork:
        if not 2 <= len(self.members) <= MOST_MEMBERS:
            raise ValueError(f"expected 2 to {MOST_MEMBERS} members, found {len(self.members)}")
        bins = {member.bins for member in self.members if isinstance(member, TableNetwork)}
        if len(bins) > 1:
            raise ValueError(
                "table networks in one ensemble share their input: expected the same bins, "
                f"found {', '.join(map(str, sorted(bins)))}"
            )
        return self


NetworkConfig = Annotated[
    _Single | Annotated[EnsembleNetwork, Tag("ensemble")], Discriminator(network_kind)
]


def table_bins(config: NetworkConfig) -> int:
    """At most how many bins a network wants of each number in a table."""
    if isinstance(config, EnsembleNetwork):
        return max(map(table_bins, config.members))
    return config.bins if isinstance(config, TableNetwork) else 0


def describe_network(config: NetworkConfig) -> str:
    """Its kind; of an ensemble how many members of which kinds, the most frequent first."""
    if not isinstance(config, EnsembleNetwork):
        return config.kind
    kinds = Counter(member.kind for member in config.members).most_common()
    return f"ensemble of {', '.join(f'{count} {kind}' for kind, count in kinds)}"
