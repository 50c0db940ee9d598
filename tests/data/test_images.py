"""Image files of every kind arrive as upright RGB pictures with the right colours, and keep their proportions."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from conftest import disc
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sliders.data.images import fitted_size, is_image_name, match_key, read_image, resize_to_cover
from sliders.system.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (24, 40, 4), dtype=np.uint8)
GREY = RNG.integers(0, 256, (24, 40), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixels(path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def largest_error(path, expected) -> float:
    return np.abs(pixels(path) - expected).max()


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


# --- files of every kind


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tiff", "a.TIF", "a.webp"])
def test_lossless_files_come_back_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, Image.fromarray(RGB), name, **options)
    assert is_image_name(path)
    assert largest_error(path, RGB) == 0


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.webp"])
def test_lossy_files_come_back_nearly(tmp_path, name):
    image = disc((64, 48), 0.8)
    path = saved(tmp_path, image, name, quality=95)
    assert is_image_name(path)
    assert np.abs(pixels(path) - np.asarray(image).astype(int)).mean() < 3


def test_the_first_frame_of_a_gif_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert is_image_name(path)
    assert (pixels(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", [".DS_Store", "._a.png", ".a.png", "Thumbs.db", "a.txt", "a.png.tmp", "a"])
def test_names_that_are_no_images(tmp_path, name):
    assert not is_image_name(tmp_path / name)


UPRIGHT = {  # EXIF orientation → how the stored pixels must be turned, written down from the standard
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    assert largest_error(path, UPRIGHT[orientation](RGB)) == 0


# --- colours


def test_damaged_exif_hurts_no_pixel_and_warns_of_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than its place"
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif.tobytes()[:24])
    with Image.open(path) as image, pytest.warns(UserWarning, match="EXIF"):
        image.getexif().get(0x0112)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert np.array_equal(pixels(path), RGB)
    assert not said


def test_grey_becomes_three_equal_channels(tmp_path):
    assert largest_error(saved(tmp_path, Image.fromarray(GREY)), np.stack([GREY] * 3, axis=-1)) == 0


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = GREY > 127
    assert largest_error(saved(tmp_path, Image.fromarray(bits)), np.stack([bits * 255] * 3, axis=-1)) == 0


def test_rgb_with_alpha_is_laid_over_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGBA))
    assert largest_error(path, over_white(RGBA[..., :3], RGBA[..., 3])) <= 1


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    path = saved(tmp_path, grey_alpha(GREY, RGBA[..., 3]))
    assert largest_error(path, over_white(np.stack([GREY] * 3, axis=-1), RGBA[..., 3])) <= 1


def grey_alpha(grey: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])


def palette_image() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture of 16 colours, its indices, and the colours."""
    colours = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    indices = RNG.integers(0, 16, (24, 40), dtype=np.uint8)
    image = Image.frombytes("P", (40, 24), indices.tobytes())
    image.putpalette(colours.tobytes())
    return image, indices, colours


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.bmp"])
def test_a_palette_is_looked_up(tmp_path, name):
    image, indices, colours = palette_image()
    assert largest_error(saved(tmp_path, image, name), colours[indices]) == 0


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_the_transparent_colour_of_a_palette_becomes_white(tmp_path, name):
    image, indices, colours = palette_image()
    path = saved(tmp_path, image, name, transparency=3)
    expected = np.where((indices == 3)[..., None], 255, colours[indices])
    assert largest_error(path, expected) == 0


def test_a_palette_with_alpha_of_its_own_is_laid_over_white(tmp_path):
    image, indices, colours = palette_image()
    alphas = RNG.integers(0, 256, 16, dtype=np.uint8)
    path = saved(tmp_path, image, transparency=alphas.tobytes())
    assert largest_error(path, over_white(colours[indices], alphas[indices])) <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, 24 * 40).round().astype(np.uint16).reshape(24, 40)
    path = saved(tmp_path, Image.fromarray(ramp), name)
    found = pixels(path)
    assert np.abs(found[..., 0] - ramp / 257).max() <= 1
    assert found.min() == 0 and found.max() == 255


def test_16_bits_that_hold_8_come_back_exactly(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257))
    assert (pixels(path)[..., 0].ravel() == np.arange(256)).all()


def test_16_bit_colour_is_scaled_and_not_clipped(tmp_path):
    """Pillow cannot write such a PNG, so it is put together here."""
    deep = RNG.integers(0, 65536, (24, 40, 3), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png_bytes(deep, colour_type=2))
    assert np.abs(pixels(path) - deep / 257).max() <= 1


def test_16_bit_grey_with_alpha_is_laid_over_white(tmp_path):
    deep = RNG.integers(0, 65536, (24, 40, 2), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png_bytes(deep, colour_type=4))
    grey, alpha = deep[..., 0] / 257, deep[..., 1] / 257
    assert largest_error(path, over_white(np.stack([grey] * 3, axis=-1), alpha)) <= 2


