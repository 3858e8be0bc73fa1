"""DICOM headers of every form give the gray values that PS3.3 C.7.6.3 and C.11 define, worked out here by hand."""

import io
import re
import struct
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, itemize_fragment
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from test_films import RAMP, TWELVE_BIT, dicom, grey, written

from chexreason.data import convert, images
from chexreason.data.images import FilmError
from chexreason.data.phantom import hospitals

SIGNED = (TWELVE_BIT.astype(np.int16) - 2048).astype(np.int16)
X = TWELVE_BIT.astype(float)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}  # LINEAR: 0 to 4095 becomes 0 to 1
NEGATIVE = {"RescaleSlope": -1, "RescaleIntercept": 4095, "RescaleType": "US"}
S_CURVE = np.round(4095 / (1 + np.exp(-np.linspace(-4, 4, 4096)))).astype(int)


def changed(data, **elements) -> Dataset:
    """`data` with the bytes of elements replaced, whether they are legal or not."""
    for keyword, value in elements.items():
        tag, vr = Tag(tag_for_keyword(keyword)), dictionary_VR(keyword)
        data[tag] = RawDataElement(tag, "US" if vr == "US or SS" else vr, len(value), value, 0, False, True)
    return data


def read(tmp_path, data) -> tuple[np.ndarray, str]:
    """The film of a data set or of the bytes of a file, and the notes."""
    notes = []
    (tmp_path / "film").write_bytes(data if isinstance(data, bytes) else written(data))
    return images.read(tmp_path / "film", notes), "; ".join(notes)


def table(entries, bits, first=0, packed=None) -> Dataset:
    """An item of a lookup table sequence, its data as US or, `packed`, as OW."""
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, *(("US", [int(each) for each in entries]) if packed is None else ("OW", packed)))
    item.ModalityLUTType = "US"
    return item


def compressed(stored, bits, syntax, **elements) -> Dataset:
    """Each pixel four by four times, for JPEG 2000 wants some size; `elements` are set afterwards."""
    data = dicom(np.kron(stored, np.ones((4, 4), dtype=stored.dtype)), bits)
    data.compress(syntax, generate_instance_uid=False)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def big_endian(data) -> Dataset:
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    return data


# How values are stored.

