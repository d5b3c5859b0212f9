"""Reading one image: upright, in the channels that a model takes, no bit thrown away unasked.

What is not plain 8-bit RGB, and the rule for each:

- EXIF orientation is applied; an EXIF block that cannot be read counts as upright.
- Alpha, transparent palette entries and colour keys are composited on white.
- CMYK JPEGs are taken as Adobe writes them (inverted); no colour profile is applied.
- Grey images of more than 8 bits become floats in [0, 1]: divided by the largest value that their
  format states, or by `white`. They are never cut to 8 bits. Colour of 16 bits, and grey of 16 bits
  with alpha, keeps the upper 8. Signed TIFFs of 8 bits are refused.
- Of several frames or pages the first is read.
- DICOM: modality rescale or table, then the first VOI table or window, then the presentation table
  if there is one; else inverted, once, for MONOCHROME1 or the presentation shape INVERSE (which go
  together; IDENTITY beside MONOCHROME1 contradicts it and changes nothing). Padding pixels are
  black. Without a window, images of up to 8 bits use the range of those bits,
  deeper ones stretch their own smallest to largest value. YBR and palettes become RGB.

Only raster formats are opened: none that Pillow would hand to another program (EPS). How large an
image and its file may be is looked at before pixels are decoded.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise._extras import import_optional
from catwise._limits import (
    MAX_ELEMENTS,
    MAX_IMAGE,
    MAX_INFLATED,
    MAX_SEQUENCE,
    PIXELS_VARIABLE,
    BoundedStream,
    max_pixels,
)
from catwise.errors import CatwiseError, ConfigError, FeatureError, FeatureStoreError

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


Enough: TypeAlias = Callable[[int, int], tuple[int, int]]
DICOM_SUFFIXES: Final = (".dcm", ".dicom")
_FORMATS: Final[tuple[str, ...]] = (
    *("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"),
    "HEIF",  # where a plugin registered it
)
_REASON: Final = 240
_META: Final = 2**16  # no first group is longer
_SEQUENCES: Final = (
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
    *("ModalityLUTSequence", "VOILUTSequence", "PresentationLUTSequence"),
)
_EXPLICIT: Final = b"1.2.840.10008.1.2.1"
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_ORIENTATION: Final = 0x0112
_TURNS: Final = (  # for orientations 2 to 8
    *("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"),
    *("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"),
)
_TIFF_BITS: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_TIFF_SAMPLES: Final = 339
_SIGNED: Final = 2
# What the operating system says of a path; anything else it says is about the machine.
_OF_THE_FILE: Final = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES),
    *(errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
}


def read_image(
    source: ImageInput,
    *,
    channels: int = 3,
    name: str | None = None,
    white: float | None = None,
    enough: Enough | None = None,
) -> Image:
    """Read an image of any common kind.

    FeatureError where the image is at fault, FeatureStoreError where the machine is, ConfigError
    where `channels` or `white` is not possible.

    Args:
        source: a path, the file's bytes, or a binary file, which is read from its start.
        channels: 1 (greyscale) or 3 (RGB).
        name: what to call the image in an error; the path when not given. Its suffix tells a DICOM
            file without a preamble.
        white: the value of white in grey images of more than 8 bits, such as 4095 for 12 bits in
            a 16-bit file; larger ones are cut. When not given: the largest value that the format
            states, 1 for floats. Not for DICOM, which tells it itself.
        enough: of (height, width) of an image, upright, those that are enough: a JPEG is decoded at
            1/2, 1/4 or 1/8 of its size where that is no less.

    Returns:
        A Pillow image, loaded: of mode "L" or "RGB", or of mode "F" with values in [0, 1] for grey
        images of more than 8 bits and grey DICOM, whatever the channels.
    """
    _check_options(channels, white)
    shown = _name(source) if name is None else name
    import_optional("PIL.Image", extra="images", purpose="reading images")
    with _decoding(shown), warnings.catch_warnings(), _stream(source) as stream:
        warnings.simplefilter("ignore")  # they name no file, and errors are caught
        check_bytes(stream.seek(0, os.SEEK_END))
        stream.seek(0)
        head = stream.read(132)
        stream.seek(0)
        marked = head[128:] == b"DICM"
        if marked or shown.lower().endswith(DICOM_SUFFIXES):
            return _read_dicom(stream, channels, marked=marked)
        return _read_picture(stream, channels, white, enough)


def as_channels(
    image: Image, *, channels: int = 3, white: float | None = None, turn: bool = False
) -> Image:
    """Bring a Pillow image to the form that :func:`read_image` gives; turned only if asked to."""
    _check_options(channels, white)
    with _decoding("the image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _as_channels(image, channels, white, turn=_turn(image) if turn else None)


def _check_options(channels: int, white: float | None) -> None:
    if channels not in (1, 3):
        raise ConfigError(
            "images have 1 or 3 channels.", found=f"channels={channels!r}", expected="1 or 3"
        )
    if white is not None and not 0 < white < float("inf"):
        raise ConfigError(
            "white must be a positive number.",
            found=f"white={white!r}",
            expected="the value of white, such as 4095",
        )


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    named = getattr(source, "name", None)
    return named if isinstance(named, str) else f"<{type(source).__name__}>"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file of bytes; a named pipe, a socket or a device, which may never end, is refused."""
    kind = Path(path).stat().st_mode
    special = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    special |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
    if found := special.get(stat.S_IFMT(kind)):
        raise FeatureError(
            "it is not a file.",
            found=f"{found}, '{path}'",
            remedy="leave it out, or copy what it gives to a file",
        )
    return Path(path).open("rb")


