from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.pixels import (
    check_pixels,
    claimed_size,
    decode_image,
    decode_images,
    encode_png,
    pixels_made,
    read_header,
)

GRAY = ImageInput(channels=1, height=8, width=8)
COLOUR = ImageInput(channels=3, height=4, width=6)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@given(pixels=hnp.arrays(np.uint8, (1, 8, 8)), colour=hnp.arrays(np.uint8, (3, 4, 6)))
def test_pixels_survive_their_png(pixels: np.ndarray, colour: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_image(encode_png(pixels), GRAY), pixels)
    np.testing.assert_array_equal(decode_image(encode_png(colour), COLOUR), colour)


def test_a_picture_is_turned_upright_by_its_exif_tag() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8), "L").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(
        encoded(image, "PNG", exif=exif), ImageInput(channels=1, height=8, width=6)
    )
    np.testing.assert_array_equal(turned[0], np.rot90(np.asarray(image.convert("L")), -1))


def test_sixteen_bits_become_eight_without_clipping() -> None:
    wide = (np.arange(64, dtype=np.uint16) * 257).reshape(8, 8)
    decoded = decode_image(encoded(Image.fromarray(wide)), GRAY)
    np.testing.assert_array_equal(decoded[0], (wide // 257).astype(np.uint8))


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    decoded = decode_image(encoded(Image.fromarray(rgba, "RGBA")), COLOUR)
    assert decoded[:, 0, 0].tolist() == [10, 20, 30]
    assert (decoded[:, 1:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_the_models_pixels(mode: str) -> None:
    base = Image.fromarray(np.full((8, 8), 255, dtype=np.uint8))
    image = Image.new("I;16", (8, 8), 65535) if mode == "I;16" else base.convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    for channels in (1, 3):
        spec = ImageInput(channels=channels, height=8, width=8)
        decoded = decode_image(data, spec)
        assert decoded.shape == spec.shape and decoded.dtype == np.uint8
        assert (decoded == 255).all()


def test_another_size_is_cropped_in_the_middle_or_stretched() -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    data = encoded(Image.fromarray(wide))
    crop = decode_image(data, ImageInput(channels=3, height=8, width=8))
    assert (crop == 200).all()
    stretched = decode_image(data, ImageInput(channels=3, height=8, width=8, fit="stretch"))
    assert stretched.min() == 0 and stretched.max() == 200


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (50_001, 1000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="at most 50000000 pixels"):
        decode_image(png_claiming(*size), GRAY)


def test_what_is_no_picture_is_refused() -> None:
    png = encoded(Image.new("L", (80, 80)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))
    jpeg = encoded(noise, "JPEG")
    cases = [b"", b"no picture", png[:20], png[:60], jpeg[: len(jpeg) // 2], b"GIF89a" + bytes(30)]
    for data in cases:
        with pytest.raises(DataError, match="picture"):
            decode_image(data, GRAY)
    for kind in ("GIF", "TIFF", "BMP"):
        with pytest.raises(DataError, match="expected a picture"):
            decode_image(encoded(Image.new("L", (8, 8)), kind), GRAY)


@given(data=st.binary(max_size=200), cut=st.integers(0, 400))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes, cut: int) -> None:
    png = encode_png(np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    for payload in (data, png[:cut] + data, png[: cut % 60] + data + png[cut % 60 + 5 :]):
        with contextlib.suppress(DataError):
            assert decode_image(payload, GRAY).shape == (1, 8, 8)


def test_pixels_given_as_numbers_are_checked_not_repaired() -> None:
    assert check_pixels(np.zeros((5, 8, 8), np.uint8), GRAY).shape == (5, 1, 8, 8)
    assert check_pixels(np.zeros((5, 64), np.uint8), GRAY).shape == (5, 1, 8, 8)
    assert check_pixels(np.zeros((5, 3, 4, 6), np.uint8), COLOUR).shape == (5, 3, 4, 6)
    with pytest.raises(DataError, match="expected uint8 .*found float64"):
        check_pixels(np.zeros((5, 8, 8)), GRAY)
    for shape in ((), (8,), (5, 8, 9), (5, 4, 6, 3), (5, 2, 8, 8)):
        with pytest.raises(DataError, match="expected shape"):
            check_pixels(np.zeros(shape, np.uint8), COLOUR if len(shape) == 4 else GRAY)


def decoded_by_pillow(data: bytes, channels: int) -> np.ndarray | None:
    """What decode_image must give for a picture of the model's size, in Pillow's plainest words."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"])
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception:
        return None
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def same_as_pillow(data: bytes) -> bool:
    """Whether decoding gave a picture; it and the verdict must be Pillow's own."""
    for channels in (1, 3):
        expected = decoded_by_pillow(data, channels)
        if expected is None:
            with pytest.raises(DataError, match="picture"):
                decode_image(data, ImageInput(channels=channels, height=8, width=8))
            continue
        height, width = expected.shape[1:]
        found = decode_image(data, ImageInput(channels=channels, height=height, width=width))
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)
        assert claimed_size(data) in (None, (width, height), (height, width))
    return expected is not None


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """JPEGs of each mode, sampling and kind of coding, some with a tag, comment or profile."""
    size = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(noise).resize(size)
    quality = draw(st.integers(1, 100))
    if draw(st.booleans()):
        sampling = draw(st.sampled_from(["444", "422", "420", "440", "411"]))
        return simplejpeg.encode_jpeg(np.asarray(image), quality, "RGB", sampling)
    mode = draw(st.sampled_from(["L", "RGB", "CMYK"]))
    options: dict[str, object] = {
        "quality": quality,
        "progressive": draw(st.booleans()),
        "restart_marker_blocks": draw(st.integers(0, 3)),
        "comment": draw(st.binary(max_size=5)),
        "icc_profile": draw(st.binary(max_size=5)),
        "keep_rgb": mode == "RGB" and draw(st.booleans()),
    }
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    return encoded(image.convert(mode), "JPEG", **options)


@given(data=jpegs())
def test_every_jpeg_has_the_bits_of_pillows_decoder(data: bytes) -> None:
    assert same_as_pillow(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, for damaged EXIF
@given(data=jpegs(), where=st.floats(0, 1), cut=st.integers(0, 9), put=st.binary(max_size=4))
def test_a_damaged_jpeg_is_judged_as_pillow_judges_it(
    data: bytes, where: float, cut: int, put: bytes
) -> None:
    at = int(where * len(data))
    same_as_pillow(data[:at] + put + data[at + cut :])
    same_as_pillow(data[:at])


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    kind=st.sampled_from(["PNG", "WEBP"]),
    orientation=st.integers(0, 9),
)
def test_every_png_and_webp_has_the_bits_of_pillows_decoder(
    pixels: np.ndarray, mode: str, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    assert same_as_pillow(encoded(image, kind, exif=exif, lossless=True))
    assert same_as_pillow(encoded(image, kind, lossless=True))


def test_a_picture_is_decoded_alone_as_among_others() -> None:
    rng = np.random.default_rng(0)
    jpeg = encoded(Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)), "JPEG")
    large = encoded(Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)), "JPEG")
    given_, sound = [jpeg, b"none", large, None, jpeg[:-9], jpeg], [0, 2, 5]
    raw, bad = decode_images(given_, COLOUR, max_total_pixels=24 + 2000 + 24 + 24)
    assert sorted(bad) == [1, 3, 4] and not raw[[1, 3, 4]].any()
    for row in sound:
        np.testing.assert_array_equal(raw[row], decode_image(given_[row] or b"", COLOUR))
    _, bad = decode_images([jpeg, large, jpeg], COLOUR, max_total_pixels=2047)
    assert bad == {2: "expected at most 2047 pixels in all pictures together"}


def test_a_headers_claim_is_what_is_decoded_or_unknown() -> None:
    image = Image.new("RGB", (30, 20))
    assert claimed_size(encoded(image)) == claimed_size(encoded(image, "JPEG")) == (30, 20)
    told = claimed_size(encoded(image, "JPEG", progressive=True, comment=b"x" * 99))
    assert told == (30, 20)
    assert claimed_size(encoded(image, "WEBP")) is None
    jpeg = encoded(image, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for data in (b"", b"\xff\xd8", jpeg[: frame + 4], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0"):
        assert claimed_size(data) is None
    # Two claims: Pillow believes the last.
    small, large = png_claiming(8, 8), png_claiming(900, 900)
    twice = small[:33] + large[8:]
    assert read_header(io.BytesIO(twice))[0] == (900, 900) and claimed_size(twice) is None
    twice = jpeg[:frame] + encoded(Image.new("RGB", (900, 900)), "JPEG")[frame:][:19] + jpeg[frame:]
    assert claimed_size(twice) is None


SPECS = (
    ImageInput(channels=3, height=5, width=7),
    ImageInput(channels=1, height=7, width=5, fit="stretch"),
    ImageInput(channels=3, height=5, width=7, resize=11),
    ImageInput(channels=1, height=6, width=6, resize=6, interpolation="bicubic"),
)


@given(width=st.integers(1, 90), height=st.integers(1, 90), tag=st.sampled_from([1, 6]))
def test_no_picture_on_the_way_is_larger_than_was_counted(
    width: int, height: int, tag: int
) -> None:
    image = Image.new("L", (width, height))
    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(image, exif=exif)
    resize = Image.Image.resize
    made: list[int] = []

    def watched(self: Image.Image, size: tuple[int, int], *given: object, **options: object):
        box = options.get("box")
        rows = self.height if box is None else math.ceil(box[3]) - math.floor(box[1])
        made.extend((size[0] * rows, size[0] * size[1]))
        return resize(self, size, *given, **options)

    for spec in SPECS:
        made.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image.Image, "resize", watched)
            decode_image(data, spec)
        assert max(made, default=0) <= pixels_made((width, height), spec)


@pytest.mark.parametrize("spec", SPECS[1:3])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 3_000_000)])
def test_a_few_bytes_do_not_become_gigabytes(spec: ImageInput, size: tuple[int, int]) -> None:
    """Resized, the longer side of a line would be as much longer as the shorter one is wider."""
    data = encoded(Image.new("L", size))
    most = 100_000
    with pytest.raises(DataError, match="at most 100000 pixels"):
        decode_image(data, spec, max_pixels=most)
    raw, bad = decode_images([data], spec, max_pixels=10**10, max_total_pixels=most)
    assert not raw.any() and "in all pictures together" in bad[0]
