"""A share of the training images: of every label alike, always the same ones, none in two places."""

from pathlib import Path

import pytest
import torch
from tests.small_runs import write_image_cache

from labelemb.classify.held_out import held_out_share
from labelemb.classify.images import ImageData, load_images
from labelemb.errors import InputError
from labelemb.settings.config import ImageDataSettings
from labelemb.settings.recipe import load_recipe

LABELS = torch.tensor([0] * 40 + [1] * 10 + [2] * 3 + [3])


def images(tmp_path: Path, **settings: float) -> ImageData:
    path = write_image_cache(tmp_path / "images.safetensors", num_train=30)
    return load_images(ImageDataSettings.model_validate({"source": "pictures", "path": path, **settings}))


@pytest.mark.parametrize(("share", "counts"), [(0.1, [4, 1, 0, 0]), (0.5, [20, 5, 1, 0]), (0.999, [39, 9, 2, 0])])
def test_of_every_label_the_share_is_held_out_and_something_is_left(share: float, counts: list[int]) -> None:
    chosen = held_out_share(LABELS, share)
    assert LABELS[chosen].bincount(minlength=4).tolist() == counts


def test_the_share_is_drawn_at_random_and_always_the_same() -> None:
    torch.manual_seed(1)
    chosen = held_out_share(LABELS, 0.5)
    torch.manual_seed(2)
    assert torch.equal(chosen, held_out_share(LABELS, 0.5))
    assert not chosen[:20].all()
    assert not chosen[20:40].all()


def test_no_image_is_held_out_and_trained_on(tmp_path: Path) -> None:
    whole, data = images(tmp_path), images(tmp_path, validation=0.2)
    assert whole.validation is None
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (24, 6)
    parts = [*data.train.images, *data.validation.images]
    assert {part.numpy().tobytes() for part in parts} == {part.numpy().tobytes() for part in whole.train.images}
    limited = images(tmp_path, validation=0.2, limit=5)
    assert torch.equal(limited.train.images, data.train.images[:5])


def test_a_number_of_images_holds_out_the_first_ones(tmp_path: Path) -> None:
    whole, data = images(tmp_path), images(tmp_path, validation=7, limit=10)
    assert data.validation is not None
    assert torch.equal(data.validation.images, whole.train.images[:7])
    assert torch.equal(data.train.images, whole.train.images[7:17])


def test_a_share_that_holds_out_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.validation=0\.05: no label has so many"):
        images(tmp_path, validation=0.05)


def test_a_broken_number_of_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.validation: expected a number of images or a share below 1, got 1\.5"):
        load_recipe("digits", ["data.validation=1.5"])