@contextmanager
def _stream(source: ImageInput) -> Iterator[BinaryIO]:
    """A seekable file at its start; what the caller opened stays open."""
    if isinstance(source, (str, os.PathLike)):
        with open_file(source) as file:
            yield file
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif not hasattr(source, "read"):
        raise ConfigError(
            "an image is read from a path, bytes or a binary file.",
            found=type(source).__name__,
        )
    elif source.seekable():
        source.seek(0)
        yield source
    else:
        yield io.BytesIO(source.read(MAX_IMAGE + 1))


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Make one error of whatever a decoder raises on bad bytes."""
    try:
        yield
    except FeatureError as error:
        raise FeatureError(
            f"'{name}': {error.what}",
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    except CatwiseError:
        raise
    except MemoryError as error:
        raise FeatureStoreError(
            f"no memory to decode '{name}'.", remedy="use fewer workers"
        ) from error
    except Exception as error:  # decoders raise anything on bad bytes
        reason = " ".join(str(error).split())[:_REASON]
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or reason
            if error.errno not in _OF_THE_FILE:
                raise FeatureStoreError(f"cannot read the image '{name}'.", found=reason) from error
        raise FeatureError(
            f"'{name}': the image cannot be decoded.",
            found=f"{type(error).__name__}: {reason}" if reason else type(error).__name__,
            remedy="repair the file or leave it out",
        ) from error


def pixel_limit() -> int | None:
    """How many pixels an image may have, which Pillow is told too; None: there is no bound."""
    from PIL import Image

    try:
        limit = max_pixels(Image.MAX_IMAGE_PIXELS)
    except ValueError as error:
        raise ConfigError(str(error), remedy=f"unset {PIXELS_VARIABLE}") from error
    if limit is not None and 2 * (Image.MAX_IMAGE_PIXELS or limit) < limit:
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2
    return limit


def _check_pixels(width: int, height: int) -> None:
    limit = pixel_limit()
    if limit is not None and width * height > limit:
        raise _too_many(f"{width:,} x {height:,}", limit, width * height)


def _too_many(found: str, limit: int, wanted: int) -> FeatureError:
    return FeatureError(
        "the image has too many pixels.",
        found=f"{found} pixels",
        expected=f"at most {limit:,} pixels",
        remedy=f"shrink it or leave it out; {PIXELS_VARIABLE}={wanted} in the environment "
        "lets it in",
    )


def check_bytes(size: int) -> None:
    """Refuse an image's file that is larger than the bound."""
    if size > MAX_IMAGE:
        raise FeatureError(
            "the image's file is too large.",
            found=f"{size:,} bytes",
            expected=f"at most {MAX_IMAGE:,}",
            remedy="save the frame or page that is meant alone",
        )


