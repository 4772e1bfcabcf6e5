"""A share of the training images held out: of every label alike, always the same ones, none in two places."""

from pathlib import Path

import pytest
import torch
from tests.small_runs import small_settings, write_image_cache

from labelemb.classify.held_out import drawn_of_each_label
from labelemb.classify.image_data import ImageData
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.images import load_images
from labelemb.errors import InputError
from labelemb.settings.config import ClassifySettings
from labelemb.settings.data import ImageDataSettings
from labelemb.settings.recipe import load_recipe


def digits(*overrides: str) -> ImageData:
    return load_images(small_settings("data.limit=null", *overrides).data)


@pytest.mark.parametrize("in_order", [True, False])
def test_every_label_gives_the_same_share_also_of_sorted_data(in_order: bool) -> None:
    labels = torch.arange(10).repeat_interleave(torch.arange(10, 110, 10))
    labels = labels if in_order else labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    drawn = drawn_of_each_label(labels, 0.1)
    assert torch.bincount(labels[drawn]).tolist() == list(range(1, 11))


def test_of_odd_numbers_a_label_gives_its_share_rounded_up_or_down() -> None:
    labels = torch.arange(7).repeat_interleave(torch.tensor([13, 5, 29, 1, 8, 44, 3]))
    counts = torch.bincount(labels[drawn_of_each_label(labels, 0.3)], minlength=7)
    assert counts.sum() == round(0.3 * len(labels))
    assert ((counts - 0.3 * torch.bincount(labels)).abs() < 1).all()


def test_items_within_a_label_are_drawn_at_random_and_each_time_the_same() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    drawn = drawn_of_each_label(labels, 0.1)
    assert torch.equal(drawn, drawn_of_each_label(labels, 0.1))
    gaps = drawn.nonzero().squeeze(1).diff()
    assert len(set(gaps.tolist())) > 10  # not each tenth, not the first hundred


def test_every_seed_holds_out_its_own_and_all_modes_of_it_the_same() -> None:
    def held_out(mode: str, seed: int) -> torch.Tensor:
        settings = load_recipe("digits", ["data.validation=0.1"], {"mode": mode, "seed": seed})
        assert isinstance(settings, ClassifySettings)
        split = load_image_inputs(settings).validation
        assert split is not None
        return split.inputs(slice(0, len(split)))

    assert torch.equal(held_out("baseline", 0), held_out("emb", 0))
    assert not torch.equal(held_out("emb", 0), held_out("emb", 1))


def test_one_item_at_least_is_drawn_and_one_is_left() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    assert [int(drawn_of_each_label(labels, share).sum()) for share in (0.01, 0.99)] == [1, 1]
    with pytest.raises(InputError, match="nothing to train on"):
        drawn_of_each_label(labels[:1], 0.5)


def test_held_out_images_come_from_those_trained_on_and_are_trained_on_no_more() -> None:
    whole, divided = digits("data.limit=200"), digits("data.limit=200", "data.validation=0.1")
    assert divided.validation is not None
    assert (len(divided.train), len(divided.validation)) == (180, 20)
    parts = torch.cat([divided.train.images, divided.validation.images]).reshape(200, -1)
    assert sorted(parts.tolist()) == sorted(whole.train.images.reshape(200, -1).tolist())
    assert torch.equal(divided.test.images, whole.test.images)


def test_a_number_of_images_holds_out_the_first_ones(tmp_path: Path) -> None:
    path = write_image_cache(tmp_path / "images.safetensors", num_train=30)

    def images(**settings: int) -> ImageData:
        return load_images(ImageDataSettings.model_validate({"source": "pictures", "path": path, **settings}))

    whole, data = images(), images(validation=7, limit=10)
    assert data.validation is not None
    assert torch.equal(data.validation.images, whole.train.images[:7])
    assert torch.equal(data.train.images, whole.train.images[7:17])


def test_a_broken_number_of_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.validation: expected a number of images or a share below 1, got 1\.5"):
        load_recipe("digits", ["data.validation=1.5"])
