"""Pictures changed at random: each is one of the changes that the recipe allows, and no other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from artifacts.configs import CnnNetwork, LinearNetwork
from artifacts.networks import build_network
from training.augment import _turned, augment_pixels, cut_out, mix
from training.batches import Batches
from training.data import Part
from training.evaluation import evaluate
from training.fit import batch_inputs, fit
from training.recipe import AugmentConfig, TrainConfig

CPU = torch.device("cpu")
SHAPES = [(1, 1, 1), (3, 5, 4), (1, 3, 7), (3, 1, 6)]


def noise(rows: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, *shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_mirrors_about_half_of_the_pictures_and_does_nothing_else(
    shape: tuple[int, ...],
) -> None:
    raw = noise(400, shape)
    torch.manual_seed(0)
    found = augment_pixels(raw, AugmentConfig(flip=True))
    assert found.dtype == torch.uint8 and found.shape == raw.shape
    mirrored = (found == raw.flip(3)).flatten(1).all(dim=1)
    same = (found == raw).flatten(1).all(dim=1)
    assert (mirrored | same).all()
    if shape[2] > 1:
        assert 150 < (mirrored & ~same).sum() < 250


def shifts(picture: np.ndarray, most: int, pad: str) -> set[bytes]:
    """All (2 most + 1)^2 of them, by numpy's own padding."""
    mode = {"mirror": "reflect", "black": "constant"}[pad]
    wide = np.pad(picture, ((0, 0), (most, most), (most, most)), mode=mode)
    height, width = picture.shape[1:]
    return {
        wide[:, top : top + height, left : left + width].tobytes()
        for top in range(2 * most + 1)
        for left in range(2 * most + 1)
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", ["mirror", "black"])
@pytest.mark.parametrize("most", [1, 2, 9])
def test_a_crop_is_one_of_the_shifts(shape: tuple[int, ...], pad: str, most: int) -> None:
    raw = noise(1, shape)
    torch.manual_seed(0)
    many = raw.expand(600, *shape)
    found = augment_pixels(many, AugmentConfig(crop=most, pad=pad))
    assert found.dtype == torch.uint8 and found.shape == many.shape
    seen = {row.numpy().tobytes() for row in found.contiguous()}
    allowed = shifts(raw[0].numpy(), most, pad)
    assert seen <= allowed
    if most < 3:
        assert seen == allowed


@settings(deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 12))
def test_what_is_cut_out_is_a_square_around_one_pixel(height: int, width: int, size: int) -> None:
    found = cut_out(torch.ones(20, 2, height, width), size)
    assert found.shape == (20, 2, height, width)
    for first, second in found.numpy():
        np.testing.assert_array_equal(first, second)
        squares = []
        for y in range(height):
            for x in range(width):
                square = np.ones((height, width), dtype=np.float32)
                top, left = y - size // 2, x - size // 2
                square[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
                squares.append(square.tobytes())
        assert first.tobytes() in squares


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 1, 1), (7,)])
def test_mixup_is_the_share_of_each_row_and_its_partner(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(8, *shape)
    shares = []
    for _ in range(200):
        # cutmix has no meaning for tables.
        config = AugmentConfig(mixup=0.4, cutmix=1.0 if len(shape) == 1 else 0.0)
        mixed, partner, share = mix(inputs, config)
        assert sorted(partner.tolist()) == list(range(8)) and mixed.shape == inputs.shape
        torch.testing.assert_close(mixed, share * inputs + (1 - share) * inputs[partner])
        shares.append(share)
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), rel=0.25)


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 1, 1), (2, 1, 9), (1, 16, 16)])
def test_cutmix_says_the_share_of_pixels_that_are_a_rows_own(shape: tuple[int, ...]) -> None:
    inputs = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, *shape).contiguous()
    shares = []
    for _ in range(100):
        mixed, partner, share = mix(inputs, AugmentConfig(cutmix=1.0))
        other = partner != torch.arange(8)
        own = mixed == inputs
        assert (own | (mixed == inputs[partner])).all()
        counted = own[other].float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(counted, torch.full_like(counted, share))
        # One window, the same in all rows and channels.
        assert (own[other] == own[other][:1, :1]).all()
        shares.append(share)
    if shape == (1, 16, 16):
        assert np.mean(shares) == pytest.approx(0.5, abs=0.1) and max(shares) - min(shares) > 0.8


def test_where_both_are_set_either_one_mixes_a_batch() -> None:
    inputs = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    whole = 0
    for _ in range(200):
        mixed, _, _ = mix(inputs, AugmentConfig(mixup=1.0, cutmix=1.0))
        whole += all(len(row.unique()) == 1 for row in mixed)
    assert 60 < whole < 140


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", ["mirror", "black"])
def test_turning_by_nothing_is_nothing(shape: tuple[int, ...], pad: str) -> None:
    raw = noise(5, shape).float()
    torch.testing.assert_close(_turned(raw, AugmentConfig(pad=pad)), raw, atol=1e-2, rtol=0)


def centre(picture: Tensor) -> tuple[float, float]:
    """Of brightness, (y, x) in pixels."""
    height, width = picture.shape[-2:]
    weight = picture[0] / picture.sum()
    y = (weight.sum(dim=1) * torch.arange(height)).sum().item()
    return y, (weight.sum(dim=0) * torch.arange(width)).sum().item()