def png_bytes(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG of values [H, W, C]."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 0, 0), (0, 255, 255))],
    ids=["white", "black", "cyan"],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk_keeps_its_colours(tmp_path, name, ink, colour):
    assert largest_error(saved(tmp_path, Image.new("CMYK", (16, 16), ink), name), np.array(colour)) <= 3


def test_floating_point_pixels_are_refused_by_name(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "float.tiff")
    with pytest.raises(InputError, match=r"float\.tiff: cannot be read as an image"):
        read_image(path)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.png"
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x20\0\0\0WEBPVP8 "):
        path.write_bytes(head + content)
        try:
            assert read_image(path).mode == "RGB"
        except InputError as error:
            assert "noise.png" in str(error)


# --- names


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("robe.png", "ROBE.JPG", True),
        ("caf\u00e9.png", "cafe\u0301.webp", True),
        ("Straße.png", "STRASSE.png", True),
        ("robe.1.png", "robe.2.png", False),
        ("robe 1.png", "robe1.png", False),
    ],
)
def test_files_match_by_stem_in_any_case_and_unicode_form(tmp_path, one, other, same):
    assert (match_key(tmp_path / one) == match_key(tmp_path / other)) is same


# --- sizes

sides = st.integers(64, 8000)
sizes = st.tuples(sides, sides).filter(lambda s: max(s) <= 8 * min(s))


@given(sizes, st.integers(8, 64).map(lambda n: 32 * n))
def test_fitted_size_is_the_nearest_multiple_of_32_to_the_true_proportions(size, resolution):
    fitted = fitted_size(size, resolution, 32)
    aspect = size[0] / size[1]
    ideal = (resolution * aspect**0.5, resolution / aspect**0.5)
    for side, wanted in zip(fitted, ideal, strict=True):
        assert side % 32 == 0 and side >= 32
        assert abs(side - wanted) <= 16 + 1e-6
    assert 0.6 < fitted[0] * fitted[1] / resolution**2 < 1.5


@given(sides, st.integers(2, 128).map(lambda n: 32 * n))
def test_a_square_becomes_exactly_the_resolution(side, resolution):
    assert fitted_size((side, side), resolution, 32) == (resolution, resolution)


def test_fitted_sizes_of_common_photographs():
    assert fitted_size((6000, 4000), 1024, 32) == (1248, 832)
    assert fitted_size((4000, 6000), 1024, 32) == (832, 1248)
    assert fitted_size((1920, 1080), 1024, 32) == (1376, 768)
    assert fitted_size((10_000, 10), 64, 32)[1] == 32


@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)).filter(lambda s: max(s) <= 8 * min(s)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda s: (32 * s[0], 32 * s[1])),
)
def test_resizing_covers_and_cuts_evenly(have, want):
    picture, covered, (left, top) = resize_to_cover(Image.new("RGB", have), want)
    assert picture.size == want
    factor = max(want[0] / have[0], want[1] / have[1])
    assert all(abs(c - h * factor) <= 0.5 + 1e-6 for c, h in zip(covered, have, strict=True))
    assert min(c - w for c, w in zip(covered, want, strict=True)) == 0  # nothing more is cut than must be
    for start, c, w in zip((left, top), covered, want, strict=True):
        assert 0 <= start <= c - w
        assert abs((c - w) - 2 * start) <= 1


@pytest.mark.parametrize("size", [(240, 120), (120, 240), (200, 200), (300, 130)])
@pytest.mark.parametrize("want", [(96, 96), (128, 96), (96, 128)])
def test_a_circle_stays_a_circle(size, want):
    width, height = size
    x, y = np.meshgrid(np.arange(width) - width / 2 + 0.5, np.arange(height) - height / 2 + 0.5)
    circle = Image.fromarray(np.where(x**2 + y**2 < 40**2, 255, 0).astype(np.uint8)).convert("RGB")
    picture, covered, _ = resize_to_cover(circle, want)
    inside = np.asarray(picture)[..., 0] > 127
    across, down = inside.any(axis=0).sum(), inside.any(axis=1).sum()
    assert abs(int(across) - int(down)) <= 1
    assert abs(across - 80 * covered[0] / width) <= 1.5


def test_the_cut_lies_where_it_is_said_to_lie():
    """A white column at x = 130 of 200 stands at 130 · factor − left of the picture."""
    values = np.zeros((100, 200, 3), dtype=np.uint8)
    values[:, 130] = 255
    picture, covered, (left, top) = resize_to_cover(Image.fromarray(values), (64, 64))
    assert (covered, left, top) == ((128, 64), 32, 0)
    column = np.asarray(picture)[..., 0].mean(axis=0).argmax()
    assert abs(column - (130.5 * 0.64 - left)) <= 1
