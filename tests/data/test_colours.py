"""The same colours arrive as the same pixels, whatever colour profile a file has; files in sRGB stay as they are."""

import struct
import zlib

import numpy as np
import pytest
from conftest import FOUR_FOLDERS, make_scale_folders
from PIL import Image, ImageCms
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data
from sliders.data.colours import D65, PRIMARIES, Colours, matrix_profile
from sliders.data.dataset import ScaleFolders
from sliders.data.images import read_picture

PROMPTS = (PromptSet(target="", resolution=64),)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = matrix_profile(D65, PRIMARIES[12], None)
ADOBE = matrix_profile(D65, ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256)
LINEAR = matrix_profile(D65, PRIMARIES[1], 1.0)
WIDE = matrix_profile(D65, PRIMARIES[9], 2.2)
# By hand, from the definitions: matrices between the primaries, and the curve of sRGB (IEC 61966-2-1).
TO_SRGB_FROM_P3 = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]])
RNG = np.random.default_rng(0)
MUTED = RNG.integers(90, 170, (24, 40, 3), dtype=np.uint8)  # inside every space


def decoded(values):
    v = values / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encoded(light):
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def icc(space, pcs, kind, **tags):
    """A version 2 ICC profile."""
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28xiii", start + len(body), 0x02400000, kind, space, pcs, b"acsp",
                       63190, 65536, 54061)  # fmt: skip
    return head.ljust(128, b"\0") + table + body


def grey_profile(gamma):
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))
    return icc(b"GRAY", b"XYZ ", b"mntr", wtpt=struct.pack(">4sIiii", b"XYZ ", 0, 63190, 65536, 54061), kTRC=curve)


CYAN, PAPER = (153, 98, 78), (255, 128, 128)  # CIELAB 60, -30, -50 and 100, 0, 0, as 8 bits write them


def cmyk_profile():
    """Of a press whose cyan is `CYAN`, and all other mixtures of full inks are black."""
    grid = [PAPER if i == 0 else CYAN if i == 8 else (0, 128, 128) for i in range(16)]  # cyan varies slowest
    ramp = bytes(range(256))
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = struct.pack(">4sIBBBx", b"mft1", 0, 4, 3, 2) + unit + ramp * 4 + bytes(sum(grid, ())) + ramp * 3
    return icc(b"CMYK", b"Lab ", b"prtr", A2B0=table)


def chunked(path, image, *chunks):
    """`image` as a PNG with further chunks (kind, body) before its pixels."""
    image.save(path)
    raw = path.read_bytes()
    extra = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    path.write_bytes(raw[:33] + extra + raw[33:])  # the header takes 33 bytes
    return path


def pixels(path):
    return np.asarray(read_picture(path).image).astype(int)


def moved(path, plain=MUTED):
    return np.abs(pixels(path) - plain.astype(int)).max()


def test_display_p3_becomes_what_it_looks_like_in_srgb(tmp_path):
    Image.fromarray(MUTED).save(tmp_path / "a.png", icc_profile=P3)
    wanted = encoded(decoded(MUTED) @ TO_SRGB_FROM_P3.T)
    assert np.abs(pixels(tmp_path / "a.png") - wanted).max() <= 1
    assert read_picture(tmp_path / "a.png").colours is Colours.CONVERTED


@pytest.mark.parametrize("profile", [P3, ADOBE, LINEAR, WIDE], ids=["P3", "Adobe RGB", "linear", "Rec. 2020"])
def test_the_same_picture_in_another_space_is_the_same_picture(tmp_path, profile):
    source, target = (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), tmp_path / "space.icc")
    target.write_bytes(profile)
    other = ImageCms.profileToProfile(Image.fromarray(MUTED), source, str(target), outputMode="RGB")
    other.save(tmp_path / "a.png", icc_profile=profile)
    assert moved(tmp_path / "a.png") <= 2


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg", "avif"])
def test_profiles_are_found_in_every_format(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {"quality": 100}
    for name, profile in (("plain", None), ("srgb", SRGB), ("p3", P3)):
        Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / f"{name}.{suffix}", icc_profile=profile, **options)
    plain, srgb, p3 = (pixels(tmp_path / f"{name}.{suffix}") for name in ("plain", "srgb", "p3"))
    assert np.array_equal(plain, srgb)
    assert np.abs(p3 - (215, 93, 31)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "profile"), [("L", P3), ("LA", P3), ("RGBA", P3), ("P", P3), ("1", P3), ("L", grey_profile(1.0))]
)  # fmt: skip
def test_every_kind_of_pixel_is_converted(tmp_path, mode, profile):
    image = Image.fromarray(MUTED)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile)
    image.save(tmp_path / "plain.png", icc_profile=None)
    found, plain = pixels(tmp_path / "a.png"), pixels(tmp_path / "plain.png")
    if profile is not P3:
        wanted = encoded(plain / 255)
    elif mode in ("L", "LA", "1"):
        wanted = plain  # greys are the same in both spaces
    else:
        wanted = encoded(decoded(plain) @ TO_SRGB_FROM_P3.T)
    assert np.abs(found - wanted).max() <= 2