def test_a_bright_pixel_moves_as_far_as_the_shift_says_and_no_farther() -> None:
    height, width = 20, 40
    raw = torch.zeros(300, 1, height, width)
    raw[:, 0, 9, 19] = 255
    torch.manual_seed(0)
    found = _turned(raw, AugmentConfig(shift=0.2, pad="black"))
    moved = np.array([centre(picture) for picture in found]) - (9, 19)
    farthest = np.abs(moved).max(axis=0)
    np.testing.assert_allclose(farthest, [0.2 * height, 0.2 * width], rtol=0.05)
    assert (farthest <= [0.2 * height + 0.01, 0.2 * width + 0.01]).all()
    assert np.abs(np.corrcoef(moved.T)[0, 1]) < 0.2


def test_a_rotation_keeps_the_distance_to_the_middle_in_pictures_that_are_not_square() -> None:
    raw = torch.zeros(300, 1, 31, 51)
    raw[:, 0, 15, 35] = 255
    torch.manual_seed(0)
    found = _turned(raw, AugmentConfig(rotate=45, pad="black"))
    moved = np.array([centre(picture) for picture in found]) - (15, 25)
    np.testing.assert_allclose(np.hypot(*moved.T), 10, atol=0.3)
    angles = np.degrees(np.arctan2(*moved.T))
    assert 42 < angles.max() < 46 and -46 < angles.min() < -42


def test_a_zoom_scales_the_distance_to_the_middle() -> None:
    raw = torch.zeros(300, 1, 41, 41)
    raw[:, 0, 20, 30] = 255
    torch.manual_seed(0)
    found = _turned(raw, AugmentConfig(zoom=0.3, pad="black"))
    seen = [picture for picture in found if picture.sum() > 0]
    moved = np.array([centre(picture) for picture in seen]) - (20, 20)
    assert np.abs(moved[:, 0]).max() < 0.1
    assert moved[:, 1].min() == pytest.approx(7, abs=0.3)
    assert moved[:, 1].max() == pytest.approx(13, abs=0.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_colours_stay_within_their_range(shape: tuple[int, ...]) -> None:
    raw = noise(200, shape)
    found = augment_pixels(raw, AugmentConfig(colour=0.9))
    assert found.dtype == torch.float32 and found.shape == raw.shape
    assert found.min() >= 0 and found.max() <= 255
    assert not torch.equal(found, raw.float())


def test_a_grey_picture_has_no_saturation() -> None:
    grey = noise(50, (1, 6, 6))
    torch.manual_seed(3)
    found = augment_pixels(grey.expand(50, 3, 6, 6), AugmentConfig(colour=0.8))
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 0], found[:, 2], atol=1e-3, rtol=0)
    # Brightness and contrast alone are one line from old to new pixels.
    torch.manual_seed(3)
    one = augment_pixels(grey, AugmentConfig(colour=0.5))
    for old, new in zip(grey.float(), one, strict=True):
        inside = (new > 0) & (new < 255)
        fitted = np.polyfit(old[inside], new[inside], 1)
        np.testing.assert_allclose(np.polyval(fitted, old[inside]), new[inside], atol=0.05)


EVERYTHING = AugmentConfig(
    flip=True, crop=2, rotate=20, shift=0.1, zoom=0.2, colour=0.4, cutout=3, mixup=0.5, cutmix=0.5
)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_batch_and_the_shape_is_kept(shape: tuple[int, ...]) -> None:
    raw = noise(30, shape)
    before = raw.clone()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        inputs, partner, share = batch_inputs(raw, nn.Identity(), EVERYTHING)
        assert inputs.shape == raw.shape and inputs.dtype == torch.float32
        assert inputs.isfinite().all() and partner is not None and 0 <= share <= 1
        found.append(inputs)
    assert torch.equal(found[0], found[1])
    assert math.prod(shape) == 1 or not torch.equal(found[0], found[2])
    assert torch.equal(raw, before)


def test_evaluation_never_changes_its_pictures() -> None:
    """Were its rows augmented, the record would differ from a plain evaluation of the result."""
    part = Part(noise(40, (1, 6, 6)).numpy(), np.arange(40) % 2)
    network = build_network(CnnNetwork(channels=(4,), depth=1), (1, 6, 6), (), 2)

    class Floats(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() / 255

    config = TrainConfig(epochs=1, batch_size=8, augment=EVERYTHING, precision="float32")
    held = Batches(part, CPU)
    result = fit(network, Floats(), held, held, config, lambda *_: None)
    first = evaluate(network, Floats(), held)
    assert evaluate(network, Floats(), held) == first
    (record,) = result.history
    assert (record.validation_loss, record.validation_accuracy) == first


def test_tables_are_trained_with_mixup() -> None:
    part = Part(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2)
    states = []
    for mixup in (0.0, 0.3):
        torch.manual_seed(0)
        network = build_network(LinearNetwork(), (3,), (), 2)
        config = TrainConfig(
            epochs=2, batch_size=8, augment=AugmentConfig(mixup=mixup, cutmix=1.0, flip=True)
        )
        held = Batches(part, CPU)
        fit(network, nn.Identity(), held, held, config, lambda *_: None)
        states.append(network[1].weight.detach().clone())
    assert not torch.equal(*states)