def _read_picture(
    stream: BinaryIO, channels: int, white: float | None, enough: Enough | None
) -> Image:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    limit = pixel_limit()
    try:
        image: Image.Image = Image.open(stream, formats=formats)
    except Image.DecompressionBombError as error:  # it says how many; Pillow gives no size
        n_pixels = int((re.findall(r"\d+", str(error)) or ["0"])[0])
        raise _too_many(f"{n_pixels:,}", limit or n_pixels, n_pixels) from error
    except UnidentifiedImageError as error:
        raise FeatureError(
            "the file is not an image of a known format.",
            expected=" or ".join([*formats, "DICOM"]),
            remedy="repair the file or leave it out",
        ) from error
    _check_pixels(*image.size)
    if enough is not None and image.format == "JPEG":
        _reduce(image, enough)
    image.load()
    # Levels are told by what the file states: look before the image is turned.
    return _as_channels(image, channels, white, turn=_turn(image))


def _reduce(image: Image, enough: Enough) -> None:
    """Have a JPEG decoded at a fraction of its size; other images are left alone."""
    width, height = image.size
    if (_turn(image) or "").startswith(("TRANS", "ROTATE_90", "ROTATE_270")):  # it lies on its side
        rows, columns = enough(width, height)
        image.draft(None, (rows, columns))
    else:
        rows, columns = enough(height, width)
        image.draft(None, (columns, rows))


def _turn(image: Image) -> str | None:
    """How the image is to be turned, by its EXIF block."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        return _TURNS[orientation - 2] if orientation in range(2, 9) else None
    except Exception:  # noqa: BLE001 - a broken EXIF block raises anything; the pixels are sound
        return None


def _as_channels(
    image: Image, channels: int, white: float | None, *, turn: str | None = None
) -> Image:
    from PIL import Image

    if _is_signed(image) and image.mode[0] not in "IF":
        raise FeatureError(
            "its whole numbers are signed, and state no range.",
            found=f"signed samples, which Pillow reads as mode {image.mode!r}",
            remedy="convert it to unsigned numbers",
        )
    if image.mode[0] in "IF":
        levels = _levels(image, white)
        result = image if levels is None else Image.fromarray(levels)
    else:
        result = _on_white(image) if image.has_transparency_data else image
        mode = "L" if channels == 1 else "RGB"
        result = result if result.mode == mode else result.convert(mode)
    return result.transpose(Image.Transpose[turn]) if turn else result


def _is_signed(image: Image) -> bool:
    """Whether a TIFF says that its numbers have a sign."""
    return _SIGNED in getattr(image, "tag_v2", {}).get(_TIFF_SAMPLES, ())


def _on_white(image: Image) -> Image:
    from PIL import Image

    layer = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layer).convert("RGB")


def _levels(image: Image, white: float | None) -> NDArray[np.float32] | None:
    """(H, W) in [0, 1] of a grey image of more than 8 bits; None if that is what it holds."""
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_TIFF_PHOTOMETRIC) == 0
    stored = np.asarray(image)
    if stored.dtype == np.int32 and tags.get(_TIFF_BITS) == (32,) and not _is_signed(image):
        stored = stored.view(np.uint32)  # Pillow knows no unsigned mode of 32 bits
    if stored.dtype.kind == "f":
        _check_floats(stored, ranged=white is None)
        if white is None and not inverted:
            return None
    top = white if white is not None else _top(image, tags)
    values = np.clip(stored.astype(np.float64) / top, 0.0, 1.0)
    if inverted:
        values = 1.0 - values
    key = image.info.get("transparency")
    if isinstance(key, int) and stored.dtype.kind != "f":
        values[stored == key] = 1.0
    return values.astype(np.float32)


def _check_floats(values: NDArray[Any], *, ranged: bool) -> None:
    if not np.isfinite(values).all():
        raise FeatureError("its values are not all finite.", expected="finite numbers")
    if ranged and values.size and not (values.min() >= 0 and values.max() <= 1):
        raise FeatureError(
            "its floating point values state no range.",
            found=f"{values.min():.6g} to {values.max():.6g}",
            expected="values in [0, 1]",
            remedy="state the value of white, such as white=4095",
        )


def _top(image: Image, tags: Any) -> float:
    """The largest value that the image's format states."""
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I;"):
        bits = tags.get(_TIFF_BITS, (16,))
        return float(2 ** min(int(bits[0]), 16) - 1)
    if image.format in ("PNG", "PPM"):
        return 65535.0  # Pillow widens both to this range
    raise FeatureError(
        "its whole numbers state no range.",
        found=f"mode {image.mode!r}",
        remedy="state the value of white, such as white=4095",
    )


