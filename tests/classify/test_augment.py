"""Batch transforms against loops over single images and pixels."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from labelemb.classify.augment import channel_statistics, cutmix, mixup, normalize, random_crop, random_flip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(num_images: int, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    return torch.randint(1, 256, (num_images, channels, height, width), dtype=torch.uint8, generator=seeded(99))


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """One image seen through a window that starts `down` below and `right` of its corner; black outside."""
    result = torch.zeros_like(image)
    channels, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                for channel in range(channels):
                    result[channel, row, column] = image[channel, row + down, column + right]
    return result


def test_crop_is_pixel_exact_and_reaches_every_offset_equally_often() -> None:
    padding, num_images = 2, 2500
    image = some_images(1)[0]
    windows = {
        (down, right): shifted(image, down, right)
        for down in range(-padding, padding + 1)
        for right in range(-padding, padding + 1)
    }
    crops = random_crop(image.expand(num_images, -1, -1, -1), padding, seeded())
    counts = dict.fromkeys(windows, 0)
    for crop in crops:
        (offset,) = [offset for offset, window in windows.items() if torch.equal(crop, window)]
        counts[offset] += 1
    expected = num_images / len(windows)
    deviation = math.sqrt(expected)
    assert all(abs(count - expected) < 4.5 * deviation for count in counts.values())


def test_crop_reaches_every_offset_of_the_recipe() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 255  # stays in sight wherever the window lies
    crops = random_crop(image.expand(2000, -1, -1, -1), 4, seeded())
    assert len(torch.unique(crops, dim=0)) == 81


def test_crop_shifts_each_image_of_the_batch_by_its_own_offset() -> None:
    images = some_images(40)
    crops = random_crop(images, 1, seeded())
    offsets = []
    for image, crop in zip(images, crops, strict=True):
        (offset,) = [(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1) if torch.equal(crop, shifted(image, d, r))]
        offsets.append(offset)
    assert len(set(offsets)) == 9


def test_crop_without_padding_changes_nothing() -> None:
    images = some_images(7)
    assert torch.equal(random_crop(images, 0, seeded()), images)


def test_flip_is_fair_and_mirrors_columns_only() -> None:
    images = some_images(1).expand(4000, -1, -1, -1)
    flipped = random_flip(images, seeded())
    mirrored = torch.stack([images[0, :, :, column] for column in (4, 3, 2, 1, 0)], dim=-1)
    is_mirrored = (flipped == mirrored).flatten(1).all(1)
    is_same = (flipped == images[0]).flatten(1).all(1)
    assert torch.equal(is_mirrored, ~is_same)
    assert abs(is_mirrored.sum().item() - 2000) < 4.5 * math.sqrt(1000)


def test_flip_and_crop_draw_independently_for_neighbouring_images() -> None:
    images = some_images(1).expand(4000, -1, -1, -1)
    flips = (random_flip(images, seeded()) != images).flatten(1).any(1).double() - 0.5
    correlation = (flips[1:] * flips[:-1]).mean().item() * 4
    assert abs(correlation) < 4.5 / math.sqrt(4000)


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalised_pixels_are_those_of_the_formula(channels_last: bool) -> None:
    images = some_images(3)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    mean, std = torch.tensor([25.0, 127.5, 230.0]), torch.tensor([50.0, 64.0, 380.0])
    before = images.clone()
    result = normalize(images, mean, std, channels_last=channels_last)
    expected = torch.empty(images.shape, dtype=torch.float64)
    for item in range(3):
        for channel in range(3):
            for row in range(6):
                for column in range(5):
                    pixel = images[item, channel, row, column].item()
                    expected[item, channel, row, column] = (pixel - mean[channel].item()) / std[channel].item()
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(images, before)


def test_normalise_by_0_and_255_gives_pixels_from_0_to_1() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = normalize(pixels, torch.zeros(1), torch.full((1,), 255.0))
    assert (result.min().item(), result.max().item()) == (0.0, 1.0)
    torch.testing.assert_close(result.double(), pixels.double() / 255, rtol=1e-6, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_statistics_are_those_of_the_formula_whatever_the_chunk(chunk_size: int) -> None:
    images = some_images(7)
    mean, std = channel_statistics(images, chunk_size=chunk_size)
    for channel in range(3):
        values = [float(value) for value in images[:, channel].flatten().tolist()]
        expected = math.fsum(values) / len(values)
        variance = math.fsum((value - expected) ** 2 for value in values) / len(values)
        assert mean[channel].item() == pytest.approx(expected, rel=1e-7)
        assert std[channel].item() == pytest.approx(math.sqrt(variance), rel=1e-7)


def test_own_statistics_normalise_to_mean_0_and_deviation_1() -> None:
    images = some_images(50)
    values = normalize(images, *channel_statistics(images)).double()
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_channel_without_variation_becomes_zero() -> None:
    images = torch.full((4, 1, 3, 3), 77, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert std.item() == 1
    torch.testing.assert_close(normalize(images, mean, std), torch.zeros(4, 1, 3, 3), rtol=0, atol=1e-6)


def test_statistics_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image, got none"):
        channel_statistics(torch.empty(0, 3, 4, 4, dtype=torch.uint8))


Mix = Callable[[Tensor, Tensor, int, float, torch.Generator], tuple[Tensor, Tensor]]


def codes(num_items: int) -> tuple[Tensor, Tensor]:
    """Images whose every pixel is the item's number, and labels, some of them shared."""
    images = torch.arange(num_items, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 2, 6, 5).clone()
    return images, torch.arange(num_items) % 4


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixed_targets_are_distributions_over_own_and_partner_label(mix: Mix, alpha: float) -> None:
    images, targets = codes(9)
    for seed in range(20):
        _, mixed = mix(images, targets, 5, alpha, seeded(seed))
        assert mixed.shape == (9, 5)
        torch.testing.assert_close(mixed.sum(1), torch.ones(9))
        assert (mixed >= 0).all()
        assert ((mixed > 0).sum(1) <= 2).all()


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mix_of_weight_one_equals_none(mix: Mix) -> None:
    images, targets = codes(9)
    mixed, distributions = mix(images, targets, 4, 0.0, seeded())
    assert torch.equal(mixed, images)
    assert torch.equal(distributions, torch.eye(4)[targets])


