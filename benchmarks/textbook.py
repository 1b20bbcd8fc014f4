"""The training loop that tutorials teach, to be measured beside ours."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from training.data import Dataset as Labelled
from training.data import Part
from training.recipe import TrainConfig


class Rows(Dataset):
    """One picture and its label at a time, as torchvision.datasets.FashionMNIST gives them."""

    def __init__(self, part: Part, mean: float, std: float) -> None:
        from torchvision import transforms

        assert isinstance(part.raw, np.ndarray)
        self.pictures, self.labels = part.raw[:, 0], part.labels
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((mean,), (std,))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        picture = Image.fromarray(self.pictures[index])
        return self.transform(picture), int(self.labels[index])


def textbook_epochs(
    network: nn.Module,
    data: Labelled,
    config: TrainConfig,
    device: torch.device,
    *,
    seed: int,
    workers: int,
) -> list[float]:
    """Train for config.epochs; the seconds of each, validation included."""
    pixels = data.train.raw
    assert isinstance(pixels, np.ndarray)
    mean, std = float(pixels.mean() / 255), float(pixels.std() / 255)
    torch.manual_seed(seed)
    batch_size = int(config.batch_size)
    training = DataLoader(
        Rows(data.train, mean, std), batch_size=batch_size, shuffle=True, num_workers=workers
    )
    validation = DataLoader(
        Rows(data.validation, mean, std), batch_size=batch_size, num_workers=workers
    )
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    seconds = []
    for _ in range(int(config.epochs)):
        began = time.perf_counter()
        network.train()
        running = 0.0
        for inputs, labels in training:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = loss_of(network(inputs), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
        network.eval()
        correct = 0
        with torch.no_grad():
            for inputs, labels in validation:
                inputs, labels = inputs.to(device), labels.to(device)
                correct += int((network(inputs).argmax(dim=1) == labels).sum().item())
        seconds.append(time.perf_counter() - began)
    return seconds
