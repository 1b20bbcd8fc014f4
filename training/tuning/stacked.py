"""Many small networks trained at once, as one batched program.

Each has its own rate, weight decay, dropout, label smoothing and schedule, stops when its own time
has come, and ends as `fit` would have left it alone. They see the same rows, changed at random in
the same way, in the same order: what draws them is seeded alike in every run of `fit`.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from artifacts.configs import LinearNetwork, MlpNetwork
from artifacts.errors import DataError
from artifacts.manifest import Epoch
from training.batches import Batches
from training.divergence import check_epoch
from training.fit import Fit, batch_inputs, note_epoch, rows_of_an_epoch
from training.losses import class_weights, predicted_class
from training.precision import loss_scaler
from training.ranks import ALONE
from training.recipe import Recipe, TrainConfig
from training.schedule import Schedule, resolve_schedule
from training.state import TrainingState
from training.tuning.stacked_network import DropoutMasks, StackedNetwork, State, selected
from training.tuning.stacked_optim import StackedOptimizer

# What each network of a stack may have its own of, of [train], and by the recipe's keys.
_OWN = {
    "lr", "weight_decay", "label_smoothing", "epochs", "schedule", "warmup", "plateau_factor",
    "plateau_patience", "patience",
}  # fmt: skip
OWN_KEYS = frozenset({"model.dropout", *(f"train.{key}" for key in _OWN)})
# At most so many are ever worth while at once: see `pays`.
MOST_TOGETHER = {"cpu": 8, "cuda": 128}
# Between hidden layers, of a whole stack on CUDA.
_MOST_WEIGHTS = 2**24
# The masks are drawn apart from the augmentation, which is then the same with and without them.
_MASK_SEED = 0x9E3779B97F4A7C15


def stack_key(recipe: Recipe) -> str | None:
    """Recipes with equal keys can be trained together by `fit_stacked`; those with None cannot.

    It holds the data, the model but for its dropout, and [train] but for what `_OWN` names. None:
    networks other than "mlp" and "linear"; muon, which orthogonalizes each matrix by itself;
    precision other than float32; train.compile, train.accumulate and train.rates.
    """
    config = recipe.train
    if (
        not isinstance(recipe.model, LinearNetwork | MlpNetwork)
        or config.optimizer == "muon"
        or config.precision not in ("auto", "float32")
        or config.compile
        or config.accumulate > 1
        or config.rates
    ):
        return None
    shared = {
        "data": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json", exclude={"dropout"}),
        "train": _shared(config),
    }
    return json.dumps(shared, sort_keys=True)


def pays(recipe: Recipe, rows: int, inputs: int, device: torch.device) -> int:
    """How many recipes like this one are worth while at once; 1: none.

    rows: of the training part, with so many inputs each.

    On one core of an AMD EPYC (torch 2.15, benchmarks.stacked, medians of 3) 8 at once came to 2.3
    to 3.8 times as many trials a minute as one by one for the 128-64 network on 30 and 64 inputs,
    in batches of 128 and 32, and to 1.3 and 1.4 times on 784; 32 at once gain up to a quarter
    more, but a sampler learns nothing from trials that begin together. What is saved is what torch
    spends on each operation, so large layers gain less: 8 of 256-256 1.3 to 2 times, of 512-256,
    whose weights no longer fit in the cache, 1.1 to 1.5 times. On CUDA, where it was not measured,
    a small network's step takes as long as its launches do: the limit is the stack's memory.
    """
    if stack_key(recipe) is None:
        return 1
    widths = recipe.model.hidden if isinstance(recipe.model, MlpNetwork) else (1,)
    weights = max(1, sum(before * after for before, after in itertools.pairwise(widths)))
    if device.type != "cpu":
        return max(1, min(MOST_TOGETHER["cuda"], _MOST_WEIGHTS // weights))
    batch_size = int(resolve_schedule(recipe.train, rows).batch_size)
    few = inputs * widths[0] <= 2**18 and weights <= 2**16 and batch_size * weights <= 2**24
    return MOST_TOGETHER["cpu"] if few else 1


def fit_stacked(
    networks: list[nn.Module],
    preprocess: nn.Module,
    train: Batches,
    validation: Batches,
    configs: list[TrainConfig],
    show: Callable[[int, Epoch, float], bool],
    *,
    examine: Callable[[int, nn.Module], None] | None = None,
) -> list[Fit | DataError | None]:
    """Train `networks` in place, all at once, and leave each as `fit` would.

    Without dropout they are the same within float32's rounding (which under Adam decides, in `fit`
    too, the biases before a batch norm: they have no other gradient). With it each has masks of
    its own, which depend on config.seed and its place in the stack.

    networks: `build_network`'s, of recipes with equal `stack_key`, each built after
    torch.manual_seed(config.seed); on the batches' device. configs: theirs, resolved.
    preprocess: raw [N, ...] -> float32, on the same device.
    show: called after each epoch for each network still in training, by its index, with the epoch
    and its share of the epoch's seconds; False: this one is pruned.
    examine: called before it with the network in eval mode, holding the weights that were measured.
    Returns by network a Fit; None where it was pruned; a DataError where its loss was no longer
    finite. What becomes of one changes nothing for the others. One that was pruned holds the
    weights that it would have kept, one that diverged those that it began with or that `examine`
    saw last.
    Raises DataError where there are too few rows.
    """
    assert len(networks) == len(configs)
    assert all(_shared(config) == _shared(configs[0]) for config in configs)
    if not networks:
        return []
    stack = _Stack(networks, train, configs)
    states = [_state(*pair, stack.steps) for pair in zip(networks, configs, strict=True)]
    results: list[Fit | DataError | None] = [None] * len(networks)
    running = list(range(len(networks)))
    while running:
        began = time.perf_counter()
        own = [(states[index], configs[index]) for index in running]
        records = stack.epoch(preprocess, train, validation, own)
        seconds = (time.perf_counter() - began) / len(running)
        finite, better, staying = [], [], []
        for row, record in enumerate(records):
            if isinstance(record, DataError):
                results[running[row]] = record
                continue
            finite.append(row)
            state, config = own[row]
            state.history.append(record)
            state.epoch += 1
            if note_epoch(state, record, config):
                better.append(row)
        stack.keep(better)
        for row in finite:
            index, (state, config) = running[row], own[row]
            if examine is not None:
                stack.unload_measured(row, networks[index], len(state.history))
                examine(index, networks[index])
            goes_on = show(index, state.history[-1], seconds)
            if goes_on and not state.finished:
                staying.append(row)
                continue
            stack.unload_kept(row, networks[index], state.kept_epoch)
            if goes_on:
                stopped_early = len(state.history) < int(config.epochs)
                results[index] = Fit(tuple(state.history), state.kept_epoch, stopped_early)
        if len(staying) < len(running):
            running = [running[row] for row in staying]
            stack.select(staying)
    return results


def _state(network: nn.Module, config: TrainConfig, steps: int) -> TrainingState:
    """What `fit` knows of a run; its weights, optimizer, order and sums are the stack's."""
    return TrainingState(
        network=network,
        averaged=network,
        optimizers=[],
        schedule=Schedule(config, steps),
        scaler=loss_scaler(network, config, torch.device("cpu")),
        order=torch.Generator(),
        loss_sum=torch.zeros(()),
        correct=torch.zeros(()),
    )


