"""The study that notebooks teach, to be measured beside ours."""

from __future__ import annotations

import time

import numpy as np
import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.textbook import Rows
from training.data import Dataset

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}


def textbook_study(
    data: Dataset, device: torch.device, seconds: float
) -> tuple[optuna.Study, float]:
    """Search for so long, in this one process; the study and the seconds that it took.

    The space is that of the recipe fashion-mnist. As `optimize(timeout=...)` has it, the trial
    that is running when the time is over goes on to its end, which is in those seconds.
    """
    pixels = data.train.raw
    assert isinstance(pixels, np.ndarray)
    mean, std = float(pixels.mean() / 255), float(pixels.std() / 255)
    features, classes = int(np.prod(data.input.shape)), len(data.labels)

    def objective(trial: optuna.Trial) -> float:
        network = suggest_network(trial, features, classes).to(device)
        epochs = trial.suggest_int("epochs", 10, 50)
        rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        batch_size = trial.suggest_categorical("batch_size", [16, 32, 64, 128])
        optimizer_name = trial.suggest_categorical("optimizer", list(OPTIMIZERS))
        weight_decay = trial.suggest_float("weight_decay", 1e-5, 1e-3, log=True)
        optimizer = OPTIMIZERS[optimizer_name](
            network.parameters(), lr=rate, weight_decay=weight_decay
        )
        training = DataLoader(Rows(data.train, mean, std), batch_size=batch_size, shuffle=True)
        validation = DataLoader(Rows(data.validation, mean, std), batch_size=batch_size)
        loss_of = nn.CrossEntropyLoss()
        network.train()
        for _ in range(epochs):
            running = 0.0
            for inputs, labels in training:
                inputs, labels = inputs.to(device), labels.to(device)
                optimizer.zero_grad()
                loss = loss_of(network(inputs), labels)
                loss.backward()
                optimizer.step()
                running += loss.item()
        return accuracy_of(network, validation, device)

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    began = time.monotonic()
    study.optimize(objective, timeout=seconds)
    return study, time.monotonic() - began


def suggest_network(trial: optuna.Trial, features: int, classes: int) -> nn.Sequential:
    """One to five hidden layers of 8 to 128 neurons: float32 [N, ...] to logits [N, classes]."""
    depth = trial.suggest_int("n_layers", 1, 5)
    dropout = trial.suggest_float("dropout", 0.1, 0.5)
    batch_norm = trial.suggest_categorical("batch_norm", [True, False])
    layers: list[nn.Module] = [nn.Flatten()]
    width = features
    for layer in range(depth):
        neurons = trial.suggest_int(f"neurons_{layer}", 8, 128, step=8)
        layers.append(nn.Linear(width, neurons))
        if batch_norm:
            layers.append(nn.BatchNorm1d(neurons))
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        width = neurons
    return nn.Sequential(*layers, nn.Linear(width, classes))


def accuracy_of(network: nn.Module, batches: DataLoader, device: torch.device) -> float:
    """The share of the rows that are answered rightly."""
    network.eval()
    correct = total = 0
    with torch.no_grad():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            correct += int((network(inputs).argmax(dim=1) == labels).sum().item())
            total += len(labels)
    return correct / total