def test_transparency_is_laid_over_white_after_the_conversion(tmp_path):
    rgba = np.dstack([MUTED, np.full((24, 40), 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=P3)
    share = 128 / 255
    wanted = encoded(decoded(MUTED) @ TO_SRGB_FROM_P3.T) * share + 255 * (1 - share)
    assert np.abs(pixels(tmp_path / "a.png") - wanted).max() <= 1


def test_16_bit_grey_with_a_profile(tmp_path):
    ramp = np.linspace(20000, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)  # 8 bits of dark light are coarse
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    assert np.abs(pixels(tmp_path / "a.png")[..., 1] - encoded(ramp / 65535)).max() <= 2


def test_lab_is_read(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(MUTED), srgb, lab, outputMode="LAB").save(tmp_path / "a.tiff")
    assert moved(tmp_path / "a.tiff") <= 4


@pytest.mark.parametrize("name", ["a.tiff", "a.jpg"])
@pytest.mark.parametrize(
    ("inks", "lab"), [((0,) * 4, (100, 0, 0)), ((255, 0, 0, 0), (60, -30, -50)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_is_converted_by_its_profile(tmp_path, name, inks, lab):
    Image.new("CMYK", (16, 16), inks).save(tmp_path / name, icc_profile=cmyk_profile())
    colour = Image.new("LAB", (1, 1), (round(lab[0] * 2.55), lab[1] + 128, lab[2] + 128))
    wanted = ImageCms.profileToProfile(
        colour, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    ).getpixel((0, 0))
    assert np.abs(pixels(tmp_path / name) - wanted).max() <= 4
    assert read_picture(tmp_path / name).colours in (Colours.CONVERTED, Colours.KEPT)  # black and white stay


def test_cmyk_without_a_profile_is_guessed_and_told(tmp_path):
    Image.fromarray(MUTED).convert("CMYK").save(tmp_path / "a.tiff")
    picture = read_picture(tmp_path / "a.tiff")
    assert picture.colours is Colours.NO_PROFILE and picture.image.mode == "RGB"


CHUNKS = {  # chunks of a PNG → what they mean, as a profile; None: sRGB
    "sRGB": ([(b"sRGB", b"\0")], None),
    "sRGB beside a wrong gamma": ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], None),
    "gamma as ImageMagick writes it": (
        [(b"gAMA", struct.pack(">I", 45455)),
         (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))], None),
    "linear": ([(b"gAMA", struct.pack(">I", 100000))], LINEAR),
    "primaries": ([(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))], P3),
    "cICP": ([(b"cICP", bytes((12, 13, 0, 1)))], P3),
    "cICP before sRGB": ([(b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")], P3),
    "cICP of video": ([(b"cICP", bytes((1, 1, 0, 1)))], None),
}  # fmt: skip


@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks_of_a_png_say_what_its_colours_are(tmp_path, chunks):
    extra, profile = CHUNKS[chunks]
    path = chunked(tmp_path / "a.png", Image.fromarray(MUTED), *extra)
    Image.fromarray(MUTED).save(tmp_path / "b.png", icc_profile=profile)
    assert np.abs(pixels(path) - pixels(tmp_path / "b.png")).max() <= (1 if profile else 0)
    assert read_picture(path).colours is (Colours.CONVERTED if profile else Colours.KEPT)


@pytest.mark.parametrize("said", [{0xA001: 0xFFFF, 0xA005: {1: "R03"}}, {0xA001: 2}])
def test_a_camera_may_state_adobe_rgb_in_exif_alone(tmp_path, said):
    exif = Image.Exif()
    exif[0x8769] = said
    image = Image.new("RGB", (32, 32), (90, 160, 90))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    image.save(tmp_path / "b.jpg", icc_profile=ADOBE, quality=100)
    image.save(tmp_path / "plain.jpg", quality=100)
    assert np.array_equal(pixels(tmp_path / "a.jpg"), pixels(tmp_path / "b.jpg"))
    assert moved(tmp_path / "a.jpg", pixels(tmp_path / "plain.jpg")) > 10


UNREADABLE = {
    "junk": {"icc_profile": b"junk" * 99},
    "cut short": {"icc_profile": P3[:200]},
    "of grey, in a picture with colours": {"icc_profile": grey_profile(2.2)},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_profile_that_cannot_be_read_leaves_the_pixels_as_they_are(tmp_path, kind):
    Image.fromarray(MUTED).save(tmp_path / "a.png", **UNREADABLE[kind])
    assert moved(tmp_path / "a.png") == 0
    assert read_picture(tmp_path / "a.png").colours is Colours.UNREADABLE


@pytest.mark.parametrize(
    "chunk",
    [(b"iCCP", b"x\0\0garbage"), (b"cICP", bytes((9, 16, 0, 1))), (b"cHRM", bytes(32))],
    ids=["damaged iCCP", "HDR", "chromaticities of 0"],
)
def test_so_do_chunks_that_make_no_sense(tmp_path, chunk):
    path = chunked(tmp_path / "a.png", Image.fromarray(MUTED), chunk)
    assert moved(path) == 0
    assert read_picture(path).colours is Colours.UNREADABLE


def found(root):
    return ScaleFolders.find(Data(folder_main=root, folders=FOUR_FOLDERS, scales=(-2, -1, 1, 2)), 32)


def test_the_plan_tells_what_was_converted_and_what_was_not_and_a_run_knows_it(tmp_path):
    root = make_scale_folders(tmp_path)
    assert "colours" not in found(root).identity()
    for name, profile in (("low/one.png", P3), ("high/two.png", b"junk")):
        with Image.open(root / name) as image:
            image.load()
        image.save(root / name, icc_profile=profile)
    data = found(root)
    remarks = "\n".join(data.remarks(PROMPTS))
    assert "1 image(s), such as low/one.png, were converted to sRGB" in remarks
    assert "1 image(s), such as high/two.png, have a colour profile that cannot be read" in remarks
    assert data.identity()["colours"] == {"low/one.png": "converted to sRGB"}
