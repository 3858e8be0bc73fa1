"""Films of every kind come out as known grey values, bad files as a reason, and films that lie wrong are told apart."""

import io
import struct
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageOps
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from chexreason.data import images
from chexreason.data.images import FilmError
from chexreason.data.phantom import hospitals

REAL = ROOT.parent / "shared" / "real_cxr"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real films beside the project")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
TWELVE_BIT = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)


def saved(folder, image, name="film.png", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(folder / name, **options)
    return folder / name


def dicom(stored, bits=12, polarity="MONOCHROME2", **elements) -> Dataset:
    """A CR image written by hand: one element per line of the Image Pixel Module."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = polarity
    data.BitsAllocated = 8 * stored.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def kept(folder, data, name="film.dcm"):
    data.save_as(folder / name, enforce_file_format=True)
    return folder / name


def lookup(values, first=0, bits=8) -> Dataset:
    table = Dataset()
    table.add_new(0x00283002, "US", [len(values), first, bits])
    table.add_new(0x00283006, "US", [int(value) for value in values])
    return table


def grey(stored) -> np.ndarray:
    """Lowest to highest as 0 to 255."""
    low, high = float(stored.min()), float(stored.max())
    return np.round((stored - low) / (high - low) * 255)


# Pictures.


def test_an_8_bit_png_keeps_its_grey_values(tmp_path):
    pixels = images.read(saved(tmp_path, RAMP[:, :5]))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RAMP[:, :5])


def test_a_jpeg_keeps_its_grey_values_as_far_as_jpeg_does(tmp_path):
    steps = np.repeat(np.repeat(np.array([[10, 200], [90, 250]], dtype=np.uint8), 32, axis=0), 32, axis=1)
    np.testing.assert_allclose(images.read(saved(tmp_path, steps, "film.jpg", quality=95)), steps, atol=2)


@pytest.mark.parametrize("values", [TWELVE_BIT, TWELVE_BIT * 16, TWELVE_BIT // 8 + 300], ids=["12", "16", "10 bit"])
def test_a_16_bit_png_is_stretched_over_its_own_range(tmp_path, values):
    np.testing.assert_allclose(images.read(saved(tmp_path, values)), grey(values.astype(float)), atol=1)


def test_colour_becomes_its_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], dtype=np.uint8)
    luma = [[0.299 * 255, 0.587 * 255, 0.114 * 255, 90]]  # ITU-R BT.601
    np.testing.assert_allclose(images.read(saved(tmp_path, colours)), luma, atol=1)


def test_what_is_transparent_is_not_shown(tmp_path):
    rgba = np.array([[[200, 200, 200, 255], [200, 200, 200, 0], [200, 200, 200, 128]]], dtype=np.uint8)
    np.testing.assert_allclose(images.read(saved(tmp_path, rgba)), [[200, 0, 100]], atol=1)
    grey_and_alpha = np.array([[[200, 255], [200, 0], [200, 128]]], dtype=np.uint8)
    np.testing.assert_allclose(images.read(saved(tmp_path, grey_and_alpha)), [[200, 0, 100]], atol=1)


def test_a_palette_shows_its_colours_and_not_their_numbers(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([40, 40, 40, 250, 250, 250, 130, 130, 130])
    assert images.read(saved(tmp_path, image)).tolist() == [[40, 250, 130]]
    assert images.read(saved(tmp_path, image, transparency=1)).tolist() == [[40, 0, 130]]


def test_a_one_bit_png_is_black_and_white(tmp_path):
    assert images.read(saved(tmp_path, Image.fromarray(RAMP > 127))).tolist() == ((RAMP > 127) * 255).tolist()


def test_ink_in_a_cmyk_jpeg_is_dark(tmp_path):
    ink = np.zeros((16, 32, 4), dtype=np.uint8)
    ink[:, 16:, 3] = 255
    pixels = images.read(saved(tmp_path, Image.fromarray(ink, mode="CMYK"), "film.jpg"))
    assert pixels[:, :8].min() > 250 and pixels[:, 24:].max() < 5


def test_an_exif_orientation_is_carried_out(tmp_path):
    steps = np.repeat(np.array([[0] * 32, [255] * 32], dtype=np.uint8), 16, axis=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the top row becomes the right column
    pixels = images.read(saved(tmp_path, steps[:, :16], "film.jpg", exif=exif))
    assert pixels.shape == (16, 32)
    assert pixels[:, :12].min() > 250 and pixels[:, 20:].max() < 5


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(samples, color_type, *chunks: bytes) -> bytes:
    """A PNG of 16 bits per channel by hand: Pillow writes it in gray only."""
    height, width = samples.shape[:2]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    rest = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + rest


def read_bytes(folder, content: bytes, notes=None) -> np.ndarray:
    (folder / "film").write_bytes(content)
    return images.read(folder / "film", notes)


CLEAR = np.where(RAMP < 40, 0, 65535).astype(np.uint16)  # alpha: the first pixels are transparent
COLOR = np.stack([TWELVE_BIT, TWELVE_BIT[::-1], TWELVE_BIT.T], axis=-1)


def test_colors_of_16_bits_are_stretched_as_gray_of_16_bits_is(tmp_path):
    luma = grey(COLOR @ np.array([0.299, 0.587, 0.114]))  # ITU-R BT.601
    opaque = np.full((16, 16, 1), 65535)
    np.testing.assert_allclose(read_bytes(tmp_path, png16(COLOR, 2)), luma, atol=1)
    np.testing.assert_allclose(read_bytes(tmp_path, png16(np.dstack([COLOR, opaque]), 6)), luma, atol=1)
    gray = png16(np.stack([TWELVE_BIT, opaque[..., 0]], axis=-1), 4)
    np.testing.assert_allclose(read_bytes(tmp_path, gray), RAMP, atol=1)


def test_what_is_transparent_in_16_bits_is_not_shown_and_does_not_count(tmp_path):
    stored = np.where(CLEAR == 0, 60000, TWELVE_BIT).astype(np.uint16)
    expected = np.where(CLEAR == 0, 0, grey(np.where(CLEAR == 0, TWELVE_BIT[2, 8], TWELVE_BIT)))
    key = struct.pack(">H", 60000)
    for content in (
        png16(np.stack([stored, CLEAR], axis=-1), 4),
        png16(np.stack([stored, stored, stored, CLEAR], axis=-1), 6),
        png16(stored, 0, chunk(b"tRNS", key)),
        png16(np.stack([stored] * 3, axis=-1), 2, chunk(b"tRNS", key * 3)),
    ):
        np.testing.assert_allclose(read_bytes(tmp_path, content), expected, atol=1)


@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_is_carried_out_as_pillow_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, RAMP[:, :5], exif=exif)
    np.testing.assert_array_equal(images.read(path), np.array(ImageOps.exif_transpose(Image.open(path))))


def test_exif_that_is_none_is_noted_and_the_picture_read(tmp_path):
    whole = encoded("PNG")
    at, notes = whole.index(b"IDAT") - 4, []
    pixels = read_bytes(tmp_path, whole[:at] + chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3") + whole[at:], notes)
    np.testing.assert_array_equal(pixels, read_bytes(tmp_path, whole))
    assert notes == ["EXIF is malformed; it counts as absent"]


def test_of_several_pictures_in_a_jpeg_the_first_is_read(tmp_path):
    stream = io.BytesIO()
    first = Image.fromarray(RAMP).resize((256, 256))
    first.save(stream, "MPO", save_all=True, append_images=[Image.new("L", (64, 64), 255)], quality=95)
    np.testing.assert_allclose(read_bytes(tmp_path, stream.getvalue()), np.array(first), atol=4)
    np.testing.assert_allclose(read_bytes(tmp_path, encoded("JPEG", quality=95) * 2), np.array(first), atol=4)


@pytest.mark.parametrize("end", [b"\xff\xd9", bytes(20_000), b""], ids=["an end", "zeros", "nothing"])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_a_jpeg_that_was_cut_is_refused_whatever_was_put_at_its_end(tmp_path, kept, end):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    stream = encoded("JPEG", noise, quality=80)
    assert read_bytes(tmp_path, stream + bytes(100)).shape == (256, 256)
    cut = stream[: round(kept * len(stream))] + end
    with pytest.raises(FilmError, match="truncated JPEG"):
        read_bytes(tmp_path, cut)
    data = dicom(np.zeros((256, 256), dtype=np.uint8), 8)
    data.file_meta.TransferSyntaxUID, data.PixelData = JPEGBaseline8Bit, encapsulate([cut])
    data["PixelData"].VR = "OB"
    with pytest.raises(FilmError, match="truncated"):
        read_bytes(tmp_path, written(data))


def test_a_large_text_or_color_profile_does_not_keep_a_picture_from_being_read(tmp_path):
    whole, large = encoded("PNG"), np.random.default_rng(0).bytes(3_000_000)
    at = whole.index(b"IDAT") - 4
    for extra in (
        chunk(b"iCCP", b"a\0\0" + zlib.compress(large, 1)),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(large, 1)),
    ):
        np.testing.assert_array_equal(
            read_bytes(tmp_path, whole[:at] + extra + whole[at:]), read_bytes(tmp_path, whole)
        )


# The range.


def with_marker(stored, brightness) -> np.ndarray:
    """`stored` with a bright rectangle over 1.6 percent of it."""
    marked = stored.copy()
    side = len(stored) // 8
    marked[side : 2 * side, :side] = brightness
    return marked


@pytest.mark.parametrize("brightness", [16383, 65535])
@pytest.mark.parametrize("write", ["PNG", "DICOM", "MONOCHROME1"])
def test_a_marker_brighter_than_the_film_leaves_the_film_its_gray_levels(tmp_path, brightness, write):
    film = np.kron(TWELVE_BIT, np.ones((8, 8), dtype=np.uint16))
    marked = with_marker(film, brightness)
    content = {
        "PNG": lambda: png16(marked, 0),
        "DICOM": lambda: written(dicom(marked, 16)),
        "MONOCHROME1": lambda: written(dicom(65535 - marked, 16, "MONOCHROME1")),
    }[write]()
    pixels = read_bytes(tmp_path, content)
    np.testing.assert_allclose(pixels, with_marker(grey(film.astype(float)), 255), atol=1)


def test_without_such_outliers_the_range_is_the_lowest_to_the_highest_value():
    values = np.array([3.0, 900.0, 17.0, 1000.0])
    assert images.stretch(values, np.array([50, 1, 50, 0])).tolist()[:3] == [0, 255, 255]  # 900 lies beyond the whisker
    assert images.stretch(values[:3], np.array([50, 50, 1])).tolist() == [0, 255, 4]
    assert images.stretch(values, np.array([1000, 1, 0, 0])).tolist() == [0, 255, 4, 255]  # all but one pixel are alike
    assert not images.stretch(values, np.array([0, 0, 9, 0])).any()


@needs_real
def test_no_pose_is_judged_worse_for_a_marker_and_none_otherwise_for_the_stretch(real):
    """Without a robust range, the markers get 12 of the 271 films refused instead of three."""
    for brightness in (None, 16383):
        refused = 0
        for film in list(real.values())[::3]:
            stored = film.astype(np.uint16) * 16
            stored = stored if brightness is None else with_marker(stored, brightness)
            counts = np.bincount(stored.ravel(), minlength=2**16)
            refused += images.pose_fault(images.stretch(np.arange(2**16), counts)[stored]) != images.pose_fault(film)
        assert refused == 0


# DICOM.


@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
def test_dicom_of_any_depth_is_stretched_and_monochrome1_is_inverted(tmp_path, bits):
    stored = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    np.testing.assert_allclose(images.read(kept(tmp_path, dicom(stored, bits))), RAMP, atol=1)
    negative = images.read(kept(tmp_path, dicom(stored, bits, "MONOCHROME1")))
    np.testing.assert_allclose(negative, 255 - RAMP.astype(int), atol=1)


def test_an_8_bit_and_a_signed_dicom_are_read(tmp_path):
    np.testing.assert_array_equal(images.read(kept(tmp_path, dicom(RAMP, 8))), RAMP)
    signed = (TWELVE_BIT.astype(np.int16) - 2048).astype(np.int16)
    np.testing.assert_allclose(images.read(kept(tmp_path, dicom(signed))), RAMP, atol=1)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_applied_as_the_standard_has_it(tmp_path, function):
    data = dicom(TWELVE_BIT, WindowCenter=1500, WindowWidth=800, VOILUTFunction=function)
    x = TWELVE_BIT.astype(float)
    shown = {  # PS3.3, C.11.2.1.2 and C.11.2.1.3
        "LINEAR": np.clip((x - 1499.5) / 799 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - 1500) / 800 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - 1500) / 800)),
    }[function]
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), shown * 255, atol=1)


def test_a_window_counts_in_rescaled_values_and_the_first_of_several_is_taken(tmp_path):
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}
    data = dicom(TWELVE_BIT, WindowCenter=[2000, 10], WindowWidth=[1000, 10], **rescaled)
    expected = np.clip((2.0 * TWELVE_BIT - 1000 - 1999.5) / 999 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), expected, atol=1)


def test_lookup_tables_are_applied(tmp_path):
    squares = np.arange(256) ** 2
    expected = np.round(squares / 255).reshape(16, 16)
    voi = dicom(RAMP, 8, VOILUTSequence=[lookup(squares, bits=16)])
    np.testing.assert_allclose(images.read(kept(tmp_path, voi)), expected, atol=1)
    modality = lookup(squares, bits=16)
    modality.ModalityLUTType = "US"
    data = dicom(RAMP, 8, ModalityLUTSequence=[modality])
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), expected, atol=1)


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_dark_and_does_not_count_as_the_lowest_or_highest_value(tmp_path, polarity):
    stored = np.array([[5000, 5001, 1000, 1500, 2000]], dtype=np.uint16)
    data = dicom(stored, 16, polarity)
    data.add_new(0x00280120, "US", 5000)
    data.add_new(0x00280121, "US", 5001)
    values = [0, 0, 255, 128, 0] if polarity == "MONOCHROME1" else [0, 0, 0, 128, 255]
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), [values], atol=1)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_lossless_compression_changes_nothing(tmp_path, syntax, bits):
    stored = np.random.default_rng(1).integers(0, 2**bits, (64, 40), dtype=np.uint16)
    data = dicom(stored, bits, "MONOCHROME1")
    plain = images.read(kept(tmp_path, data))
    data.compress(syntax)
    np.testing.assert_array_equal(images.read(kept(tmp_path, data, "packed.dcm")), plain)


def test_a_plain_jpeg_inside_dicom_is_read(tmp_path):
    steps = np.repeat(np.repeat(np.array([[0, 200], [90, 255]], dtype=np.uint8), 32, axis=0), 32, axis=1)
    stream = io.BytesIO()
    Image.fromarray(steps).save(stream, "JPEG", quality=95)
    data = dicom(steps, 8)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([stream.getvalue()])
    data["PixelData"].VR = "OB"
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), steps, atol=3)


def test_a_secondary_capture_in_colour_becomes_its_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], dtype=np.uint8)
    data = dicom(colours, 8, "RGB", SamplesPerPixel=3, PlanarConfiguration=0)
    np.testing.assert_allclose(images.read(kept(tmp_path, data)), [[76, 150, 29, 90]], atol=1)


@needs_real
def test_the_real_monochrome1_film_has_dark_air_and_the_grey_values_of_an_independent_decoding():
    path = REAL / "dicom" / "RG1_UNCR.dcm"
    pixels = images.read(path).astype(float)
    height, width = pixels.shape
    content = path.read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00OW") + 12  # tag, type, two bytes reserved, four of length
    raw = np.frombuffer(content, "<u2", height * width, start).reshape(height, width)
    window = np.clip((raw - 14999.5) / 29999 + 0.5, 0, 1)  # centre 15000 and width 30000, as its header says
    np.testing.assert_allclose(pixels, grey(-window), atol=1)
    air = [pixels[100:200, :80], pixels[100:200, -80:]]  # above the shoulders, below a burnt-in strip
    mediastinum = pixels[height // 2 - 100 : height // 2 + 100, width // 2 - 50 : width // 2 + 50]
    assert max(patch.mean() for patch in air) < 60 < 200 < mediastinum.mean()
    assert images.pose_fault(images.read(path)) == ""


# What cannot be read.


def png_header(width, height) -> bytes:
    """A grey PNG that claims to be large and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def encoded(kind, image=RAMP, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).resize((256, 256)).save(stream, kind, **options)
    return stream.getvalue()


def written(data: Dataset) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def huge_jpeg() -> bytes:
    plain = encoded("JPEG")
    sizes = plain.index(b"\xff\xc0") + 5  # the frame header: marker, length, precision, then height and width
    return plain[:sizes] + struct.pack(">HH", 65000, 65000) + plain[sizes + 4 :]


def packed(syntax) -> bytes:
    data = dicom(np.random.default_rng(1).integers(0, 4096, (64, 64), dtype=np.uint16))
    data.compress(syntax)
    return written(data)


def report() -> bytes:
    """A DICOM file without any image."""
    data = dicom(TWELVE_BIT)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(data, name)
    return written(data)


BAD = {
    "empty": (b"", "empty file"),
    "text named .png": (b"patient,study\n", "not an image: neither JPEG, PNG nor DICOM"),
    "a GIF": (encoded("GIF"), "not an image"),
    "truncated JPEG": (encoded("JPEG")[:-500], "^truncated JPEG$"),
    "truncated PNG": (encoded("PNG")[:-200], "^truncated PNG$"),
    "header of a JPEG": (encoded("JPEG")[:30], "^truncated JPEG$"),
    "header of a PNG": (encoded("PNG")[:40], "^broken PNG: its header cannot be read$"),
    "bomb of 3,600 million pixels": (png_header(60_000, 60_000), "more than 40,000,000 pixels"),
    "bomb of 120 million pixels": (png_header(12_000, 10_000), "more than 40,000,000 pixels"),
    "bomb of 56 million pixels": (png_header(8_000, 7_000), "more than 40,000,000 pixels"),
    "JPEG bomb": (huge_jpeg(), "more than 40,000,000 pixels"),
    "DICOM bomb": (written(dicom(TWELVE_BIT, Rows=60_000, Columns=60_000)), "more than 40,000,000 pixels"),
    "animated PNG": (
        encoded("PNG", save_all=True, append_images=[Image.new("L", (256, 256))]),
        r"^several frames \(2\)$",
    ),
    "multi-frame DICOM": (
        written(dicom(TWELVE_BIT, NumberOfFrames=3, PixelData=TWELVE_BIT.tobytes() * 3)),
        r"^several frames \(3\)$",
    ),
    "DICOM without an image": (report(), "^DICOM without an image$"),
    "header of a DICOM": (written(dicom(TWELVE_BIT))[:200], "^truncated DICOM$"),
    "DICOM with pixels missing": (written(dicom(TWELVE_BIT))[:-100], "^truncated DICOM$"),
    "truncated JPEG 2000 in DICOM": (packed(JPEG2000Lossless)[:-2000], "^truncated DICOM$"),
    "truncated JPEG-LS in DICOM": (packed(JPEGLSLossless)[:-2000], "^truncated DICOM$"),
    "DICOM of a palette": (written(dicom(RAMP, 8, "PALETTE COLOR")), "^photometric interpretation PALETTE COLOR$"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_film_is_refused_with_its_reason(tmp_path, case):
    content, reason = BAD[case]
    path = tmp_path / "film.png"
    path.write_bytes(content)
    with pytest.raises(FilmError, match=reason) as refusal:
        images.read(path)
    assert "\n" not in str(refusal.value) and str(tmp_path) not in str(refusal.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FilmError, match="no such file"):
        images.read(tmp_path / "gone.png")
    with pytest.raises(FilmError, match="cannot be opened: Is a directory"):
        images.read(tmp_path)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    path = tmp_path / "film.dcm"
    path.write_bytes(packed(JPEGLSLossless))
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: SimpleNamespace(is_available=False))
    with pytest.raises(FilmError, match="no decoder is installed for JPEG-LS Lossless"):
        images.read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "DICOM", "JPEG-LS in DICOM"])
