"""Bytes -> pixels: the one copy of decoding, orientation, colour, resizing and cropping.

Training on files, HTTP and offline scoring all call it. What comes out is the graph's raw input;
scaling and normalisation are inside the graph.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from artifacts.errors import DataError
from artifacts.inputs import ImageInput

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000

# The EXIF tag and what undoes each of its values (Exif 2.32, 4.6.4).
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = {5, 6, 7, 8}
# Where Pillow's getexif looks: without one of these it finds nothing, at a tenth of the time that
# a small PNG takes.
_TAGS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_WIDE_MODES = {"I;16", "I;16B", "I;16L", "I"}
_GRAY_MODES = {"1", "L", "LA", *_WIDE_MODES}
# Second bytes of the JPEG markers that start a frame, and of those before it with a length alone:
# tables, restart interval, APP0 to APP15, comment (ITU-T T.81, table B.1).
_FRAMES = {0xC0, 0xC1, 0xC2}
_SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
_SCAN = 0xDA
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode_image(data: bytes, spec: ImageInput, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded PNG, JPEG or WebP picture as uint8 [channels, height, width].

    In this order: the first frame, turned upright by its EXIF tag, 16 bits to 8 (value // 257),
    transparency laid over white, RGB or grayscale (ITU-R 601-2 luma), and where the size differs
    from the model's an antialiased resize, and crop, as `spec` says.

    Raises DataError for what is no such picture, is cut short, or has more than max_pixels, as it
    is or on its way to the model's size.
    """
    with _damage_is_data_error(max_pixels):
        image = _open(data, max_pixels)
    _check_cost(image, spec, max_pixels)
    return np.ascontiguousarray(_pixels(image, data, spec, max_pixels))


def decode_images(
    encoded: Sequence[bytes | None],
    spec: ImageInput,
    *,
    max_pixels: int = MAX_PIXELS,
    max_total_pixels: int | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Many pictures as uint8 [N, channels, height, width], with the rows that cannot be.

    encoded: None is a missing one. max_pixels: of each; max_total_pixels: of all together, for
    requests, whose cost would otherwise have no bound. Both count `pixels_made`.
    Returns the array and, for each bad row, what is wrong with it (its pixels are 0 then).
    """
    raw = np.zeros((len(encoded), *spec.shape), dtype=np.uint8)
    bad: dict[int, str] = {}
    total = 0
    for row, data in enumerate(encoded):
        try:
            if not isinstance(data, bytes):
                raise DataError("the value is missing" if data is None else "expected bytes")
            with _damage_is_data_error(max_pixels):
                image = _open(data, max_pixels)
            total += _check_cost(image, spec, max_pixels)
            if max_total_pixels is not None and total > max_total_pixels:
                raise DataError(
                    f"expected at most {max_total_pixels} pixels in all pictures together"
                )
            raw[row] = _pixels(image, data, spec, max_pixels)
        except DataError as error:
            bad[row] = str(error)
    return raw, bad


def read_header(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], bool]:
    """A picture's (height, width) once upright, and whether it is grayscale; nothing is resized.

    Raises DataError for what is no such picture, or has more than max_pixels; damage after the
    header may stay unseen.
    """
    with _damage_is_data_error(max_pixels):
        image = _open(file, max_pixels)
        height, width = image.height, image.width
        # A square needs no look at its tag, for which Pillow decodes the whole of a PNG.
        if height != width and image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE:
            height, width = width, height
    return (height, width), image.mode in _GRAY_MODES


def pixels_made(size: tuple[int, int], spec: ImageInput) -> int:
    """Of the largest picture on the way from one of this (width, height) to the model's input.

    A picture of few pixels may be very long, and longer still as its shorter side is enlarged.
    Whether its tag turns it is not known before it is decoded: the larger of both counts.
    """
    most = size[0] * size[1]
    if spec.resize is None and size == (spec.width, spec.height):
        return most
    for width, height in (size, size[::-1]):
        # Resized first from side to side, then from top to bottom.
        if spec.resize is not None:
            shorter = max(1, min(size))
            wide, high = spec.resize * width // shorter, spec.resize * height // shorter
            most = max(most, wide * height, wide * high)
        elif spec.fit == "stretch":
            most = max(most, spec.width * height, spec.width * spec.height)
        else:
            # Cut to the model's shape beforehand.
            rows = min(height, width * spec.height // spec.width + 2)
            most = max(most, spec.width * rows, spec.width * spec.height)
    return most


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as a plain PNG or JPEG header says, in microseconds; None for all others.

    It tells beforehand what decoding costs, not whether it succeeds: what is decoded is never
    larger, for a header that could be read in two ways is not a plain one.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        # Of two such chunks Pillow takes the last.
        if len(data) < 24 or data.count(b"IHDR") > 1:
            return None
        width, height = struct.unpack_from(">II", data, 16)
        return int(width), int(height)
    size = None
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 <= len(data):
        start, marker, length = struct.unpack_from(">BBH", data, at)
        if start == 0xFF and marker == _SCAN:
            return size
        if start == 0xFF and marker in _FRAMES and size is None:
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (int(width), int(height))
        elif start != 0xFF or marker not in _SEGMENTS:
            return None
        at += 2 + length
    return None


def check_pixels(array: np.ndarray, spec: ImageInput) -> np.ndarray:
    """Pixels given as numbers, as the graph takes them: uint8 [N, channels, height, width].

    array: uint8 in that shape; or, for one channel, [N, height, width] or [N, height * width].
    Raises DataError naming shape or dtype: pixels are neither rescaled nor rounded here.
    """
    if array.dtype != np.uint8:
        raise DataError(f"pixels: expected uint8 (0 to 255, not scaled), found {array.dtype}")
    rows = (len(array),) if array.ndim else ()
    shapes = [(*rows, *spec.shape)]
    if spec.channels == 1:
        shapes += [
            (*rows, spec.height, spec.width),
            (*rows, spec.height * spec.width),
        ]
    if not rows or array.shape not in shapes:
        expected = " or ".join(str(["N", *shape[1:]]).replace("'", "") for shape in shapes)
        raise DataError(f"pixels: expected shape {expected}, found {list(array.shape)}")
    return np.ascontiguousarray(array.reshape(*rows, *spec.shape))


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels, uint8 [channels, height, width], as a PNG that `decode_image` returns unchanged."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _open(data: bytes | BinaryIO, max_pixels: int) -> Image.Image:
    """The picture's header, its pixels not decoded yet."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise DataError(
            f"expected a picture of at most {max_pixels} pixels, "
            f"found {image.width} x {image.height}"
        )
    return image