ABOVE = (TWELVE_BIT | 0xA000).astype(np.uint16)  # an overlay or rubbish in the four upper bits
TOP = (TWELVE_BIT << 4).astype(np.uint16)
UNSIGNED = (SIGNED & 0x0FFF).astype(np.uint16)
STORED = {
    "12 bits at the top": lambda: dicom(TOP, HighBit=15),
    "signed 12 bits at the top": lambda: dicom((SIGNED << 4).astype(np.int16), HighBit=15),
    "12 bits in the middle of 32": lambda: dicom(TWELVE_BIT.astype(np.uint32) << 8, HighBit=19),
    "8 bits in 16": lambda: dicom(RAMP.astype(np.uint16), 8),
    "32 bits": lambda: dicom(TWELVE_BIT.astype(np.uint32) * 1_000_000, 32),
    "signed 32 bits": lambda: dicom(TWELVE_BIT.astype(np.int32) * 1000 - 2_000_000, 32),
    "signed without its sign bits": lambda: dicom((SIGNED & 0x0FFF).astype(np.int16)),
    "big endian": lambda: big_endian(dicom(TWELVE_BIT)),
    "signed big endian": lambda: big_endian(dicom(SIGNED)),
    "more bytes than pixels": lambda: dicom(TWELVE_BIT, PixelData=TWELVE_BIT.tobytes() + bytes(300)),
    "bytes of two frames, though one is announced": lambda: dicom(TWELVE_BIT, PixelData=TWELVE_BIT.tobytes() * 2),
    "bits above, native": lambda: dicom(ABOVE),
    "bits above, RLE": lambda: compressed(ABOVE, 16, RLELossless, BitsStored=12, HighBit=11),
    "bits above, JPEG-LS": lambda: compressed(ABOVE, 16, JPEGLSLossless, BitsStored=12, HighBit=11),
    "bits above, JPEG 2000": lambda: compressed(ABOVE, 16, JPEG2000Lossless, BitsStored=12, HighBit=11),
    "at the top, RLE": lambda: compressed(TOP, 16, RLELossless, BitsStored=12),
    "at the top, JPEG 2000": lambda: compressed(TOP, 16, JPEG2000Lossless, BitsStored=12),
    "High Bit 15 on a stream of 12 bits": lambda: compressed(TWELVE_BIT, 12, JPEGLSLossless, HighBit=15),
    "signed coded as unsigned, JPEG 2000": lambda: compressed(UNSIGNED, 12, JPEG2000Lossless, PixelRepresentation=1),
    "signed coded as unsigned, JPEG-LS": lambda: compressed(UNSIGNED, 12, JPEGLSLossless, PixelRepresentation=1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_stored_values_are_taken_out_of_their_bits(tmp_path, make):
    pixels, notes = read(tmp_path, make())
    np.testing.assert_allclose(pixels[:: len(pixels) // 16, :: len(pixels) // 16], RAMP, atol=1)
    assert notes == ("bits above High Bit are set; they are not used" if "ABOVE" in make.__code__.co_names else "")


def test_one_bit_and_floating_point_pixels_are_read(tmp_path):
    bits = RAMP > 127
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    black_and_white = dicom(bits.astype(np.uint8), 1, BitsAllocated=1, PixelData=packed)
    assert read(tmp_path, black_and_white)[0].tolist() == (bits * 255).tolist()
    data = dicom(TWELVE_BIT, BitsAllocated=32)
    values = (X / 7 - 3).astype("<f4")
    values[0] = np.nan
    del data.PixelData
    data.add_new("FloatPixelData", "OF", values.tobytes())
    np.testing.assert_allclose(read(tmp_path, data)[0][1:], grey(X[1:]), atol=1)
    assert not read(tmp_path, data)[0][0].any()


@pytest.mark.parametrize(
    "stored, bits, vr, padding, filled",
    [
        (SIGNED, 16, "US", 63536, -2000),  # -2000 as unsigned
        (TWELVE_BIT, 16, "SS", -2000, 63536),  # 63536 as signed
        (TWELVE_BIT, 12, "US", 65535, 65535),  # beyond the stored bits
        (SIGNED, 12, "US", 2048, -2048),  # -2048 in the twelve bits that are stored
        (SIGNED, 12, "SS", -2048, -2048),
    ],
)
def test_padding_is_found_in_whatever_representation_it_is_written(tmp_path, stored, bits, vr, padding, filled):
    stored = np.where(stored == filled, filled + 1, stored).astype(stored.dtype)
    stored[:3] = filled
    data = dicom(stored, bits)
    data.add_new("PixelPaddingValue", vr, padding)
    pixels, _ = read(tmp_path, data)
    assert not pixels[:3].any()
    np.testing.assert_allclose(pixels[3:], grey(stored[3:]), atol=1)


def test_a_padding_value_of_the_brightest_signed_number_takes_no_unsigned_pixel(tmp_path):
    data = dicom(TWELVE_BIT)
    data.add_new("PixelPaddingValue", "SS", -1)  # 65535 in the cell, which no pixel is; 4095 is a bright one
    np.testing.assert_allclose(read(tmp_path, data)[0], RAMP, atol=1)


def test_an_image_of_nothing_but_padding_is_refused(tmp_path):
    data = dicom(np.full_like(TWELVE_BIT, 7))
    data.add_new("PixelPaddingValue", "US", 7)
    with pytest.raises(FilmError, match="every pixel is padding"):
        read(tmp_path, data)


# Curves.


def linear(values, center, width) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1."""
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def exact(values, center, width) -> np.ndarray:
    """PS3.3, C.11.2.1.3.2."""
    return np.clip((values - center) / width + 0.5, 0, 1)


def sigmoid(values, center, width) -> np.ndarray:
    """PS3.3, C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (values - center) / width))


HALVES = np.arange(65536) // 2
NARROW = {"WindowCenter": 1500, "WindowWidth": 800}
CURVES = {
    "negative slope": (lambda: dicom(4095 - TWELVE_BIT, **NEGATIVE), X),
    "negative slope, window": (lambda: dicom(4095 - TWELVE_BIT, **NEGATIVE, **NARROW), linear(X, 1500, 800)),
    "negative slope, exact window": (
        lambda: dicom(4095 - TWELVE_BIT, **NEGATIVE, **NARROW, VOILUTFunction="LINEAR_EXACT"),
        exact(X, 1500, 800),
    ),
    "negative slope, sigmoid": (
        lambda: dicom(4095 - TWELVE_BIT, **NEGATIVE, **NARROW, VOILUTFunction="SIGMOID"),
        sigmoid(X, 1500, 800),
    ),
    "negative slope, MONOCHROME1": (
        lambda: dicom(TWELVE_BIT, 12, "MONOCHROME1", **NEGATIVE, **NARROW),
        1 - linear(4095 - X, 1500, 800),
    ),
    "slope -10, 8 bits": (
        lambda: dicom(255 - RAMP, 8, RescaleSlope=-10, RescaleIntercept=3000, WindowCenter=1725, WindowWidth=2550),
        linear(3000.0 - 10 * (255 - RAMP.astype(float)), 1725, 2550),
    ),
    "slope alone": (lambda: dicom(TWELVE_BIT, RescaleSlope=2, **NARROW), linear(2 * X, 1500, 800)),
    "intercept alone": (lambda: dicom(TWELVE_BIT, RescaleIntercept=-1000, **NARROW), linear(X - 1000, 1500, 800)),
    "window below one": (
        lambda: dicom(TWELVE_BIT, RescaleSlope="0.0001", RescaleIntercept=0, WindowCenter="0.2", WindowWidth="0.1"),
        exact(X / 10_000, 0.2, 0.1),
    ),
    "window of one": (lambda: dicom(TWELVE_BIT, WindowCenter=1500, WindowWidth=1), (X > 1499.5) * 1.0),
    "signed, window": (lambda: dicom(SIGNED, WindowCenter=0, WindowWidth=800), linear(X - 2048, 0, 800)),
    "the first of two windows is empty": (
        lambda: changed(dicom(TWELVE_BIT), WindowCenter=b"\\1500 ", WindowWidth=b"\\800"),
        linear(X, 1500, 800),
    ),
    "VOI LUT before a window": (
        lambda: dicom(TWELVE_BIT, VOILUTSequence=[table(S_CURVE, 12)], **NARROW),
        S_CURVE[TWELVE_BIT],
    ),
    "the first of two VOI LUTs": (
        lambda: dicom(TWELVE_BIT, VOILUTSequence=[table(S_CURVE, 12), table(S_CURVE[::-1], 12)]),
        S_CURVE[TWELVE_BIT],
    ),
    "VOI LUT that begins later and is short": (
        lambda: dicom(TWELVE_BIT, VOILUTSequence=[table(S_CURVE[1000:3000], 16, first=736)]),
        S_CURVE[1000:3000][np.clip(TWELVE_BIT.astype(int) - 736, 0, 1999)],
    ),
    "VOI LUT of 65536 entries": (
        lambda: dicom(TWELVE_BIT * 16, 16, VOILUTSequence=[table(HALVES, 16, 0, HALVES.astype("<u2").tobytes())]),
        X,
    ),
    "VOI LUT, signed": (
        lambda: dicom(SIGNED, VOILUTSequence=[table(S_CURVE, 12, first=-2048)]),
        S_CURVE[TWELVE_BIT],
    ),
    "VOI LUT, signed, its first value written unsigned": (
        lambda: dicom(SIGNED, VOILUTSequence=[table(S_CURVE, 12, first=65536 - 2048)]),
        S_CURVE[TWELVE_BIT],
    ),
    "VOI LUT after a negative intercept": (
        lambda: dicom(TWELVE_BIT, RescaleIntercept=-2048, VOILUTSequence=[table(S_CURVE, 12, first=65536 - 2048)]),
        S_CURVE[TWELVE_BIT],
    ),
    "big endian VOI LUT": (
        lambda: big_endian(dicom(TWELVE_BIT, VOILUTSequence=[table(S_CURVE, 12, 0, S_CURVE.astype(">u2").tobytes())])),
        S_CURVE[TWELVE_BIT],
    ),
    "modality LUT, then a window": (
        lambda: dicom(4095 - TWELVE_BIT, ModalityLUTSequence=[table(np.arange(4096)[::-1], 12)], **NARROW),
        linear(X, 1500, 800),
    ),
    "an incomplete VOI LUT, then a window": (
        lambda: dicom(TWELVE_BIT, VOILUTSequence=[table(S_CURVE, 12, 0, b"\1\2\3\4")], **NARROW),
        linear(X, 1500, 800),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, expected", CURVES.values(), ids=CURVES)
def test_a_curve_is_applied_as_the_standard_defines_it(tmp_path, make, expected):
    np.testing.assert_allclose(read(tmp_path, make())[0], grey(expected), atol=1)


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_the_curves_of_an_enhanced_image_are_in_its_functional_groups(tmp_path, groups):
    item, modality, voi = Dataset(), Dataset(), Dataset()
    for curve, elements in ((modality, NEGATIVE), (voi, {"WindowCenter": 1500, "WindowWidth": 800})):
        for keyword, value in elements.items():
            setattr(curve, keyword, value)
    item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [modality], [voi]
    pixels, _ = read(tmp_path, dicom(TWELVE_BIT, **{groups: [item]}))
    np.testing.assert_allclose(pixels, linear(4095 - X, 1500, 800) * 255, atol=1)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("bits", range(8, 17))
def test_a_lookup_table_of_any_width_is_read(tmp_path, kind, bits):
    entries = S_CURVE * (2**bits - 1) // 4095
    expected = grey(entries[TWELVE_BIT])
    forms = [None, entries.astype("<u2").tobytes()] + [entries.astype(np.uint8).tobytes()] * (bits == 8)
    for packed in forms:
        data = dicom(TWELVE_BIT, **{kind: [table(entries, bits, 0, packed)]})
        np.testing.assert_allclose(read(tmp_path, data)[0], expected, atol=1)


def test_a_packed_table_of_odd_length_has_one_byte_to_spare(tmp_path):
    entries = (RAMP.ravel()[:255] // 2).astype(np.uint8)
    data = dicom(RAMP, 8, VOILUTSequence=[table(entries, 8, 0, entries.tobytes() + b"\xff")])
    np.testing.assert_allclose(read(tmp_path, data)[0], grey(entries[RAMP.clip(0, 254)].astype(float)), atol=1)


@pytest.mark.parametrize(
    "polarity, shape, negative",
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME1", "", True),
        ("monochrome1", "inverse", True),
        ("MONOCHROME2", "LIN OD", False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_presentation_lut_shape_decides_where_it_is_given(tmp_path, polarity, shape, negative):
    """As highdicom, dcm4che and Weasis decide; where it contradicts the photometric interpretation, a note says so."""
    pixels, notes = read(tmp_path, dicom(TWELVE_BIT, 12, polarity, PresentationLUTShape=shape, **FULL))
    np.testing.assert_allclose(pixels, 255 - RAMP.astype(int) if negative else RAMP, atol=1)
    contradicts = shape in ("INVERSE", "IDENTITY") and negative != (polarity == "MONOCHROME1")
    assert ("overrides" in notes) == contradicts


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_shows_its_colors(tmp_path, bits):
    data = dicom(RAMP, 8, "PALETTE COLOR")
    ramp = {"Red": np.arange(256)[::-1], "Green": np.arange(256) // 2, "Blue": np.full(256, 90)}
    for name, entries in ramp.items():
        raw = entries.astype(np.uint8) if bits == 8 else (entries * 257).astype("<u2")
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        data.add_new(f"{name}PaletteColorLookupTableData", "OW", raw.tobytes())
    luma = 0.299 * ramp["Red"] + 0.587 * ramp["Green"] + 0.114 * ramp["Blue"]
    np.testing.assert_allclose(read(tmp_path, data)[0], luma[RAMP], atol=1)


def color(samples, bits, photometric, **elements) -> Dataset:
    return dicom(samples, bits, photometric, SamplesPerPixel=3, PlanarConfiguration=0, **elements)


def test_colors_of_16_bits_and_ybr_become_their_luma(tmp_path):
    deep = np.stack([TWELVE_BIT * 16, TWELVE_BIT[::-1] * 16, TWELVE_BIT.T * 16], axis=-1)
    expected = grey(deep @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_allclose(read(tmp_path, color(deep, 16, "RGB"))[0], expected, atol=1)
    ybr = np.stack([RAMP, RAMP.T, np.full_like(RAMP, 77)], axis=-1)
    np.testing.assert_array_equal(read(tmp_path, color(ybr, 8, "YBR_FULL"))[0], RAMP)
    planes = color(ybr, 8, "YBR_FULL")
    planes.PlanarConfiguration, planes.PixelData = 1, np.moveaxis(ybr, 2, 0).tobytes()
    np.testing.assert_array_equal(read(tmp_path, planes)[0], RAMP)


def test_samples_that_contradict_the_photometric_interpretation_are_refused(tmp_path):
    with pytest.raises(FilmError, match="photometric interpretation MONOCHROME2 with 3 samples"):
        read(tmp_path, color(np.stack([RAMP] * 3, axis=-1), 8, "MONOCHROME2"))
    with pytest.raises(FilmError, match="photometric interpretation RGB with one sample"):
        read(tmp_path, dicom(RAMP, 8, "RGB"))


# Elements that are empty, malformed or of another form.

MALFORMED = {
    "both rescale values empty": ({"RescaleSlope": b"", "RescaleIntercept": b""}, FULL, "Rescale Slope is empty"),
    "intercept empty": ({"RescaleSlope": b"1 ", "RescaleIntercept": b""}, FULL, "Rescale Intercept is empty"),
    "slope of words": ({"RescaleSlope": b"none", "RescaleIntercept": b"0 "}, FULL, "Rescale Slope is"),
    "slope 0": ({"RescaleSlope": b"0 ", "RescaleIntercept": b"0 "}, FULL, "Rescale Slope is 0; it counts as absent"),
    "slope beyond any": ({"RescaleSlope": b"1e999 "}, FULL, "Rescale Slope is"),
    "function empty": ({"VOILUTFunction": b""}, FULL, "VOI LUT Function is empty"),
    "function unknown": ({"VOILUTFunction": b"CUBIC "}, FULL, "VOI LUT Function is CUBIC; it counts as absent"),
    "function in small letters": ({"VOILUTFunction": b"linear "}, FULL, ""),
    "window empty": ({"WindowCenter": b"", "WindowWidth": b""}, {}, "Window Center is empty"),
    "window with commas": (
        {"WindowCenter": b"2047,5", "WindowWidth": b"4095,0"}, {}, r"Window Center 2047,5 is read as 2047.5",
    ),
    "commas that may mark thousands": ({"WindowCenter": b"2,048 ", "WindowWidth": b"4,096 "}, {}, "Window Center is"),
    "window of no width": ({"WindowCenter": b"0 ", "WindowWidth": b"0 "}, {}, r"\(0\) and Width \(0\) make no window"),
    "window of negative width": ({"WindowCenter": b"9 ", "WindowWidth": b"-5"}, {}, "make no window"),
    "window without width": ({"WindowCenter": b"9 "}, {}, r"Width \(absent\) make no window"),
    "window that is no number": ({"WindowCenter": b"nan ", "WindowWidth": b"inf "}, {}, "Window Center is"),
    "spacing with commas": ({"PixelSpacing": b"0,143\\0,143 "}, FULL, ""),
    "padding empty": ({"PixelPaddingValue": b""}, FULL, "Pixel Padding Value is empty"),
    "frames empty": ({"NumberOfFrames": b""}, FULL, "Number of Frames is absent; 1 is assumed"),
    "frames 0": ({"NumberOfFrames": b"0 "}, FULL, "Number of Frames is 0; 1 is assumed"),
    "frames of words": ({"NumberOfFrames": b"many"}, FULL, "Number of Frames is many; 1 is assumed"),
    "samples empty": ({"SamplesPerPixel": b""}, FULL, "Samples per Pixel is absent; 1 is assumed"),
    "stored bits empty": ({"BitsStored": b""}, FULL, "Bits Stored is absent; 12 is assumed"),
    "more stored bits than allocated": ({"BitsStored": b"\x14\0"}, FULL, "Bits Stored is 20; 12 is assumed"),
    "high bit below the stored bits": ({"HighBit": b"\x03\0"}, FULL, "High Bit is 3; 11 is assumed"),
    "representation empty": ({"PixelRepresentation": b""}, FULL, "Pixel Representation is absent; 0 is assumed"),
    "representation 2": ({"PixelRepresentation": b"\2\0"}, FULL, "Pixel Representation is 2; 0 is assumed"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("raw, elements, note", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_element_counts_as_absent_with_a_note(tmp_path, raw, elements, note):
    pixels, notes = read(tmp_path, changed(dicom(TWELVE_BIT, **elements), **raw))
    np.testing.assert_allclose(pixels, RAMP, atol=1)
    assert re.search(note, notes) if note else notes == ""


@pytest.mark.parametrize(
    "raw, reason",
    [
        ({"Rows": b""}, "Rows is absent; it must be from 1 to 65535"),
        ({"Columns": b"\0\0"}, "Columns is 0; it must be from 1 to 65535"),
        ({"BitsAllocated": b"\x50\0"}, "Bits Allocated is 80; it must be from 1 to 64"),
        ({"PhotometricInterpretation": b""}, "Photometric Interpretation is absent, so dark and bright are unknown"),
        ({"PhotometricInterpretation": b"GREY"}, "photometric interpretation GREY"),
    ],
)
def test_an_element_that_nothing_can_stand_in_for_is_named(tmp_path, raw, reason):
    with pytest.raises(FilmError, match=reason):
        read(tmp_path, changed(dicom(TWELVE_BIT), **raw))


@pytest.mark.parametrize("keyword, sides", [("PixelAspectRatio", [1, 2]), ("ImagerPixelSpacing", [0.2, 0.1])])
def test_pixels_that_are_not_square_are_refused(tmp_path, keyword, sides):
    with pytest.raises(FilmError, match="its pixels are not square"):
        read(tmp_path, dicom(TWELVE_BIT, **{keyword: sides}))


@pytest.mark.parametrize("keyword, sides", [("PixelAspectRatio", [1, 1]), ("PixelSpacing", [0, 0.14])])
def test_pixels_that_are_square_or_of_no_known_shape_are_read(tmp_path, keyword, sides):
    np.testing.assert_allclose(read(tmp_path, dicom(TWELVE_BIT, **{keyword: sides}))[0], RAMP, atol=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keyword", ["BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"])
def test_an_element_of_the_wrong_length_counts_as_absent(tmp_path, keyword):
    whole, tag = written(dicom(TWELVE_BIT, **FULL)), tag_for_keyword(keyword)
    at = whole.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"US") + 6
    pixels, notes = read(tmp_path, whole[:at] + b"\3\0" + whole[at + 2 : at + 4] + b"\0" + whole[at + 4 :])
    np.testing.assert_allclose(pixels, RAMP, atol=1)
    assert "is absent" in notes


# Containers.


def without(data, syntax) -> bytes:
    """A data set as old tools write it: no preamble and no file meta information."""
    del data.file_meta
    stream = io.BytesIO()
    data.save_as(stream, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return stream.getvalue()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_and_file_meta_information_is_read(tmp_path, syntax):
    stored = TWELVE_BIT if syntax.is_little_endian else TWELVE_BIT.astype(">u2")
    np.testing.assert_allclose(read(tmp_path, without(dicom(stored, PixelRepresentation=0), syntax))[0], RAMP, atol=1)


def test_a_file_without_preamble_or_without_transfer_syntax_is_read(tmp_path):
    whole = written(dicom(TWELVE_BIT))
    np.testing.assert_allclose(read(tmp_path, whole[132:])[0], RAMP, atol=1)
    at = whole.index(b"\2\0\x10\0UI")
    length = 8 + int.from_bytes(whole[at + 6 : at + 8], "little")
    rest = int.from_bytes(whole[140:144], "little") - length
    nameless = whole[:140] + rest.to_bytes(4, "little") + whole[144:at] + whole[at + length :]
    assert "TransferSyntaxUID" not in dcmread(io.BytesIO(nameless)).file_meta
    np.testing.assert_allclose(read(tmp_path, nameless)[0], RAMP, atol=1)


def test_a_compressed_file_without_transfer_syntax_is_refused(tmp_path):
    whole = written(compressed(TWELVE_BIT, 12, JPEG2000Lossless))
    at = whole.index(b"\x08\0\x16\0UI")  # the first element after the file meta information
    with pytest.raises(FilmError, match="compressed DICOM without a Transfer Syntax UID; add it"):
        read(tmp_path, whole[at:])


def test_compressed_pixels_under_a_native_transfer_syntax_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)  # its stream is longer than its pixels
    data = compressed(noise, 8, JPEG2000Lossless)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pytest.raises(FilmError, match="compressed DICOM whose Transfer Syntax UID says Explicit VR Little Endian"):
        read(tmp_path, data)


def holding(stored, syntax, *fragments: bytes) -> Dataset:
    data = dicom(stored, 8)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(list(fragments)) if len(fragments) == 1 else bytes.fromhex("feff00e000000000")
    if len(fragments) > 1:
        data.PixelData += b"".join(map(itemize_fragment, fragments))
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return data


def encoded(image, kind, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue() + b"\0" * (len(stream.getvalue()) % 2)


STEPS = np.repeat(np.repeat(np.array([[0, 200], [90, 255]], dtype=np.uint8), 32, axis=0), 32, axis=1)


@pytest.mark.filterwarnings("ignore")
def test_a_jpeg_2000_stream_with_a_file_header_is_read(tmp_path):
    stream = encoded(RAMP, "JPEG2000", irreversible=False)
    assert stream[4:8] == b"jP  "
    np.testing.assert_array_equal(read(tmp_path, holding(RAMP, JPEG2000Lossless, stream))[0], RAMP)


def test_a_jpeg_stream_with_fill_bytes_or_in_several_fragments_is_read(tmp_path):
    stream = encoded(STEPS, "JPEG", quality=95)
    filled = stream[:2] + b"\xff" * 4 + stream[2:]
    for fragments in ([filled], [stream[:100], stream[100:300], stream[300:]]):
        pixels, _ = read(tmp_path, holding(STEPS, JPEGBaseline8Bit, *fragments))
        np.testing.assert_allclose(pixels, STEPS, atol=3)


def test_what_a_decoder_cannot_make_out_is_refused_in_plain_words(tmp_path):
    stream = encoded(STEPS, "JPEG")
    damaged = stream[:200] + b"\xff\xd9" * ((len(stream) - 200) // 2)
    with pytest.raises(FilmError) as refused:
        read(tmp_path, holding(STEPS, JPEGBaseline8Bit, damaged))
    assert str(refused.value) in (
        "truncated DICOM",
        "broken DICOM: its pixels (JPEG Baseline (Process 1)) cannot be decoded",
    )


def test_a_note_stays_with_the_image_of_a_film_also_when_the_image_is_kept(tmp_path):
    drawn = hospitals.draw(hospitals.film_table(1, 1, "A")["recipe"][0]).image
    data = changed(dicom(drawn.astype(np.uint16) * 16), RescaleSlope=b"")
    (tmp_path / "film.dcm").write_bytes(written(data))
    films_of = {"own": SimpleNamespace(folder=tmp_path, size=64)}
    study = SimpleNamespace(folder=tmp_path / "study", sources=films_of)
    row = {"film": "f", "source": "own", "path": "f.png", "original": "film.dcm", "recipe": ""}
    for _ in range(2):
        (film,) = convert.images(pd.DataFrame([row]), study).to_dict("records")
        assert film["fault"] == "" and film["notes"] == "Rescale Slope is empty or not a number; it counts as absent"