class _Stack:
    """The networks still in training, by row, and all that moves with them.

    steps: of an epoch.
    """

    def __init__(
        self, networks: list[nn.Module], train: Batches, configs: Sequence[TrainConfig]
    ) -> None:
        config, device = configs[0], train.device
        self._config, self._device = config, device
        self._batch_size, self._used = rows_of_an_epoch(train, config, ALONE)
        self.steps = math.ceil(self._used / self._batch_size)
        torch.manual_seed(config.seed)
        self._order = torch.Generator().manual_seed(config.seed)
        self._network = StackedNetwork(networks, device)
        self._optimizer = StackedOptimizer(self._network, configs)
        self._masks = DropoutMasks(networks, self._network.hidden, config.seed + _MASK_SEED, device)
        self._smoothing = torch.tensor([own.label_smoothing for own in configs], device=device)
        # What is measured, and what the best epochs left.
        self._averaged = self._copy() if config.ema else self._network.state
        self._kept = self._copy() if config.keep == "best" else None
        outputs = self._network.outputs
        weights = class_weights(train.labels, config)
        self._weighted = weights is not None
        self._by_class = torch.eye(max(2, outputs), device=device)
        if weights is not None:
            self._by_class[:, : len(weights)] *= weights

    def epoch(
        self,
        preprocess: nn.Module,
        train: Batches,
        validation: Batches,
        own: Sequence[tuple[TrainingState, TrainConfig]],
    ) -> list[Epoch | DataError]:
        """Train for an epoch and measure: by row what it came to, or that it has diverged.

        own: the rows' states, whose gradient norms are set, and configs.
        """
        number = own[0][0].epoch
        done = (number - 1) * self.steps
        rates = [
            [state.schedule.at(step) for state, _ in own] for step in range(done, done + self.steps)
        ]
        self._optimizer.plan(rates, done)
        found = self._train(preprocess, train, done)
        loss, correct, validation_loss, validation_correct, norms = torch.stack(
            [*found[:2], *self._measure(preprocess, validation), found[2]]
        ).tolist()
        records: list[Epoch | DataError] = []
        for row, (state, config) in enumerate(own):
            train_loss, lr = loss[row] / self._used, rates[-1][row][0]
            held_loss = validation_loss[row] / validation.rows
            if math.isfinite(norms[row]):
                state.gradient_norm = norms[row]
            try:
                check_epoch(state, train_loss, held_loss, lr, config)
            except DataError as error:
                records.append(error)
                continue
            records.append(
                Epoch(
                    epoch=number,
                    train_loss=train_loss,
                    train_accuracy=correct[row] / self._used,
                    validation_loss=held_loss,
                    validation_accuracy=validation_correct[row] / validation.rows,
                    lr=lr,
                    gradient_norm=state.gradient_norm,
                )
            )
        return records

    def keep(self, rows: list[int]) -> None:
        """The weights measured last are the best ones yet of these rows."""
        if self._kept is not None and rows:
            at = torch.tensor(rows, device=self._device)
            for kept, now in zip(self._kept, self._averaged, strict=True):
                kept.index_copy_(0, at, now.index_select(0, at))

    def unload_measured(self, row: int, network: nn.Module, epoch: int) -> None:
        """Leave `network` with a row's weights, as the epoch, from 1, measured them."""
        self._network.unload(network, self._averaged, row, epoch * self.steps)

    def unload_kept(self, row: int, network: nn.Module, epoch: int) -> None:
        """Leave `network` with a row's weights of the epoch that is kept."""
        state = self._averaged if self._kept is None else self._kept
        self._network.unload(network, state, row, epoch * self.steps)

    def select(self, staying: list[int]) -> None:
        """Go on with these rows alone: a few copies, which cost less than a step."""
        rows = torch.tensor(staying, dtype=torch.int64, device=self._device)
        self._network.select(rows)
        self._optimizer.select(rows)
        self._masks.select(rows)
        self._smoothing = self._smoothing.index_select(0, rows)
        if self._config.ema:
            self._averaged = selected(self._averaged, rows)
        else:
            self._averaged = self._network.state
        if self._kept is not None:
            self._kept = selected(self._kept, rows)

    def _copy(self) -> State:
        return [tensor.clone() for tensor in self._network.state]

    def _train(
        self, preprocess: nn.Module, train: Batches, done: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """By network the sums of the losses and of correct answers, and the last gradient norm.

        float64 [B]; done: steps before this epoch.
        """
        config = self._config
        order = torch.randperm(train.rows, generator=self._order)[: self._used]
        batches = order.split(self._batch_size)
        loss_sum = torch.zeros(len(self._smoothing), dtype=torch.float64, device=self._device)
        correct, norms = torch.zeros_like(loss_sum), None
        for number, (raw, labels) in enumerate(train.in_order(batches)):
            inputs, partner, share = batch_inputs(raw, preprocess, config.augment)
            logits = self._network.logits(inputs, self._masks.draw(len(raw)))
            losses = self._losses(logits, labels, partner, share)
            losses.sum().backward()
            norms = self._optimizer.step(number, look=number == len(batches) - 1)
            loss_sum.add_(losses.detach(), alpha=len(raw))
            correct += _correct(logits.detach(), labels)
            if config.ema:
                step = done + number + 1
                decay = min(config.ema, step / (step + 9))
                torch._foreach_lerp_(self._averaged, self._network.state, 1 - decay)
        assert norms is not None
        return loss_sum, correct, norms.double()

    @torch.no_grad()
    def _measure(self, preprocess: nn.Module, part: Batches) -> tuple[Tensor, Tensor]:
        """As `evaluate`: by network the sums of the losses and of correct answers, float64 [B]."""
        loss_sum = torch.zeros(len(self._smoothing), dtype=torch.float64, device=self._device)
        correct = torch.zeros_like(loss_sum)
        for raw, labels in part.all(part.answered_at_once):
            logits = self._network.answers(preprocess(raw), self._averaged)
            at = labels.view(1, -1, 1).expand(len(logits), -1, -1)
            loss_sum -= _log_probabilities(logits).gather(2, at).sum((1, 2))
            correct += _correct(logits, labels)
        return loss_sum, correct

    def _losses(
        self, logits: Tensor, labels: Tensor, partner: Tensor | None, share: float
    ) -> Tensor:
        """[B]; what `loss_of` makes of each network's logits, [B, N, K].

        Smoothing, class weights and mixup all change the targets, which but for the smoothing are
        those of all networks.
        """
        targets = self._by_class.index_select(0, labels)
        total = targets.sum() if self._weighted else len(labels)
        if partner is not None:
            targets = torch.lerp(targets.index_select(0, partner), targets, share)
        targets = targets / total
        spread = targets.mean(dim=1, keepdim=True)
        targets = torch.lerp(targets, spread, self._smoothing.view(-1, 1, 1))
        return -(targets * _log_probabilities(logits)).sum((1, 2))


def _log_probabilities(logits: Tensor) -> Tensor:
    """[B, N, K] -> the same, or [B, N, 2] for the one logit of two classes."""
    if logits.shape[2] == 1:
        return functional.logsigmoid(torch.cat([-logits, logits], dim=2))
    return functional.log_softmax(logits, dim=2)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the N rows each network, [B, N, K], names rightly."""
    return (predicted_class(logits.flatten(0, 1)).view(len(logits), -1) == labels).sum(dim=1)


def _shared(config: TrainConfig) -> dict[str, object]:
    """What the networks of a stack have in common."""
    settings = config.model_dump(mode="json", exclude=_OWN)
    settings["precision"] = "float32"
    return settings
