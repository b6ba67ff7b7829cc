"""Augmentation of training images on the batch, on its device: crop, flip and colour jitter.

Each image is padded by PAD black pixels and cropped to its size at a random place, flipped left to right with
probability 1/2, and its brightness, contrast and saturation are scaled by factors from U[1 - JITTER, 1 + JITTER]:

    x <- clip(f x + (1 - f) reference),   reference: 0 | the mean of the image's grey | the grey of each pixel

This is torchvision's RandomCrop, RandomHorizontalFlip and ColorJitter as learn2learn's miniImageNet benchmark sets them
(lee2019), with parameters for each image; the order of the three factors is drawn once a batch. The parameters are
drawn on the CPU.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 8
JITTER = 0.4
GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision rounds it


def augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return augmented images [N, C, H, W], float32 in [0, 1], of uint8 ``pixels`` [N, C, H, W] with C = 1 or 3."""
    count = len(pixels)
    offsets = rng.integers(2 * PAD + 1, size=(count, 2))
    flips = rng.random(count) < 0.5
    factors = rng.uniform(1 - JITTER, 1 + JITTER, size=(3, count)).astype(np.float32)
    x = torch.mul(crop(pixels, offsets, flips), 1 / 255)
    return jitter(x, factors, rng.permutation(3))


def crop(pixels: Tensor, offsets: np.ndarray, flips: np.ndarray) -> Tensor:
    """Crop each of [N, C, H, W], padded by PAD, at ``offsets`` [N, 2] (down, right), then mirror it where ``flips``."""
    height, width = pixels.shape[-2:]
    rows = offsets[:, :1] + np.arange(height)
    columns = offsets[:, 1:] + np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    index = (np.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :])
    image, row, column = (torch.from_numpy(np.ascontiguousarray(part)).to(pixels.device) for part in index)
    return F.pad(pixels, (PAD,) * 4).movedim(1, -1)[image, row, column].movedim(-1, 1).contiguous()


def jitter(x: Tensor, factors: np.ndarray, order: np.ndarray) -> Tensor:
    """Scale brightness, contrast and saturation of x [N, C, H, W] by ``factors`` [3, N], in ``order``."""
    for which in order:
        factor = torch.from_numpy(factors[which]).to(x.device)[:, None, None, None]
        if which == 0:
            reference = torch.zeros_like(factor)
        else:
            reference = _grey(x).mean((1, 2, 3), keepdim=True) if which == 1 else _grey(x)
        x = (factor * x + (1 - factor) * reference).clamp_(0, 1)
    return x


def _grey(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