def test_mixup_blends_images_and_targets_by_one_weight() -> None:
    num_items = 8
    images, targets = torch.eye(num_items).view(num_items, 1, 1, num_items), torch.arange(num_items)
    for seed in range(10):
        mixed, distributions = mixup(images, targets, num_items, 1.0, seeded(seed))
        torch.testing.assert_close(mixed.view(num_items, num_items), distributions)
        own = distributions.diagonal()
        assert torch.allclose(own, own.min()) or own.max() == 1  # an item may be its own partner
        assert torch.equal(distributions.sum(0).round(decimals=5), torch.ones(num_items))  # partners are a permutation


def test_mixup_weight_follows_the_beta_distribution() -> None:
    images, targets = torch.eye(2).view(2, 1, 1, 2), torch.arange(2)
    for alpha in (0.2, 1.0, 4.0):
        rows = [mixup(images, targets, 2, alpha, seeded(seed))[1] for seed in range(800)]
        weights = torch.tensor([row[0, 0] for row in rows if row[0, 0] < 1])  # the others are their own partners
        deviation = 1 / (2 * math.sqrt(2 * alpha + 1))
        assert abs(len(weights) - 400) < 4.5 * math.sqrt(200)
        assert weights.mean().item() == pytest.approx(0.5, abs=4.5 * deviation / math.sqrt(len(weights)))
        assert weights.std().item() == pytest.approx(deviation, rel=0.15)


def test_cutmix_replaces_one_rectangle_and_weighs_targets_by_its_area() -> None:
    images = torch.arange(9 * 60, dtype=torch.float32).view(9, 2, 6, 5)  # no two pixels alike
    seen = set()
    for seed in range(60):
        mixed, distributions = cutmix(images, torch.arange(9), 9, 1.0, seeded(seed))
        replaced = mixed != images  # (9, 2, 6, 5)
        for item in range(9):
            if not replaced[item].any():  # its own partner, or no area
                assert distributions[item, item] == 1
                continue
            partner = int(mixed[item][replaced[item]][0].item() // 60)
            assert torch.equal(mixed[item][replaced[item]], images[partner][replaced[item]])
            rows, columns = replaced[item, 0].any(1).sum().item(), replaced[item, 0].any(0).sum().item()
            assert torch.equal(replaced[item, 0], replaced[item, 1])
            assert replaced[item, 0].sum().item() == rows * columns
            assert distributions[item, partner].item() == pytest.approx(rows * columns / 30, abs=1e-6)
            assert distributions[item, item].item() == pytest.approx(1 - rows * columns / 30, abs=1e-6)
            seen.add((rows, columns))
    assert len(seen) > 10


def test_cutmix_rectangle_reaches_every_pixel() -> None:
    images, targets = codes(4)
    replaced = torch.zeros(6, 5, dtype=torch.bool)
    for seed in range(100):
        mixed, _ = cutmix(images, targets, 4, 1.0, seeded(seed))
        replaced |= (mixed != images).any(0).any(0)
    assert replaced.all()


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixing_leaves_its_inputs_and_their_layout_alone(mix: Mix) -> None:
    images, targets = codes(9)
    images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    mixed, _ = mix(images, targets, 4, 1.0, seeded(1))
    assert torch.equal(images, before)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(mixed, images)


TRANSFORMS: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]] = {
    "crop": lambda images, generator: (random_crop(images, 4, generator),),
    "flip": lambda images, generator: (random_flip(images, generator),),
    "mixup": lambda images, generator: mixup(images.float(), torch.arange(20), 20, 1.0, generator),
    "cutmix": lambda images, generator: cutmix(images, torch.arange(20), 20, 1.0, generator),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_same_generator_gives_the_same_result_and_another_gives_another(name: str) -> None:
    images, transform = some_images(20), TRANSFORMS[name]
    torch.manual_seed(1)
    first = transform(images, seeded(5))
    torch.manual_seed(2)
    again, other = transform(images, seeded(5)), transform(images, seeded(6))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_advance_their_generator_and_no_other(name: str) -> None:
    images, generator = some_images(20), seeded(5)
    state = torch.get_rng_state()
    first, second = TRANSFORMS[name](images, generator), TRANSFORMS[name](images, generator)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got torch\.uint8: call normalize first"):
        mixup(some_images(4), torch.arange(4), 4, 1.0, seeded())


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_negative_alpha_is_refused(mix: Mix) -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -1\.0"):
        mix(*codes(4), 4, -1.0, seeded())
