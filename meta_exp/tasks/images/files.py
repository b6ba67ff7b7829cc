"""Image files of any size and mode, brought to what a network was trained on.

A file is turned as its EXIF tag says, transparency is laid on white, and the image is resized (Lanczos) to the
network's size: RGB for three channels, grey for one. Whether a grey image is then inverted is a matter of the data set
that the network was trained on, not of the image: an image and its negative are two things.

Omniglot's drawings, strokes 1 and paper 0, are another matter: whoever draws one has ink and paper of some shade, so
that each is judged by itself. The contrast is stretched: darkest 0, lightest 255. The paper is the median of the
border; if it is dark, the image is a light drawing on a dark ground and is inverted first. The drawing is then padded
with paper to the network's aspect, resized and inverted. A drawing of Omniglot becomes the very pixels that training
saw. Ink that cannot be seen on white, as white ink on transparency, is read from its opacity.

What would be lost in silence is refused: a page on which nothing is drawn, further pages of a file, and in a folder
whatever is not one of its images. Of a camera's file with a preview the picture itself is read.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from meta_exp.config.checks import one_line, require

LANCZOS = Image.Resampling.LANCZOS
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")  # none that Pillow gives to other programs, as EPS
PIXELS = 64_000_000  # of one image; an A4 page of 600 dots an inch has 35 million
CONTRAST = 8  # grey values of 256, below which an image is paper with noise


class Treatment(NamedTuple):
    """How the images of a data set become what a network sees, beside their size.

    Args:
        invert: whether a grey image is shown as its negative; None for drawings, each of which is judged by itself.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel, divided by.
    """

    invert: bool | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)


def read_images(files: Sequence[str | Path], shape: Sequence[int], invert: bool | None = None) -> NDArray[np.float32]:
    """Read ``files`` as inputs [n, C, H, W] in [0, 1] of a network whose ``shape`` is [C, H, W].

    ``invert`` is that of ``Treatment``. Raises ValueError, with the file's name, where one is no image, is damaged, has
    several pages or shows nothing.
    """
    require(len(shape) == 3 and shape[0] in (1, 3), "images", "a network for images of 1 or 3 channels", list(shape))
    require(not isinstance(files, str | Path), "files", "a list of files", "a single one", "put it in a list")
    require(len(files) > 0, "files", "at least one image", "none")
    pixels = np.empty((len(files), *shape), np.float32)
    for image, file in zip(pixels, files, strict=True):
        image[...] = read_image(file, shape, invert)
    pixels *= np.float32(1 / 255)  # a product, as in training
    return pixels


def list_images(folder: Path) -> list[Path]:
    """Return the files in ``folder`` sorted by name, hidden ones left out; raises ValueError at what is no file."""
    found = entries(folder)
    for entry in found:
        kind = "a folder" if entry.is_dir() else "something else"
        require(entry.is_file(), str(entry), "an image file", kind, "move its images up, or it away")
    require(bool(found), str(folder), "a folder of images", "no file in it")
    return found


def list_classes(folder: Path) -> list[Path]:
    """Return the sub-folders of ``folder``, a class each, sorted by name; raises ValueError at what is none."""
    found = entries(folder)
    require(any(entry.is_dir() for entry in found), f"support={folder}", "a sub-folder a class", "none")
    for entry in found:
        remedy = "move it into the folder of its class, or away"
        require(entry.is_dir(), str(entry), "a sub-folder a class and nothing beside", "a file", remedy)
    return found


def entries(folder: Path) -> list[Path]:
    """Return what is in ``folder`` sorted by name, hidden files left out; raises ValueError at a link to nothing."""
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        require(entry.exists(), str(entry), "a file or a folder", "a link to nothing", "mend it, or remove it")
    return found


def read_image(file: str | Path, shape: Sequence[int], invert: bool | None = None) -> NDArray[np.uint8]:
    """Read one of them: uint8 [C, H, W]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            with Image.open(file, formats=FORMATS) as opened:
                wrong = _wrong(opened)
                pixels = None if wrong else treat_image(ImageOps.exif_transpose(opened), shape, invert)
    except UnidentifiedImageError as error:
        raise ValueError(f"{file}: expected an image, got {one_line(error)}; one of {', '.join(FORMATS)}") from error
    except Exception as error:  # file, codec and pixels have errors of their own; what matters is which image
        raise ValueError(f"{file}: expected an image, got {one_line(error)}") from error
    if wrong:
        raise ValueError(f"{file}: expected {wrong}")
    remedy = "leave it out, or scan it with more contrast"
    require(pixels is not None, f"nothing drawn in {file}", "strokes on paper", "one shade everywhere", remedy)
    assert pixels is not None
    return pixels


def _wrong(image: Image.Image) -> str | None:
    """Return what is expected of an image and what this one is instead, or None; its pixels are not read yet."""
    if image.width * image.height > PIXELS:
        return f"at most {PIXELS // 10**6} million pixels, got {image.width} x {image.height}; make it smaller"
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "one image, got further pages or frames; save each as a file of its own"
    return None


def treat_image(image: Image.Image, shape: Sequence[int], invert: bool | None = None) -> NDArray[np.uint8] | None:
    """Return what a network of ``shape`` takes, uint8 [C, H, W], or None where nothing is drawn."""
    channels, height, width = shape
    size = (width, height)
    image = _eight_bits(image)
    seen = _on_white(image)
    grey, alpha = seen.convert("L"), _alpha(image)
    hidden = _contrast(grey) < CONTRAST <= _contrast(alpha)
    if channels == 3:
        return None if hidden else np.asarray(seen.resize(size, LANCZOS)).transpose(2, 0, 1)
    if invert is None:
        drawing = _drawing(grey, alpha, size, hidden)
        return None if drawing is None else drawing[None]
    shown = np.asarray(grey.resize(size, LANCZOS))[None]
    return None if hidden else 255 - shown if invert else shown


def _drawing(grey: Image.Image, alpha: Image.Image, size: tuple[int, int], hidden: bool) -> NDArray[np.uint8] | None:
    """Return strokes 255 and paper 0, [H, W], or None where nothing is drawn."""
    if hidden:
        grey = ImageOps.invert(alpha)
    if _contrast(grey) < CONTRAST:
        return None
    grey = ImageOps.autocontrast(grey)
    paper = _border_median(grey)
    if paper < 128:
        grey, paper = ImageOps.invert(grey), 255 - paper
    drawing = ImageOps.pad(grey, size, LANCZOS, color=paper)
    return 255 - np.asarray(drawing) if _contrast(drawing) >= CONTRAST else None


def _contrast(grey: Image.Image) -> int:
    low, high = grey.getextrema()
    return int(high) - int(low)  # type: ignore[arg-type]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Stretch values of 16 or 32 bits from the darkest to the lightest; Pillow would cut them off at 255."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image, np.float64)
    require(bool(np.isfinite(values).all()), "pixels", "finite numbers", "NaN or infinity")
    low, high = values.min(), values.max()
    return Image.fromarray(np.uint8((values - low) / max(high - low, 1e-12) * 255 + 0.5))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image:
    """Return the opacity, in grey."""
    return image.convert("RGBA").getchannel("A") if _is_transparent(image) else Image.new("L", image.size, 255)


def _on_white(image: Image.Image) -> Image.Image:
    if _is_transparent(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _border_median(grey: Image.Image) -> int:
    pixels = np.asarray(grey)
    return int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
