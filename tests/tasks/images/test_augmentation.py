"""Augmented images against torchvision's functions with the same parameters, one image at a time."""

import numpy as np
import pytest
import torch

from meta_exp.tasks.images.augmentation import PAD, augment, crop, jitter

PIXELS = torch.randint(256, (6, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def functional():
    return pytest.importorskip("torchvision.transforms.functional")


def test_crop_and_flip():
    rng = np.random.default_rng(0)
    offsets, flips = rng.integers(2 * PAD + 1, size=(6, 2)), np.array([True, False] * 3)
    cropped = crop(PIXELS, offsets, flips)
    F = functional()
    for image, ours, (down, right), flip in zip(PIXELS, cropped, offsets, flips, strict=True):
        theirs = F.crop(F.pad(image, PAD), down, right, 20, 24)
        assert torch.equal(ours, F.hflip(theirs) if flip else theirs)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_colour_jitter(order):
    x = PIXELS / 255
    factors = np.random.default_rng(1).uniform(0.6, 1.4, size=(3, 6)).astype(np.float32)
    F = functional()
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for n, (image, ours) in enumerate(zip(x, jitter(x, factors, np.array(order)), strict=True)):
        theirs = image
        for which in order:
            theirs = adjust[which](theirs, float(factors[which, n]))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_grey_images_have_no_saturation():
    x = PIXELS[:, :1] / 255
    factors = np.full((3, 6), 1.3, np.float32)
    torch.testing.assert_close(jitter(x, factors, np.array([2])), x)


def test_parameters_have_their_ranges():
    dot = torch.zeros(4000, 1, 2 * PAD + 1, 2 * PAD + 1, dtype=torch.uint8)
    dot[:, :, PAD, PAD] = 255
    x = augment(dot, np.random.default_rng(0))
    assert x.dtype == torch.float32
    places = x[:, 0].flatten(1).argmax(1)
    assert len(places.unique()) == (2 * PAD + 1) ** 2, "the dot in the middle comes to every place, and never leaves"
    brightness = x.amax((1, 2, 3))
    assert 0.6**2 <= brightness.min() < 0.4, "brightness, and contrast against a mean near 0"
    assert brightness.max() == 1


def test_half_of_the_images_are_flipped():
    ramp = torch.arange(24, dtype=torch.uint8).mul(10).expand(2000, 1, 24, 24).contiguous()
    x = augment(ramp, np.random.default_rng(0))[:, 0, 12, 8:16]
    falling = (x.diff(dim=1) < 0).all(1).float().mean()
    assert abs(falling - 0.5) < 5 * (0.25 / 2000) ** 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu():
    cpu, gpu = (augment(PIXELS.to(device), np.random.default_rng(0)).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(cpu, gpu, rtol=0, atol=1e-6)
