"""Image files as people bring them become what training saw: the same pixels, whatever mode, size and polarity."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from meta_exp.tasks import Omniglot
from meta_exp.tasks.images.files import list_images, read_images

SHAPE = (1, 28, 28)


@pytest.fixture
def page(tmp_path):
    """A dark stroke, left and low, on white paper, 100 x 100."""
    pixels = np.full((100, 100), 255, np.uint8)
    pixels[20:90, 15:25] = 0
    pixels[80:90, 15:60] = 0
    return Image.fromarray(pixels)


def read(image, tmp_path, name="a.png", shape=SHAPE, **options):
    image.save(tmp_path / name, **options)
    return read_images([tmp_path / name], shape)[0]


def test_strokes_are_1_and_paper_0(page, tmp_path):
    pixels = read(page, tmp_path)
    assert pixels.shape == SHAPE
    assert pixels.dtype == np.float32
    assert pixels[0, 15, 5] == 1
    assert pixels[0, 2, 20] == 0


def deep(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 100 + 3000)


def transparent(image):
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), mask=ImageOps.invert(image))
    return layer


SAME = {
    "one bit": lambda image: image.convert("1"),
    "colour": lambda image: image.convert("RGB"),
    "palette": lambda image: image.convert("RGB").convert("P"),
    "16 bits": deep,
    "strokes on nothing": transparent,
    "grey ink on grey paper": lambda image: image.point(lambda v: 60 + v // 2),
    "chalk on a blackboard": ImageOps.invert,
}


@pytest.mark.parametrize("mode", SAME)
def test_mode_and_polarity_change_nothing(page, tmp_path, mode):
    np.testing.assert_allclose(read(SAME[mode](page), tmp_path), read(page, tmp_path, "plain.png"), atol=0.01)


def test_print_colours_and_camera_orientation(page, tmp_path):
    plain = read(page, tmp_path)
    assert np.abs(read(page.convert("CMYK"), tmp_path, "a.jpg", quality=95) - plain).mean() < 0.02
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    turned = read(page.transpose(Image.Transpose.ROTATE_90), tmp_path, "b.jpg", quality=95, exif=exif)
    assert np.abs(turned - plain).mean() < 0.02


def test_size_changes_little_and_aspect_is_kept(page, tmp_path):
    plain = read(page, tmp_path)
    assert np.abs(read(page.resize((731, 731)), tmp_path) - plain).mean() < 0.02
    wide = Image.new("L", (200, 100), 255)
    wide.paste(page, (50, 0))
    pixels = read(wide, tmp_path)[0]
    assert pixels[:7].max() == pixels[-7:].max() == 0  # padded, not stretched
    assert pixels.max() > 0.9


def test_photographs_are_not_inverted(tmp_path):
    photo = Image.new("RGB", (60, 40), (255, 128, 0))
    pixels = read(photo, tmp_path, shape=(3, 84, 84))
    assert pixels.shape == (3, 84, 84)
    np.testing.assert_allclose(pixels[:, 10, 10], [1, 128 / 255, 0])


def test_a_drawing_of_omniglot_is_what_training_saw(drawings, omniglot_root):
    family = Omniglot(root=str(omniglot_root), split_by="alphabet")
    character = family.class_names["test"].index("Keble/character07")
    place = family.split_classes["test"][character]
    trained_on = family.store.pixels[place][..., 0] / np.float32(255)
    assert np.array_equal(read_images(list_images(drawings / "character07"), SHAPE)[:, 0], trained_on)


def test_an_unreadable_image_is_named(page, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"notes\.png: expected an image, got cannot identify"):
        read_images([tmp_path / "notes.png"], SHAPE)
    page.resize((500, 500)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg: expected an image, got image file is truncated"):
        read_images([tmp_path / "cut.jpg"], SHAPE)
    with pytest.raises(ValueError, match="files: expected at least one image, got none"):
        read_images([], SHAPE)


def test_hidden_files_are_no_images(page, tmp_path):
    page.save(tmp_path / "a.png")
    (tmp_path / ".DS_Store").write_text("")
    assert list_images(tmp_path) == [tmp_path / "a.png"]