def test_damage_of_any_sort_raises_nothing_but_film_error(tmp_path, kind):
    whole = {"DICOM": written(dicom(TWELVE_BIT)), "JPEG-LS in DICOM": packed(JPEGLSLossless)}
    whole = whole.get(kind) or encoded(kind)
    rng, path = np.random.default_rng(3), tmp_path / "film"
    outcomes = Counter()
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, min(len(damaged), 1000), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            outcomes[images.read(path).dtype.name] += 1
        except FilmError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 30 and set(outcomes) <= {"refused", "uint8"}


# What a readable image shows.


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    recipes = [hospitals.film_table(20, 1, hospital)["recipe"] for hospital in "ABC"]
    return [hospitals.draw(recipe).image for column in recipes for recipe in column]


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    paths = [path for folder in ("nih", "covid_ccby") for path in sorted((REAL / folder).glob("*.jpg"))]
    return {path.name: images.read(path) for path in paths}


def share(pixels, turns, reason) -> float:
    return float(np.mean([images.pose_fault(np.rot90(film, turns)) == reason for film in pixels]))


TURNS = {0: "", 1: "rotated by a quarter turn", 2: "upside down", 3: "rotated by a quarter turn"}


@pytest.mark.parametrize("turns", TURNS)
def test_every_phantom_is_taken_as_it_lies(drawn, turns):
    assert share(drawn, turns, TURNS[turns]) == 1.0


