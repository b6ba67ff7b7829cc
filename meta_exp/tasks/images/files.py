"""Image files of any size and mode, brought to what a network was trained on.

One channel is drawings, as Omniglot's are: strokes 1, paper 0. A file is turned as its EXIF tag says, transparency is
laid on white, colours become grey, and the contrast is stretched: darkest 0, lightest 255. The paper is the median of
the border; if it is dark, the image is a light drawing on a dark ground and is inverted first. The drawing is then
padded with paper to the network's aspect, resized (Lanczos) and inverted. A drawing of Omniglot becomes the very pixels
that training saw.

Three channels are photographs: turned, laid on white and resized; RGB in [0, 1], not inverted.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from meta_exp.config.checks import one_line, require

LANCZOS = Image.Resampling.LANCZOS


def read_images(files: Sequence[str | Path], shape: Sequence[int]) -> NDArray[np.float32]:
    """Read ``files`` as inputs [n, C, H, W] in [0, 1] of a network whose ``shape`` is [C, H, W].

    Raises ValueError, with the file's name, where one is no image or is damaged.
    """
    require(len(shape) == 3 and shape[0] in (1, 3), "images", "a network for images of 1 or 3 channels", list(shape))
    require(not isinstance(files, str | Path), "files", "a list of files", "a single one", "put it in a list")
    require(len(files) > 0, "files", "at least one image", "none")
    pixels = np.empty((len(files), *shape), np.float32)
    for image, file in zip(pixels, files, strict=True):
        image[...] = _read(file, shape)
    pixels /= 255
    return pixels


def list_images(folder: Path) -> list[Path]:
    """Return the files in ``folder`` sorted by name, hidden ones left out."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    require(bool(files), str(folder), "a folder of images", "no file in it")
    return files


def _read(file: str | Path, shape: Sequence[int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            image = _on_white(_eight_bits(ImageOps.exif_transpose(opened)))
    except Exception as error:  # file, codec and pixels have errors of their own; what matters is which image
        raise ValueError(f"{file}: expected an image, got {one_line(error)}") from error
    if channels == 3:
        return np.asarray(image.resize((width, height), LANCZOS)).transpose(2, 0, 1)
    grey = ImageOps.autocontrast(image.convert("L"))
    paper = _border_median(grey)
    if paper < 128:
        grey, paper = ImageOps.invert(grey), 255 - paper
    return 255 - np.asarray(ImageOps.pad(grey, (width, height), LANCZOS, color=paper))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Stretch values of 16 or 32 bits from the darkest to the lightest; Pillow would cut them off at 255."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    return Image.fromarray(np.uint8((values - low) / max(high - low, 1e-12) * 255 + 0.5))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _border_median(grey: Image.Image) -> int:
    pixels = np.asarray(grey)
    return int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
