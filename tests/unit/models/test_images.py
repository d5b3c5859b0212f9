"""Images of every kind come out upright, whole and in the right channels, or as one error."""

from __future__ import annotations

import errno
import io
import re
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from catwise._extras import import_optional
from catwise.errors import ConfigError, FeatureError, FeatureStoreError, MissingExtraError
from catwise.models.images import as_channels, read_image

if TYPE_CHECKING:
    from pathlib import Path

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
LARGE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    made = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    made.save(file, form, **options)
    return file.getvalue()


def tiff(
    bits: int, photometric: int, width: int, height: int, data: bytes, samples: int = 1
) -> bytes:
    """A TIFF of one strip of whole numbers, by hand."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    entries |= {273: 8, 277: 1, 278: height, 279: len(data), 339: samples}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + table + b"\0\0\0\0"


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What a stored array shows, by the definition of the EXIF orientations."""
    across = np.swapaxes(stored, 0, 1)
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: across,
        6: across[:, ::-1],
        7: across[::-1, ::-1],
        8: across[::-1],
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [COLOURS, GREYS, DEEP], ids=["colour", "grey", "16 bits"])
def test_orientation_is_applied(stored: np.ndarray, orientation: int) -> None:
    """Each of the eight EXIF orientations comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(stored, exif=exif), channels=3 if stored.ndim == 3 else 1)
    expected = turned(stored, orientation)
    if stored.dtype == np.uint16:
        expected = (expected / 65535).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_broken_exif_counts_as_upright(exif: bytes) -> None:
    """The pixels of an image are read even if its EXIF block cannot be."""
    data = encoded(LARGE, "JPEG", exif=exif)
    assert read_image(data).size == (64, 64)


def test_channels() -> None:
    """Grey images get three equal channels, colour ones a luma; both where asked only."""
    grey = np.asarray(read_image(encoded(GREYS)))
    np.testing.assert_array_equal(grey, np.repeat(GREYS[..., None], 3, axis=2))
    assert read_image(encoded(GREYS), channels=1).mode == "L"
    luma = np.asarray(read_image(encoded(COLOURS), channels=1))
    assert np.abs(luma - COLOURS @ np.array([0.299, 0.587, 0.114])).max() <= 1
    np.testing.assert_array_equal(np.asarray(read_image(encoded(COLOURS))), COLOURS)


def test_sixteen_bits_are_kept() -> None:
    """16-bit grey is divided by its full range, or by what the user calls white, then cut."""
    for channels in (1, 3):
        image = read_image(encoded(DEEP), channels=channels)
        assert image.mode == "F"
        np.testing.assert_array_equal(np.asarray(image), (DEEP / 65535).astype(np.float32))
    values = np.array([[0, 1000, 4095, 5000]], dtype=np.uint16)
    image = read_image(encoded(values), white=4095)
    expected = np.array([[0, 1000 / 4095, 1, 1]], dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_formats_state_their_range() -> None:
    """PGM states its largest value; TIFF its bits, and whether 0 is white."""
    values = np.array([0, 300, 1023])
    portable = b"P5 3 1 1023\n" + values.astype(">u2").tobytes()
    np.testing.assert_allclose(np.asarray(read_image(portable)), [values / 1023], atol=1e-5)
    sixteen = np.array([0, 300, 65535], dtype="<u2")
    plain = np.asarray(read_image(tiff(16, 1, 3, 1, sixteen.tobytes())))
    np.testing.assert_array_equal(plain, [(sixteen / 65535).astype(np.float32)])
    inverted = np.asarray(read_image(tiff(16, 0, 3, 1, sixteen.tobytes())))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-7)

    twelve = bytes([0x00, 0x0F, 0xFF])  # 0 and 4095 in three bytes
    np.testing.assert_array_equal(np.asarray(read_image(tiff(12, 1, 2, 1, twelve))), [[0, 1]])


def test_values_without_a_range_are_refused() -> None:
    """32-bit whole numbers, and floats beyond [0, 1], need `white`; NaN is never an image."""
    whole = encoded(np.array([[0, 100]], dtype=np.int32), "TIFF")
    with pytest.raises(FeatureError, match=r"white=4095"):
        read_image(whole, name="a.tif")
    assert np.asarray(read_image(whole, white=200)).tolist() == [[0, 0.5]]

    inside = np.array([[0.25, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(read_image(encoded(inside, "TIFF"))), inside)
    with pytest.raises(FeatureError, match=r"0\.5 to 2"):
        read_image(encoded(inside * 2, "TIFF"))
    assert np.asarray(read_image(encoded(inside * 2, "TIFF"), white=2)).tolist() == inside.tolist()
    broken = np.array([[0.5, np.nan]], dtype=np.float32)
    with pytest.raises(FeatureError, match="not all finite"):
        read_image(encoded(broken, "TIFF"), white=1)


def test_cmyk() -> None:
    """Inks become colours, in a TIFF as stored and in a JPEG as Adobe inverts it."""
    inks = np.zeros((16, 64, 4), dtype=np.uint8)
    for column, ink in enumerate([(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]):
        inks[:, 16 * column : 16 * column + 16] = ink
    expected = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    image = Image.frombytes("CMYK", (64, 16), inks.tobytes())
    for form, tolerance in (("TIFF", 0), ("JPEG", 4)):
        data = encoded(image, form)
        assert (b"Adobe" in data) == (form == "JPEG")
        found = np.asarray(read_image(data)).astype(int)[8, 8::16]
        assert np.abs(found - expected).max() <= tolerance


def test_alpha_is_composited_on_white() -> None:
    """Colour under a transparent pixel does not show; half of it shows half."""
    layer = np.array([[(200, 0, 50, alpha) for alpha in (0, 255, 128)]], dtype=np.uint8)
    found = np.asarray(read_image(encoded(layer))).astype(int)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == [200, 0, 50]
    share = 128 / 255
    assert np.abs(found[0, 2] - (255 * (1 - share) + share * layer[0, 2, :3])).max() <= 1
    grey = np.array([[[10, 0], [10, 255]]], dtype=np.uint8)
    assert np.asarray(read_image(encoded(grey), channels=1)).tolist() == [[255, 10]]


def test_palettes_and_colour_keys() -> None:
    """Palette numbers become their colours; what is keyed out becomes white, in 16 bits too."""
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    palette.putdata([0, 1, 2])
    colours = [[10, 20, 30], [200, 100, 0], [7, 7, 7]]
    assert np.asarray(read_image(encoded(palette))).tolist() == [colours]
    keyed = np.asarray(read_image(encoded(palette, transparency=1)))
    assert keyed.tolist() == [[colours[0], [255, 255, 255], colours[2]]]
    blended = np.asarray(read_image(encoded(palette, transparency=b"\x00\xff\xff")))
    assert blended.tolist() == [[[255, 255, 255], colours[1], colours[2]]]

    row = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    found = np.asarray(read_image(encoded(row, transparency=(4, 5, 6))))
    assert found.tolist() == [[[1, 2, 3], [255, 255, 255]]]
    deep = np.array([[0, 500]], dtype=np.uint16)
    assert np.asarray(read_image(encoded(deep, transparency=500))).tolist() == [[0, 1]]


def test_one_bit() -> None:
    """Black and white are 0 and 255, with either meaning of the bits."""
    image = Image.frombytes("1", (8, 1), bytes([0b10110000]))
    expected = [[255, 0, 255, 255, 0, 0, 0, 0]]
    for data in (encoded(image), tiff(1, 0, 8, 1, bytes([0b01001111]))):
        assert np.asarray(read_image(data, channels=1)).tolist() == expected


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_first_frame(form: str) -> None:
    """Of several frames or pages the first is read."""
    first, *rest = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(first, form, save_all=True, append_images=rest, lossless=True)
    assert read_image(data).getpixel((4, 4)) == (255, 0, 0)


FORMS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_images_are_refused(tmp_path: Path, form: str, share: float) -> None:
    """A file that ends early is an error that names it, not a grey lower half."""
    data = encoded(LARGE, form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FeatureError, match=r"cut\.img': the (image|file)(.|\n)*leave it out"):
        read_image(path)
    path.write_bytes(data)
    assert read_image(path).size == (64, 64)


def test_damaged_bytes_raise_nothing_else() -> None:
    """Whatever is done to a file, it is an image or one of our errors."""
    generator = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(LARGE[:16, :16], form) for form in FORMS]
    files += [encoded(LARGE, "JPEG", exif=exif), encoded(DEEP), encoded(DEEP, "TIFF")]
    refused = 0
    for data in files:
        for _ in range(40):
            damaged = np.frombuffer(data, dtype=np.uint8).copy()
            at = generator.integers(0, len(damaged), generator.integers(1, 12))
            damaged[at] = generator.integers(0, 256, len(at))
            try:
                assert min(read_image(damaged.tobytes()).size) > 0
            except FeatureError:
                refused += 1
    assert refused > 100


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that claims too many pixels is refused before they are decoded."""
    claim = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + claim
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data = head + struct.pack(">I", zlib.crc32(chunk)) + encoded(LARGE)[33:]
    with pytest.raises(FeatureError, match=r"too many pixels") as refused:
        read_image(data, name="bomb.png")
    assert "found:    3,600,000,000 pixels" in str(refused.value)
    assert "CATWISE_MAX_PIXELS=3600000000" in str(refused.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert read_image(encoded(LARGE)).size == (64, 64)  # between Pillow's warning and its error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(FeatureError, match="too many pixels"):
        read_image(encoded(LARGE))


def test_the_bound_of_pixels_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy that the error names works, for images and DICOM; nonsense is refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    large = np.tile(GREYS, (64, 64))
    for data in (encoded(LARGE), dicom(large)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.delenv("CATWISE_MAX_PIXELS", raising=False)
        with pytest.raises(FeatureError, match=r"expected: at most 200 pixels") as refused:
            read_image(data)
        remedy = re.search(r"CATWISE_MAX_PIXELS=(\d+)", str(refused.value))
        assert remedy is not None
        monkeypatch.setenv("CATWISE_MAX_PIXELS", remedy[1])
        read_image(data)
        monkeypatch.setenv("CATWISE_MAX_PIXELS", str(int(remedy[1]) - 1))
        with pytest.raises(FeatureError, match="too many pixels"):
            read_image(data)
    for nonsense in ("many", "0", "-5", "9" * 30):
        monkeypatch.setenv("CATWISE_MAX_PIXELS", nonsense)
        with pytest.raises(ConfigError, match="CATWISE_MAX_PIXELS is"):
            read_image(encoded(LARGE))


class Pipe(io.BytesIO):
    """What cannot go back."""

    def seekable(self) -> bool:
        return False


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's size is looked at before it is read; what is no file is read up to the bound."""
    data = encoded(LARGE)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    monkeypatch.setattr("catwise.models.images.MAX_IMAGE", len(data))
    read_image(path)
    monkeypatch.setattr("catwise.models.images.MAX_IMAGE", len(data) - 1)
    for source in (path, data, Pipe(data)):
        with pytest.raises(FeatureError, match="file is too large"):
            read_image(source)


def test_formats_that_run_programs_are_not_opened() -> None:
    """Pillow would give PostScript to Ghostscript."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(script)).format == "EPS"
    with pytest.raises(FeatureError, match="not an image of a known format"):
        read_image(script, name="a.eps")


def test_what_is_no_image(tmp_path: Path) -> None:
    """Missing files, folders, empty files and texts name the path."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("empty.jpg", "text.jpg", "folder.jpg", "missing.jpg", "bad\0name.jpg"):
        with pytest.raises(FeatureError) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


class Failing(io.BytesIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__(encoded(LARGE))
        self.error = error

    def read(self, _size: int | None = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O error"), OSError(errno.EMFILE, "too many"), MemoryError()]
)
def test_failures_of_the_machine_are_another_error(error: BaseException) -> None:
    """A disk that fails does not make an image undecodable, which could be skipped."""
    with pytest.raises(FeatureStoreError, match=r"here\.png"):
        read_image(Failing(error), name="here.png")


def test_kinds_of_input(tmp_path: Path) -> None:
    """Paths, texts, bytes and files give the same; the caller's file stays open."""
    data = encoded(COLOURS)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    file, piped = io.BytesIO(data), io.BytesIO(data)
    file.seek(20)
    piped.seekable = lambda: False  # type: ignore[method-assign]
    for source in (path, str(path), data, bytearray(data), memoryview(data), file, piped):
        np.testing.assert_array_equal(np.asarray(read_image(source)), COLOURS)
    assert not file.closed
    with pytest.raises(ConfigError, match="path, bytes or a binary file"):
        read_image(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"channels": 4}, {"white": 0}, {"white": float("nan")}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    """Channels are 1 or 3, white is a positive number."""
    with pytest.raises(ConfigError):
        read_image(encoded(COLOURS), **options)
    with pytest.raises(ConfigError):
        as_channels(Image.fromarray(COLOURS), **options)


def test_as_channels() -> None:
    """An image that is as wanted stays itself; others are converted by the same rules."""
    colour = Image.fromarray(COLOURS)
    assert as_channels(colour) is colour
    level = Image.fromarray(np.array([[0.5]], dtype=np.float32))
    assert as_channels(level) is level
    assert np.asarray(as_channels(Image.fromarray(DEEP))).max() <= 1
    with pytest.raises(FeatureError, match="no range"):
        as_channels(Image.fromarray(np.array([[7.0]], dtype=np.float32)))


def test_missing_and_broken_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are one error with the line that installs them."""
    (tmp_path / "broken_extra.py").write_text("raise RuntimeError('operator x does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for module, reason in (("broken_extra", "operator x"), ("absent_extra", "not installed")):
        with pytest.raises(MissingExtraError, match=reason) as caught:
            import_optional(module, extra="timm", purpose="reading")
        assert "pip install 'catwise[timm]'" in str(caught.value)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"catwise\[images\]"):
        read_image(b"")


def dicom(array: np.ndarray, **elements: Any) -> bytes:
    """A DICOM file of one or more frames of grey or colour pixels."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    bits = 8 * array.dtype.itemsize
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel = 1 if array.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PlanarConfiguration = 0
    data.PixelData = array.tobytes()
    syntax = elements.pop("syntax", None)
    encapsulated = elements.pop("encapsulated", None)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    if syntax == pydicom.uid.RLELossless:
        data.compress(syntax)
    elif syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
        if encapsulated is not None:
            data.PixelData = pydicom.encaps.encapsulate([encapsulated])
        data["PixelData"].VR = "OB"
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def items(**elements: Any) -> list[Any]:
    item = pytest.importorskip("pydicom").Dataset()
    item.update(elements)
    return [item]


TWELVE = RNG.integers(100, 3000, (6, 9), dtype=np.uint16)
WINDOW = {"WindowCenter": 1000, "WindowWidth": 500}


def shown(array: np.ndarray, **elements: Any) -> np.ndarray:
    image = read_image(dicom(array, **elements))
    assert image.mode == "F"
    return np.asarray(image).astype(np.float64)


def test_dicom_without_a_window() -> None:
    """Up to 8 bits use the range of the bits; deeper images their own, in any sign."""
    np.testing.assert_allclose(shown(GREYS), GREYS / 255, atol=1e-7)
    six = GREYS // 4
    np.testing.assert_allclose(shown(six, BitsStored=6, HighBit=5), six / 63, atol=1e-7)
    expected = (TWELVE - float(TWELVE.min())) / (int(TWELVE.max()) - int(TWELVE.min()))
    np.testing.assert_allclose(shown(TWELVE, BitsStored=12, HighBit=11), expected, atol=1e-6)
    signed = TWELVE.astype(np.int16) - 2000
    np.testing.assert_allclose(shown(signed), expected, atol=1e-6)
    assert shown(np.full((3, 3), 77, dtype=np.uint16)).max() == 0


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("rescaled", [False, True])
def test_dicom_window(function: str | None, *, rescaled: bool) -> None:
    """Rescale and window as pydicom applies them, scaled to [0, 1]; MONOCHROME1 is turned over."""
    pydicom = pytest.importorskip("pydicom")
    elements: dict[str, Any] = {**WINDOW, "BitsStored": 12, "HighBit": 11}
    elements |= {"VOILUTFunction": function} if function else {}
    elements |= {"RescaleSlope": 2, "RescaleIntercept": -1024} if rescaled else {}
    data = pydicom.dcmread(io.BytesIO(dicom(TWELVE, **elements)))
    values = pydicom.pixels.apply_windowing(pydicom.pixels.apply_modality_lut(TWELVE, data), data)
    low, high = (-1024, 4095 * 2 - 1024) if rescaled else (0, 4095)
    expected = (values - low) / (high - low)
    found = shown(TWELVE, **elements)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(found)) > 3
    inverted = shown(TWELVE, **elements, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(inverted, 1 - expected, atol=1e-6)


@pytest.mark.parametrize("shape", [None, "", "IDENTITY", "INVERSE", "INVERSE "])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("how", ["window", "table", "stretched", "8 bits", "signed"])
def test_dicom_polarity(photometric: str, shape: str | None, how: str) -> None:
    """White is inverted once, behind the window, for MONOCHROME1 or INVERSE, and never twice."""
    stored = {"8 bits": GREYS, "signed": TWELVE.astype(np.int16) - 2000}.get(how, TWELVE)
    elements: dict[str, Any] = dict(WINDOW) if how == "window" else {}
    if how == "table":
        words = np.arange(4096, dtype="<u2").tobytes()
        elements["VOILUTSequence"] = items(LUTDescriptor=[4096, 0, 12], LUTData=words)
    plain = shown(stored, **elements)
    assert plain.max() > plain.min()
    said = {} if shape is None else {"PresentationLUTShape": shape}
    found = shown(stored, **elements, **said, PhotometricInterpretation=photometric)
    inverted = photometric == "MONOCHROME1" or "INVERSE" in (shape or "")
    np.testing.assert_allclose(found, 1 - plain if inverted else plain, atol=1e-6)


def test_dicom_polarity_of_padding_frames_and_colour() -> None:
    """INVERSE leaves padding black and colour as it is; of several frames the first is inverted."""
    inverse = {"PresentationLUTShape": "INVERSE"}
    padded = np.where(TWELVE > 2000, 0, TWELVE).astype(np.uint16)
    found = shown(padded, PixelPaddingValue=0, **inverse)
    assert not found[padded == 0].any()
    assert found[padded == padded[padded > 0].min()].min() == 1
    two = dicom(GREYS, NumberOfFrames=2, PixelData=GREYS.tobytes() + bytes(GREYS.size), **inverse)
    np.testing.assert_allclose(np.asarray(read_image(two)), 1 - GREYS / 255, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(read_image(dicom(COLOURS, **inverse))), COLOURS)
    with pytest.raises(FeatureError, match="'LIN OD'"):
        shown(GREYS, PresentationLUTShape="LIN OD")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_presentation_table(photometric: str) -> None:
    """A presentation table maps all that went before to what is seen, its own polarity included."""
    words = (1023 - np.arange(256) * 4).astype("<u2").tobytes()
    table = items(LUTDescriptor=[256, 0, 10], LUTData=words)
    found = shown(GREYS, PresentationLUTSequence=table, PhotometricInterpretation=photometric)
    np.testing.assert_allclose(found, (1023 - GREYS * 4.0) / 1023, atol=1e-6)


def test_dicom_bits_elsewhere() -> None:
    """Bits in the upper part of their words, as in old files, are refused, not cut off."""
    for stored, top in ((12, 15), (16, 11)):
        with pytest.raises(FeatureError, match=f"{stored} bits stored, the highest of them number"):
            shown(TWELVE * np.uint16(16), BitsStored=stored, HighBit=top)


def test_signs_of_tiffs() -> None:
    """Signed bytes are refused, not taken for unsigned; unsigned numbers of 32 bits keep theirs."""
    signed = tiff(8, 1, 2, 1, bytes([200, 100]), samples=2)
    with pytest.raises(FeatureError, match="signed"):
        read_image(signed)
    wide = tiff(32, 1, 2, 1, np.array([0, 2**32 - 1], dtype="<u4").tobytes(), samples=1)
    assert np.asarray(read_image(wide, white=2**32 - 1)).tolist() == [[0, 1]]


def test_dicom_window_of_one_grey_and_of_none() -> None:
    """Of several windows the first counts; width 1 is a step; width 0 is no window."""
    first = shown(TWELVE, WindowCenter=[1000, 5], WindowWidth=[500, 9])
    np.testing.assert_array_equal(first, shown(TWELVE, **WINDOW))
    step = shown(TWELVE, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(step, TWELVE > 999.5)
    np.testing.assert_array_equal(shown(TWELVE, WindowCenter=1, WindowWidth=0), shown(TWELVE))


def test_dicom_tables_groups_and_padding() -> None:
    """VOI tables, windows inside functional groups, and padding that is always black."""
    values = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    words = np.array([10, 100, 255], dtype="<u2").tobytes()
    table = items(LUTDescriptor=[3, 1, 8], LUTData=words)
    found = shown(values, VOILUTSequence=table)
    np.testing.assert_allclose(found * 255, [[10, 10, 100, 255]], atol=1e-4)

    voi, change = items(**WINDOW), items(RescaleSlope=2, RescaleIntercept=-5)
    shared = items(FrameVOILUTSequence=voi, PixelValueTransformationSequence=change)
    grouped = shown(TWELVE, SharedFunctionalGroupsSequence=shared)
    plain = shown(TWELVE, **WINDOW, RescaleSlope=2, RescaleIntercept=-5)
    np.testing.assert_array_equal(grouped, plain)

    padded = np.concatenate([[[60000, 60001, 60002] * 3], TWELVE]).astype(np.uint16)
    limits = {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60002}
    inverted = shown(padded, **limits, PhotometricInterpretation="MONOCHROME1")
    assert not inverted[0].any()
    np.testing.assert_allclose(inverted[1:], 1 - shown(TWELVE), atol=1e-6)


def test_dicom_colour() -> None:
    """RGB in both orders of its planes, of 16 bits, from YBR and from a palette."""
    plain = read_image(dicom(COLOURS))
    assert plain.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(plain), COLOURS)
    assert read_image(dicom(COLOURS), channels=1).mode == "L"
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1)).tobytes()
    other = read_image(dicom(COLOURS, PlanarConfiguration=1, PixelData=planes))
    np.testing.assert_array_equal(np.asarray(other), COLOURS)
    wide = COLOURS.astype(np.uint16) * 257
    np.testing.assert_array_equal(np.asarray(read_image(dicom(wide))), COLOURS)

    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    found = np.asarray(read_image(dicom(ybr, PhotometricInterpretation="YBR_FULL")))
    assert np.abs(found.astype(int) - COLOURS).max() <= 3

    table = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", [0, 200]), ("Green", [50, 0]), ("Blue", [255, 1])):
        table[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        numbers = (np.array(values) * 257).astype("<u2")
        table[f"{name}PaletteColorLookupTableData"] = numbers.tobytes()
    found = np.asarray(read_image(dicom(np.array([[0, 1]], dtype=np.uint8), **table)))
    assert found.tolist() == [[[0, 50, 255], [200, 0, 1]]]


def test_dicom_files(tmp_path: Path) -> None:
    """First frame, compression, no preamble: read. Cut off, no pixels, no decoder: refused."""
    pydicom = pytest.importorskip("pydicom")
    frames = np.stack([GREYS, 255 - GREYS]).tobytes()
    found = shown(GREYS, NumberOfFrames=2, PixelData=frames)
    np.testing.assert_allclose(found, GREYS / 255, atol=1e-7)
    packed = shown(GREYS, syntax=pydicom.uid.RLELossless)
    np.testing.assert_allclose(packed, GREYS / 255, atol=1e-7)

    whole = dicom(GREYS)
    bare = io.BytesIO()
    inner = pydicom.dcmread(io.BytesIO(whole))
    pydicom.dcmwrite(bare, pydicom.Dataset(inner), implicit_vr=True, little_endian=True)
    path = tmp_path / "bare.DCM"
    path.write_bytes(bare.getvalue())
    np.testing.assert_allclose(np.asarray(read_image(path)), GREYS / 255, atol=1e-7)

    with pytest.raises(FeatureError, match="less than expected"):
        read_image(whole[:-20])
    del inner.PixelData
    inner.save_as(tmp_path / "report", enforce_file_format=True)
    with pytest.raises(FeatureError, match="holds no image"):
        read_image(tmp_path / "report")
    with pytest.raises(FeatureError, match="too many pixels"):
        read_image(dicom(GREYS, Rows=60_000, Columns=60_000))
    strange = dicom(GREYS, syntax="1.2.840.10008.1.2.4.80", encapsulated=b"rubbish!")
    with pytest.raises(FeatureError, match="pip install pylibjpeg"):
        read_image(strange, name="jls.dcm")


def test_dicom_headers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames, elements and what a deflated file becomes are looked at before pixels are decoded."""
    pydicom = pytest.importorskip("pydicom")
    with pytest.raises(FeatureError, match="claims more frames than it can hold"):
        read_image(dicom(GREYS, NumberOfFrames=2**31 - 1))
    deflated = dicom(GREYS, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    np.testing.assert_allclose(np.asarray(read_image(deflated)), GREYS / 255, atol=1e-7)
    monkeypatch.setattr("catwise.models.images.MAX_INFLATED", 100)
    with pytest.raises(FeatureError, match=r"deflated and becomes too large") as refused:
        read_image(deflated)
    assert "found:    more than 100 bytes" in str(refused.value)
    monkeypatch.setattr("catwise.models.images.MAX_SEQUENCE", 10)
    table = items(LUTDescriptor=[256, 0, 10], LUTData=bytes(512))
    with pytest.raises(FeatureError, match=r"PresentationLUTSequence of \d+ bytes"):
        read_image(dicom(GREYS, PresentationLUTSequence=table))
    monkeypatch.setattr("catwise.models.images.MAX_ELEMENTS", 20)
    with pytest.raises(FeatureError, match="more than 20 parts"):
        read_image(dicom(GREYS))


def test_dicom_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The install line, and not an undecodable image that could be skipped."""
    data = dicom(GREYS)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"catwise\[dicom\]"):
        read_image(data)
