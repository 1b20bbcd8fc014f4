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
_WIDE_MODES = {"I;16", "I;16B", "I;16L", "I"}
_GRAY_MODES = {"1", "L", "LA", *_WIDE_MODES}
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode_image(data: bytes, spec: ImageInput, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded PNG, JPEG or WebP picture as uint8 [channels, height, width].

    In this order: the first frame, turned upright by its EXIF tag, 16 bits to 8 (value // 257),
    transparency laid over white, RGB or grayscale (ITU-R 601-2 luma), and where the size differs
    from the model's an antialiased resize, and crop, as `spec` says.

    Raises DataError for what is no such picture, is cut short, or has more than max_pixels.
    """
    with _damage_is_data_error(max_pixels):
        image = _open(data, max_pixels)
        image.load()
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        if turn is not None:
            image = image.transpose(turn)
    image = _to_size(_to_mode(image, "RGB" if spec.channels == 3 else "L"), spec)
    pixels = np.asarray(image, dtype=np.uint8)
    if spec.channels == 1:
        return pixels[np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_images(
    encoded: Sequence[bytes | None],
    spec: ImageInput,
    *,
    max_pixels: int = MAX_PIXELS,
    max_total_pixels: int | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Many pictures as uint8 [N, channels, height, width], with the rows that cannot be.

    encoded: None is a missing one. max_pixels: of each; max_total_pixels: of all together, for
    requests, whose cost would otherwise have no bound.
    Returns the array and, for each bad row, what is wrong with it (its pixels are 0 then).
    """
    raw = np.zeros((len(encoded), *spec.shape), dtype=np.uint8)
    bad: dict[int, str] = {}
    total = 0
    for row, data in enumerate(encoded):
        try:
            if not isinstance(data, bytes):
                raise DataError("the value is missing" if data is None else "expected bytes")
            if max_total_pixels is not None:
                with _damage_is_data_error(max_pixels):
                    image = _open(data, max_pixels)
                total += image.width * image.height
                if total > max_total_pixels:
                    raise DataError(
                        f"expected at most {max_total_pixels} pixels in all pictures together"
                    )
            raw[row] = decode_image(data, spec, max_pixels=max_pixels)
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


def _to_size(image: Image.Image, spec: ImageInput) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.resize is None and image.size == size:
        return image
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