def _read_dicom(stream: BinaryIO, channels: int, *, marked: bool) -> Image:
    from PIL import Image

    pydicom = import_optional("pydicom", extra="dicom", purpose="reading DICOM")
    pixels = import_optional("pydicom.pixels", extra="dicom", purpose="reading DICOM")
    source = BoundedStream(
        _inflated(stream) if marked else stream,
        size=MAX_IMAGE,
        pieces=MAX_ELEMENTS,
        what="the DICOM file",
    )
    data = pydicom.dcmread(source, force=not marked)
    _check_dicom(data, pydicom)
    stored = _stored(data, pixels)
    photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    if photometric == "PALETTE COLOR":
        colours = np.asarray(pixels.apply_color_lut(stored, data))
        top = float(np.iinfo(colours.dtype).max)
    elif stored.ndim == 2:
        return Image.fromarray(_dicom_grey(stored, data, photometric, pixels))
    else:
        colours, top = stored, 2.0 ** int(data.BitsStored) - 1
    if colours.dtype != np.uint8 or top != 255:
        colours = np.clip(colours / top * 255 + 0.5, 0, 255).astype(np.uint8)
    return _as_channels(Image.fromarray(np.ascontiguousarray(colours[..., :3])), channels, None)


def _inflated(stream: BinaryIO) -> BinaryIO:
    """A DICOM file, unpacked where all but its first group is deflated (PS3.5, A.5; PS3.10, 7.1).

    pydicom would unpack it without a bound.
    """
    head = stream.read(_META)
    length = int.from_bytes(head[140:144], "little") if head[132:138] == b"\x02\0\0\0UL" else 0
    meta = head[: 144 + length]
    stream.seek(0)
    if _DEFLATED not in meta:
        return stream
    stream.seek(len(meta))
    unpacker, limit = zlib.decompressobj(-zlib.MAX_WBITS), MAX_INFLATED
    data = unpacker.decompress(stream.read(), limit + 1)
    if len(data) > limit:
        raise FeatureError(
            "the DICOM file is deflated and becomes too large.",
            found=f"more than {limit:,} bytes",
            expected=f"at most {limit:,}",
            remedy="save it with another transfer syntax, such as Explicit VR Little Endian",
        )
    plain = _EXPLICIT.ljust(len(_DEFLATED), b"\0")
    return io.BytesIO(meta.replace(_DEFLATED, plain) + data)