def test_a_phantom_shown_as_a_negative_is_reported(drawn):
    assert {images.pose_fault(255 - film) for film in drawn} == {"negative: air is bright"}


@needs_real
def test_of_the_real_films_one_is_refused_wrongly_and_two_because_they_are_negatives(real):
    told = {name: reason for name, film in real.items() if (reason := images.pose_fault(film))}
    assert told == {
        "00017625_000.jpg": "negative: air is bright",
        "00017999_000.jpg": "negative: air is bright",
        "262a70ca.jpg": "rotated by a quarter turn",
    }


@needs_real
@pytest.mark.parametrize(("turns", "least"), [(1, 0.98), (2, 0.95), (3, 0.96)])
def test_real_films_that_were_turned_are_found(real, turns, least):
    assert share(real.values(), turns, TURNS[turns]) >= least


@needs_real
def test_real_films_shown_as_negatives_are_found(real):
    assert share([255 - film for film in real.values()], 0, "negative: air is bright") >= 0.94


def test_a_mirrored_film_passes(drawn):
    """Situs inversus looks the same, and a marker cannot be read from afar: mirroring is not judged."""
    assert {images.pose_fault(np.fliplr(film)) for film in drawn} == {""}


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((300, 300), 90, dtype=np.uint8), "blank"),
        (np.zeros((300, 300), dtype=np.uint8), "blank"),
        (np.random.default_rng(1).integers(0, 256, (2000, 2000), dtype=np.uint8), "blank"),  # noise, grey from afar
        (np.zeros((95, 128), dtype=np.uint8), "tiny: 128 x 95 pixels"),
        (np.zeros((200, 401), dtype=np.uint8), "not the shape of a chest film: 401 x 200 pixels"),
        (np.zeros((401, 200), dtype=np.uint8), "not the shape of a chest film: 200 x 401 pixels"),
    ],
)
def test_what_cannot_be_a_chest_film_is_reported_by_its_reason(pixels, reason):
    assert images.pose_fault(pixels) == reason