def _check_cost(image: Image.Image, spec: ImageInput, max_pixels: int) -> int:
    """Its `pixels_made`. Raises DataError where that is more than max_pixels."""
    made = pixels_made(image.size, spec)
    if made > max_pixels:
        raise DataError(
            f"expected a picture of at most {max_pixels} pixels once it is resized, "
            f"found {image.width} x {image.height}, which makes {made}"
        )
    return made


def _pixels(image: Image.Image, data: bytes, spec: ImageInput, max_pixels: int) -> np.ndarray:
    """The model's pixels of an opened picture: a view as uint8 [channels, height, width]."""
    mode = "RGB" if spec.channels == 3 else "L"
    turn = None
    with _damage_is_data_error(max_pixels):
        decoded = _decode_jpeg(image, data)
        if decoded is None:
            image.load()
        if not _TAGS.isdisjoint(image.info):
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if decoded is None or turn is not None or image.mode != mode or not _fits(image, spec):
        if decoded is not None:
            image = Image.fromarray(decoded if image.mode == "RGB" else decoded[:, :, 0])
        if turn is not None:
            image = image.transpose(turn)
        image = _to_size(_to_mode(image, mode), spec)
        decoded = np.frombuffer(image.tobytes(), dtype=np.uint8)
        decoded = decoded.reshape(spec.height, spec.width, spec.channels)
    return decoded.transpose(2, 0, 1)


def _decode_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """A sound JPEG's pixels, uint8 [height, width, 1 or 3], by libjpeg-turbo's fast interface.

    The same library as Pillow's with the same settings: the same bits, in two thirds of its time.
    Strict: None for what is damaged in any way, which is Pillow's to judge, and for other formats.
    """
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    # As large as Pillow's reading of the header says, which max_pixels has been held against.
    pixels = np.empty((image.height, image.width, len(image.mode)), dtype=np.uint8)
    try:
        decoded: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGB" if image.mode == "RGB" else "GRAY", buffer=pixels
        )
    except ValueError:
        return None
    return decoded if decoded.shape == pixels.shape else None


@contextlib.contextmanager
def _damage_is_data_error(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"expected a picture of at most {max_pixels} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"expected a picture ({', '.join(FORMATS)}), found something else"
        ) from error
    # What Pillow's decoders and its EXIF reader raise for damaged files.
    except (
        OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError,
        struct.error, zlib.error,
    ) as error:  # fmt: skip
        raise DataError(f"the picture is damaged or cut short: {error}") from error


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _WIDE_MODES:
        # Pillow would clip at 255 instead of scaling.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGB", image.size, "white")
        over.paste(image, mask=image.getchannel("A"))
        image = over
    return image if image.mode == mode else image.convert(mode)


def _fits(image: Image.Image, spec: ImageInput) -> bool:
    return spec.resize is None and image.size == (spec.width, spec.height)


def _to_size(image: Image.Image, spec: ImageInput) -> Image.Image:
    if _fits(image, spec):
        return image
    size = (spec.width, spec.height)
    resampling = _FILTERS[spec.interpolation]
    if spec.fit == "stretch":
        return image.resize(size, resampling)
    if spec.resize is None:
        return ImageOps.fit(image, size, method=resampling)
    # The longer side rounded down, the cut at the rounded middle: what torchvision's Resize and
    # CenterCrop do, whose presets name these two lengths.
    shorter = min(image.size)
    width, height = (spec.resize * side // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), resampling)
    left = round((width - spec.width) / 2)
    top = round((height - spec.height) / 2)
    return image.crop((left, top, left + spec.width, top + spec.height))