def _check_dicom(data: Any, pydicom: Any) -> None:
    """Refuse what has no pixels, or too many; fill in a transfer syntax that is not stated."""
    held_in = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if not any(keyword in data for keyword in held_in) or not (
        data.get("Rows") and data.get("Columns")
    ):
        modality = str(data.get("Modality", "")) or "unknown"
        raise FeatureError("the DICOM file holds no image.", found=f"modality {modality}")
    _check_pixels(int(data.Columns), int(data.Rows))
    held = [len(data[keyword].value or b"") for keyword in held_in if keyword in data]
    frames = int(data.get("NumberOfFrames") or 1)
    if not 0 < frames <= max(held):
        raise FeatureError(
            "the DICOM file claims more frames than it can hold.",
            found=f"{frames:,} frames in {max(held):,} bytes",
            expected="a byte of each frame at least",
            remedy="copy the file again, or leave it out",
        )
    for keyword in _SEQUENCES:
        raw = getattr(data.get_item(keyword), "value", None) if keyword in data else None
        if isinstance(raw, bytes) and len(raw) > MAX_SEQUENCE:
            raise FeatureError(
                "a sequence of the DICOM file is too large.",
                found=f"{keyword} of {len(raw):,} bytes",
                expected=f"at most {MAX_SEQUENCE:,}",
                remedy="save the frame that is meant alone",
            )
    if not hasattr(data, "file_meta"):
        data.file_meta = pydicom.dataset.FileMetaDataset()
    uids = pydicom.uid
    if not data.file_meta.get("TransferSyntaxUID"):
        implicit, little = data.original_encoding
        explicit = uids.ExplicitVRLittleEndian if little else uids.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = uids.ImplicitVRLittleEndian if implicit else explicit
    top, bits = data.get("HighBit"), data.get("BitsStored")
    moved = None not in {top, bits} and top != bits - 1
    if moved and not data.file_meta.TransferSyntaxUID.is_encapsulated:
        raise FeatureError(
            "the DICOM file does not say clearly where the bits of its pixels are.",
            found=f"{bits} bits stored, the highest of them number {top}",
            expected=f"the highest of them number {bits - 1} (PS3.5, 8.1.1)",
            remedy="repair the header, or leave the image out",
        )


def _stored(data: Any, pixels: Any) -> NDArray[Any]:
    """The first frame as it is stored, YBR made RGB."""
    syntax = data.file_meta.TransferSyntaxUID
    reason = ""
    try:
        if pixels.get_decoder(syntax).is_available:
            return np.asarray(pixels.pixel_array(data, index=0))
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_REASON]
    raise FeatureError(
        "no installed decoder reads this DICOM compression.",
        found=f"transfer syntax {syntax.name} ({syntax}){reason and ': '}{reason}",
        remedy="pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg",
    )


def _item(data: Any, sequence: str, keywords: tuple[str, ...]) -> Any:
    """What holds one of the elements for the first frame: the file, or its functional groups."""
    if any(keyword in data for keyword in keywords):
        return data
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(data.get(groups) or [])[:1]:
            for item in list(group.get(sequence) or [])[:1]:
                if any(keyword in item for keyword in keywords):
                    return item
    return {}


def _dicom_grey(
    stored: NDArray[Any], data: Any, photometric: str, pixels: Any
) -> NDArray[np.float32]:
    """(H, W) in [0, 1], 1 is white."""
    modality = _item(
        data, "PixelValueTransformationSequence", ("ModalityLUTSequence", "RescaleSlope")
    )
    table = bool(modality.get("ModalityLUTSequence"))
    slope = _number(modality.get("RescaleSlope"), 1.0)
    intercept = _number(modality.get("RescaleIntercept"), 0.0)
    values: NDArray[Any]
    if table:
        values = np.asarray(pixels.apply_modality_lut(stored, modality))
    else:
        values = stored.astype(np.float64) * slope + intercept
    _check_floats(values, ranged=False)
    padding = _padding(stored, data)
    voi = _item(data, "FrameVOILUTSequence", ("VOILUTSequence", "WindowWidth"))
    shown = _through_table(values, voi, pixels)
    if shown is None:
        shown = _windowed(values, voi)
    if shown is None:
        stated = not table and stored.dtype.kind in "iu" and int(data.BitsStored) <= 8
        shown = _stretched(
            values, padding, _range_of_bits(data, slope, intercept) if stated else None
        )
    result: NDArray[np.float32] = np.clip(shown, 0.0, 1.0).astype(np.float32)
    result = _presented(result, data, photometric)
    result[padding] = 0.0
    return result