@pytest.mark.filterwarnings("error")
def test_a_picture_of_two_grey_values_makes_no_trouble():
    square = np.zeros((200, 200), dtype=np.uint8)
    square[40:160, 40:160] = 255
    images.pose_fault(square)


def test_size_does_not_change_what_is_reported(drawn):
    for width, height in [(96, 96), (700, 500), (1500, 2900)]:
        resized = [np.asarray(Image.fromarray(film).resize((width, height))) for film in drawn[::10]]
        assert {images.pose_fault(film) for film in resized} == {""}
        assert {images.pose_fault(film[::-1, ::-1]) for film in resized} == {"upside down"}


# Films as a model is shown them.


def test_a_prepared_film_is_grey_and_shrunk_to_its_longest_side(tmp_path, drawn):
    large = Image.fromarray(drawn[0]).resize((400, 500))
    film = images.prepare(saved(tmp_path, large.convert("RGB")), 200)
    assert (film.mode, film.size) == ("L", (160, 200))
    np.testing.assert_allclose(np.asarray(film).mean(), drawn[0].mean(), atol=1)


def test_a_prepared_film_is_never_enlarged(tmp_path, drawn):
    film = images.prepare(saved(tmp_path, drawn[0]), 896)
    np.testing.assert_array_equal(np.asarray(film), drawn[0])


def test_preparing_refuses_what_is_unreadable_or_no_upright_chest(tmp_path, drawn):
    with pytest.raises(FilmError, match="upside down"):
        images.prepare(saved(tmp_path, drawn[0][::-1, ::-1]), 200)
    with pytest.raises(FilmError, match="no such file"):
        images.prepare(tmp_path / "gone.png", 200)


def test_a_dicom_written_here_is_one_that_pydicom_finds_complete(tmp_path):
    """The helper above writes proper files: pydicom reads back what went in."""
    path = kept(tmp_path, dicom(TWELVE_BIT))
    np.testing.assert_array_equal(dcmread(path).pixel_array, TWELVE_BIT)
