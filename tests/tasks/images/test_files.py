"""Image files as people bring them become what training saw: the same pixels, whatever mode, size and polarity."""

import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from meta_exp.tasks import Omniglot
from meta_exp.tasks.images.files import list_classes, list_images, read_images

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
    trained_on = family.store.images(place)[..., 0] * np.float32(1 / 255)
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


def ink(image, colour, mode="RGBA"):
    """The page's strokes in a colour on nothing."""
    layer = Image.new("RGBA", image.size, (*colour, 0))
    layer.paste((*colour, 255), mask=ImageOps.invert(image))
    return layer.convert(mode)


INKS = {
    "white": ((255, 255, 255), "RGBA"),
    "nearly white": ((254, 255, 251), "RGBA"),
    "white and grey": ((255, 255, 255), "LA"),
    "black": ((0, 0, 0), "RGBA"),
    "yellow": ((255, 255, 0), "RGBA"),
}


@pytest.mark.parametrize("name", INKS)
def test_ink_on_transparency_is_read_whatever_its_colour(page, tmp_path, name):
    colour, mode = INKS[name]
    np.testing.assert_allclose(read(ink(page, colour, mode), tmp_path), read(page, tmp_path, "plain.png"), atol=0.01)


def dot(value):
    image = Image.new("L", (2000, 2000), 255)
    image.putpixel((1000, 1000), value)
    return image


NOTHING = {
    "a white page": Image.new("L", (50, 50), 255),
    "a black page": Image.new("RGB", (50, 50), 0),
    "a grey page of 16 bits": Image.fromarray(np.full((50, 50), 3000, np.uint16)),
    "paper with noise": Image.fromarray(np.random.default_rng(0).integers(250, 256, (50, 50), np.uint8)),
    "nothing at all": Image.new("RGBA", (50, 50), (0, 0, 0, 0)),
    "an opaque white page": Image.new("RGBA", (50, 50), (255, 255, 255, 255)),
    "a speck": dot(0),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_page_on_which_nothing_is_drawn_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"^nothing drawn in .*a\.png: expected strokes on paper, got one shade"):
        read(NOTHING[name], tmp_path)


def test_a_photograph_that_white_paper_hides_is_refused(page, tmp_path):
    with pytest.raises(ValueError, match=r"nothing drawn in .*a\.png"):
        read(ink(page, (255, 255, 255)), tmp_path, shape=(3, 84, 84))


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_further_pages_are_refused(page, tmp_path, name):
    single = read(page, tmp_path, name, **({"lossless": True} if name == "a.webp" else {}))
    np.testing.assert_allclose(single, read(page, tmp_path, "plain.png"), atol=0.01)
    page.save(tmp_path / name, save_all=True, append_images=[page.rotate(90), page.rotate(180)])
    with pytest.raises(ValueError, match=rf"{name}: expected one image, got further pages or frames; save each"):
        read_images([tmp_path / name], SHAPE)


def test_a_preview_in_a_cameras_file_is_no_page(page, tmp_path):
    page.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[page.resize((20, 20))], quality=95)
    assert np.abs(read_images([tmp_path / "a.jpg"], SHAPE)[0] - read(page, tmp_path)).mean() < 0.02


def test_pillow_opens_named_formats_only(page, tmp_path):
    """An EPS file would be run by Ghostscript, whatever its name."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name in ("b.ico", "c.tga", "d.pcx"):
        page.save(tmp_path / name)
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"expected an image, got cannot identify .*; one of PNG, JPEG, TIFF"):
            read_images([file], SHAPE)


@pytest.mark.parametrize("side", [8001, 10_000, 14_000])
def test_an_image_has_a_bound_in_pixels(tmp_path, side):
    Image.new("1", (side, side), 1).save(tmp_path / "a.tif", compression="group4")
    with pytest.raises(ValueError, match=r"a\.tif: expected (at most 64 million|an image, got Image size)") as refusal:
        read_images([tmp_path / "a.tif"], SHAPE)
    assert "\n" not in str(refusal.value)


def test_an_image_that_vanishes_in_the_networks_size_is_named(tmp_path):
    line = Image.fromarray(np.uint8([[0, 255] * 5000]))
    with pytest.raises(ValueError, match=r"a\.png"):
        read(line, tmp_path)


def test_nothing_in_a_folder_is_dropped(page, tmp_path):
    folder = tmp_path / "classes"
    for name in ("a", "b", ".hidden"):
        (folder / name).mkdir(parents=True)
        page.save(folder / name / "1.png")
    (folder / ".DS_Store").write_text("")
    assert list_classes(folder) == [folder / "a", folder / "b"]
    for entry, make, call, message in [
        ("3.png", page.save, list_classes, "3.png: expected a sub-folder a class and nothing beside, got a file; move"),
        (
            "c",
            lambda at: at.symlink_to("nowhere"),
            list_classes,
            "c: expected a file or a folder, got a link to nothing",
        ),
        ("a/2.png", lambda at: at.symlink_to("nowhere"), list_images, "2.png: .* got a link to nothing; mend it"),
        ("a/more", lambda at: at.mkdir(), list_images, "more: expected an image file, got a folder; move its images"),
        ("a/pipe", os.mkfifo, list_images, "pipe: expected an image file, got something else"),
    ]:
        make(folder / entry)
        with pytest.raises(ValueError, match=message):
            call((folder / entry).parent)
        (folder / entry).rmdir() if (folder / entry).is_dir() else (folder / entry).unlink()
    (folder / "link").symlink_to(folder / "a")
    assert list_images(list_classes(folder)[-1]) == [folder / "link" / "1.png"]
    with pytest.raises(ValueError, match=r"support=.*: expected a sub-folder a class, got none"):
        list_classes(folder / "a")