def _presented(values: NDArray[np.float32], data: Any, photometric: str) -> NDArray[np.float32]:
    """Values in [0, 1] as they are to be seen (PS3.3 C.7.6.1, C.7.6.3.1.2 and C.11.4)."""
    if tables := data.get("PresentationLUTSequence"):
        n_entries, _, bits = map(int, tables[0].LUTDescriptor)
        told = tables[0].LUTData
        wide = np.frombuffer(told, "<u2") if isinstance(told, bytes) else np.asarray(told)
        table = wide.astype(np.float64) / (2**bits - 1)
        places = np.rint(values * ((n_entries or 2**16) - 1)).astype(np.int64)
        return np.asarray(np.clip(table[places], 0.0, 1.0), dtype=np.float32)
    shape = str(data.get("PresentationLUTShape") or "IDENTITY").strip().upper()
    if shape not in {"IDENTITY", "INVERSE"}:
        raise FeatureError(
            "the DICOM file is to be shown by a shape that is not known.",
            found=f"Presentation LUT Shape {shape!r}",
            expected="IDENTITY or INVERSE",
        )
    if shape == "INVERSE" or photometric == "MONOCHROME1":
        values = np.float32(1.0) - values
    return values


def _number(value: Any, default: float) -> float:
    """The first number of an element; the default where it is absent or empty."""
    if value is None or isinstance(value, str):
        return default if not value else float(value)
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else default


def _padding(stored: NDArray[Any], data: Any) -> NDArray[np.bool_]:
    """Where the pixels are not part of the image."""
    first = data.get("PixelPaddingValue")
    if first is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, dtype=np.bool_)
    last = data.get("PixelPaddingRangeLimit")
    ends = (int(first), int(first) if last is None else int(last))
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _through_table(values: NDArray[Any], voi: Any, pixels: Any) -> NDArray[Any] | None:
    """The values through the first VOI table, or None where there is none."""
    if not voi.get("VOILUTSequence"):
        return None
    bits = int(voi.get("VOILUTSequence")[0].LUTDescriptor[2])
    found = pixels.apply_voi(np.rint(values).astype(np.int64), voi, 0)
    return np.asarray(found) / (2.0**bits - 1)


def _windowed(values: NDArray[Any], voi: Any) -> NDArray[Any] | None:
    """The values through the first window, or None where there is none (PS3.3 C.11.2.1)."""
    center = _number(voi.get("WindowCenter"), float("nan"))
    width = _number(voi.get("WindowWidth"), float("nan"))
    function = str(voi.get("VOILUTFunction") or "LINEAR").strip().upper()
    if not (np.isfinite(center) and width >= (1 if function == "LINEAR" else 1e-12)):
        return None
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1.0) + 0.5


def _range_of_bits(data: Any, slope: float, intercept: float) -> tuple[float, float]:
    """The range that the stored bits can hold, rescaled."""
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = (low * slope + intercept, high * slope + intercept)
    return min(ends), max(ends)


def _stretched(
    values: NDArray[Any], padding: NDArray[np.bool_], limits: tuple[float, float] | None
) -> NDArray[Any]:
    """The values over their range, which is that of the image where none is given."""
    if limits is None:
        inside = values[~padding]
        limits = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 1.0)
    low, high = limits
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)
