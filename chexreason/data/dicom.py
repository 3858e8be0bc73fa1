"""The gray values of a DICOM image as its header defines them (DICOM PS3.3: C.7.6.3 and C.11).

The decoders are pydicom's. Then, in this order: stored bits, modality transformation (C.11.1), VOI transformation
(C.11.2), polarity. Each step acts on single values. It is computed once for every possible value of a pixel, in 64-bit
floats, and the pixels are looked up. An empty or malformed element counts as absent, with a note.
"""

import math
import re
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from chexreason.data.images import FilmError, cut_off, luma, refuse_large, refuse_unfinished, stretch

JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # ISO/IEC 15444-1: a codestream, and one in a JP2 file
ITEM = b"\xfe\xff\x00\xe0"  # PS3.5, A.4: what compressed pixels begin with
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # ISO/IEC 10918-1, table B.1; 0xF7 is that of JPEG-LS
ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")  # "2,048" may be 2048 or 2.048


def read(path: Path, notes: list[str]) -> np.ndarray:
    """The image of a DICOM file as uint8 (height, width), with dark air; problems in its header are added to `notes`.

    Gray and palette images, and color with more than 8 bits, are scaled to their own range; color becomes luma. Padding
    is black. Raises FilmError if the file is not an image, has several frames, or is too large.
    """
    from pydicom.uid import JPEGTransferSyntaxes, RLELossless

    data = _dataset(path)
    _take_out_of_groups(data)
    photometric = _complete(data, notes)
    syntax, precision = data.file_meta.TransferSyntaxUID, math.inf
    if syntax == RLELossless:
        _refuse_unpacking(data)
    elif syntax.is_encapsulated:
        precision = _stream_precision(data)
    pixels, photometric = _decoded(data, photometric)
    if syntax in JPEGTransferSyntaxes:
        refuse_unfinished(_stream(data), pixels)
    if pixels.dtype.kind != "f":
        pixels = pixels.view(pixels.dtype.str.replace("i", "u"))
    if pixels.ndim == 3:
        return _color(_stored(pixels, data, precision), photometric, data.BitsStored)
    if photometric not in ONE_SAMPLE:
        raise FilmError(f"photometric interpretation {photometric} with one sample per pixel")
    if pixels.dtype.kind == "f" or pixels.itemsize > 2:
        cells, pixels = np.unique(pixels, return_inverse=True)
    else:
        cells = np.arange(2 ** (8 * pixels.itemsize))
    return _look_up(cells, pixels, data, notes, precision)


def _dataset(path: Path):
    """The data set of a file; preamble, file meta information and transfer syntax may be missing."""
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    from pydicom.pixels import get_decoder
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
    from pydicom.uid import ImplicitVRLittleEndian as Implicit

    with path.open("rb") as file:
        file.seek(132 if file.read(132)[128:] == b"DICM" else 0)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise FilmError("deflated DICOM, whose size is not known before it is unpacked; save it in another syntax")
    data = dcmread(path, force=True)
    if len(data) == 0:  # what pydicom returns where a file ends within an element
        raise FilmError("truncated DICOM")
    keyword = next((each for each in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if each in data), None)
    if "Rows" not in data or not keyword:
        raise FilmError("DICOM without an image")
    if not data.file_meta.get("TransferSyntaxUID"):
        if data[keyword].is_undefined_length:
            raise FilmError("compressed DICOM without a Transfer Syntax UID; add it to the file meta information")
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = Implicit if implicit else explicit
    syntax = data.file_meta.TransferSyntaxUID
    if bytes(data[keyword].value[:4]) == ITEM and not syntax.is_encapsulated:
        raise FilmError(f"compressed DICOM whose Transfer Syntax UID says {syntax.name}; correct it")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise FilmError(f"no decoder is installed for {syntax.name}")
    return data


def _take_out_of_groups(data) -> None:
    """Give the data set the curves that an enhanced image has in functional groups (C.7.6.16.2.9, C.7.6.16.2.10)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in _values(data, groups)[:1]:
            for curve in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for elements in _values(item, curve)[:1]:
                    data.update(elements)


def _refuse_oblong(data) -> None:
    """Raise FilmError where pixels are not square (C.7.6.3.1.7): what is shown would be drawn out of shape."""
    for keyword in ("PixelAspectRatio", "ImagerPixelSpacing", "PixelSpacing"):
        sides = _numbers(data, keyword, [])[:2]
        if len(sides) == 2 and min(sides) > 0 and max(sides) > 1.05 * min(sides):
            raise FilmError(
                f"its pixels are not square ({_name(keyword)} {_quoted(sides)}); resample it to square ones"
            )


def _complete(data, notes: list[str]) -> str:
    """Complete the elements about the storage of pixels (C.7.6.3.1); returns the photometric interpretation."""
    from pydicom.datadict import dictionary_VR

    def whole(keyword: str, usable: range, default: int | None = None) -> int:
        values = _numbers(data, keyword, [])
        value = int(values[0]) if values and values[0].is_integer() and int(values[0]) in usable else default
        given = _quoted(_values(data, keyword))
        if value is None:
            raise FilmError(f"{_name(keyword)} is {given}; it must be from {usable[0]} to {usable[-1]}")
        if [value] != values and not (keyword == "NumberOfFrames" and keyword not in data):
            notes.append(f"{_name(keyword)} is {given}; {value} is assumed")
        data.add_new(keyword, dictionary_VR(keyword), value)
        return value

    rows, columns = whole("Rows", range(1, 2**16)), whole("Columns", range(1, 2**16))
    refuse_large(columns, rows, whole("NumberOfFrames", range(1, 2**31), 1))
    _refuse_oblong(data)
    allocated = whole("BitsAllocated", range(1, 65))
    if whole("SamplesPerPixel", range(1, 4), 1) > 1:
        whole("PlanarConfiguration", range(2), 0)
    if "PixelData" in data:
        (high,) = _numbers(data, "HighBit", [])[:1] or [allocated - 1]
        stored = whole("BitsStored", range(1, allocated + 1), int(high) + 1 if 0 <= high < allocated else allocated)
        whole("HighBit", range(stored - 1, allocated), stored - 1)
        whole("PixelRepresentation", range(2), 0)
    photometric = _word(data, "PhotometricInterpretation", (), notes)
    if not photometric:
        raise FilmError("Photometric Interpretation is absent, so dark and bright are unknown; add it to the header")
    if photometric not in (*ONE_SAMPLE, "RGB") and not photometric.startswith("YBR_"):
        raise FilmError(f"photometric interpretation {photometric}")
    data.add_new("PhotometricInterpretation", "CS", photometric)
    return photometric


AS_STORED: dict = {"correct_unused_bits": False}
"""How pydicom is to decode: unused bits are dealt with here."""


def _decoded(data, photometric: str) -> tuple[np.ndarray, str]:
    """The pixels as they lie in the file, and their photometric interpretation, which a decoder may change."""
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    try:
        pixels, about = get_decoder(syntax).as_array(data, index=0, raw=True, **AS_STORED)
    except Exception as error:  # damaged files make the decoders raise almost anything
        text = "truncated DICOM" if cut_off(error) else f"broken DICOM: its pixels ({syntax.name}) cannot be decoded"
        raise FilmError(text) from error
    return pixels, str(about["photometric_interpretation"])


def _color(samples: np.ndarray, photometric: str, bits: int) -> np.ndarray:
    """The luma of stored RGB or YBR samples (height, width, 3); of more than 8 bits, it is stretched."""
    if photometric in ONE_SAMPLE:
        raise FilmError(f"photometric interpretation {photometric} with {samples.shape[2]} samples per pixel")
    gray = luma(samples) if photometric == "RGB" else samples[..., 0]  # the first sample of every YBR is luma
    gray = gray.astype(np.int64)
    if bits > 8:
        counts = np.bincount(gray.ravel())
        gray = stretch(np.arange(len(counts)), counts)[gray]
    return gray.astype(np.uint8)


def _look_up(cells: np.ndarray, pixels: np.ndarray, data, notes: list[str], precision: float) -> np.ndarray:
    """The image whose `pixels` are positions in `cells`, the values in the file."""
    counts = np.bincount(pixels.ravel(), minlength=len(cells))
    stored = cells if cells.dtype.kind == "f" else _stored(cells, data, precision)
    if (
        stored is not cells
        and (counts > 0)[(cells >> data.HighBit + 1 > 0) & ((cells - stored) % 2**data.BitsAllocated > 0)].any()
    ):
        notes.append("bits above High Bit are set; they are not used")
    shown = (counts > 0) & np.isfinite(stored) & ~_padding(cells, stored, data, notes)
    if not shown.any():
        raise FilmError("every pixel is padding")
    values = np.where(shown, stored, 0).astype(np.float64)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        gray = _palette(values, shown, data, notes)
    else:
        values = _voi(_modality(values, shown, data, notes), shown, data, notes)
        gray = stretch(-values if _negative(data, notes) else values, counts * shown)
    return np.where(shown, gray, 0).round().astype(np.uint8)[pixels]


def _stored(cells: np.ndarray, data, precision: float) -> np.ndarray:
    """The stored values in cells of Bits Allocated: Bits Stored of these bits, up to High Bit (PS3.5, 8.1.1).

    A compressed stream of no more than Bits Stored has them at the bottom, whatever High Bit says.
    """
    bits, high = data.BitsStored, data.HighBit
    shift = high + 1 - bits if precision > bits else 0
    stored = (cells.astype(np.int64) >> shift) & (2**bits - 1)
    return stored - ((stored >> (bits - 1)) << bits) if data.PixelRepresentation else stored


def _padding(cells: np.ndarray, stored: np.ndarray, data, notes: list[str]) -> np.ndarray:
    """Which values are no image, only fill it up to a rectangle (C.7.5.1.1.2).

    Pixel Padding Value may be written signed or unsigned, in as many bits as are stored or allocated.
    """
    floats = {4: "Float", 8: "DoubleFloat"} if stored.dtype.kind == "f" else {}
    prefix = floats.get(stored.itemsize, "")
    first = _numbers(data, f"{prefix}PixelPaddingValue", notes)
    last = _numbers(data, f"{prefix}PixelPaddingRangeLimit", notes) or first
    if not first:
        return np.zeros(cells.shape, dtype=bool)
    if floats:
        least, most = sorted([first[0], last[0]])
        return (stored >= least) & (stored <= most)
    signed, bits, allocated = data.PixelRepresentation, data.BitsStored, data.BitsAllocated
    lowest = -(2 ** (bits - 1)) if signed else 0

    def represented(value: float) -> float | None:
        others = [value, _wrapped(value, allocated, signed), *([_wrapped(value, bits, True)] if signed else [])]
        return next((each for each in others if lowest <= each < lowest + 2**bits), None)

    low, high = represented(first[0]), represented(last[0])
    if low is None or high is None:  # it lies beyond Bits Stored, so it fills the whole cell
        stored, low, high = cells, *(_wrapped(value, allocated, False) for value in (first[0], last[0]))
    low, high = sorted([low, high])
    return (stored >= low) & (stored <= high)


def _wrapped(value: float, bits: int, signed: bool) -> float:
    """A number as the same bits give it when they are read as a signed or an unsigned one."""
    low = -(2 ** (bits - 1)) if signed else 0
    return (value - low) % 2**bits + low


def _modality(stored: np.ndarray, shown: np.ndarray, data, notes: list[str]) -> np.ndarray:
    """Stored values (float64) through the Modality LUT or the rescale slope and intercept (C.11.1)."""
    if table := _table(data, "ModalityLUTSequence", stored[shown], notes):
        return _mapped(stored, *table)
    slope, intercept = ((_numbers(data, f"Rescale{each}", notes) or [math.nan])[0] for each in ("Slope", "Intercept"))
    if slope == 0:
        notes.append("Rescale Slope is 0; it counts as absent")
    return stored * (slope if math.isfinite(slope) and slope else 1) + (intercept if math.isfinite(intercept) else 0)


def _voi(values: np.ndarray, shown: np.ndarray, data, notes: list[str]) -> np.ndarray:
    """Values through the first usable VOI LUT, or else through the first usable window to 0 to 1 (C.11.2)."""
    if table := _table(data, "VOILUTSequence", values[shown], notes):
        return _mapped(values, *table)
    centers, widths = (_numbers(data, f"Window{each}", notes) for each in ("Center", "Width"))
    windows = [each for each in zip(centers, widths, strict=False) if math.isfinite(each[0]) and 0 < each[1] < math.inf]
    if not windows:
        if centers or widths:
            notes.append(
                f"Window Center ({_quoted(centers)}) and Width ({_quoted(widths)}) make no window; they count as absent"
            )
        return values
    (center, width), *_ = windows
    function = _word(data, "VOILUTFunction", ("LINEAR", "LINEAR_EXACT", "SIGMOID"), notes)
    if function == "SIGMOID":
        from scipy.special import expit

        return expit(4 * (values - center) / width)
    if function == "LINEAR_EXACT" or width < 1:  # LINEAR counts in whole steps, and has no width below one
        return ((values - center) / width + 0.5).clip(0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _negative(data, notes: list[str]) -> bool:
    """Whether low values are bright: by the Presentation LUT Shape where there is one (C.11.6), as other viewers do."""
    negative = str(data.PhotometricInterpretation) == "MONOCHROME1"
    if shape := _word(data, "PresentationLUTShape", ("IDENTITY", "INVERSE"), notes):
        if negative != (shape == "INVERSE"):
            notes.append(f"Presentation LUT Shape {shape} overrides {data.PhotometricInterpretation}")
        return shape == "INVERSE"
    return negative


def _table(data, keyword: str, values: np.ndarray, notes: list[str]) -> tuple[np.ndarray, int] | None:
    """The first usable lookup table of a sequence, as `_entries` has it; None where there is none."""
    items = _values(data, keyword)
    for item in items:
        little = data.file_meta.TransferSyntaxUID.is_little_endian
        if table := _entries(item, "LUTDescriptor", "LUTData", values, little):
            return table
    if items:
        notes.append(f"{_name(keyword)} holds no complete table; it counts as absent")
    return None


def _palette(stored: np.ndarray, shown: np.ndarray, data, notes: list[str]) -> np.ndarray:
    """The luma (uint8) of stored values through the palette (C.7.9)."""
    little = data.file_meta.TransferSyntaxUID.is_little_endian
    names = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
    found = [_entries(data, f"{name}Descriptor", f"{name}Data", stored[shown], little) for name in names]
    tables = [table for table in found if table is not None]
    if len(tables) < len(names):
        raise FilmError("photometric interpretation PALETTE COLOR")  # without a palette, or with a segmented one
    colors = luma(np.stack([_mapped(stored, *table) for table in tables], axis=-1))
    return colors / 257 if max(entries.max() for entries, _ in tables) > 255 else colors


def _entries(
    item, descriptor: str, data: str, values: np.ndarray, little_endian: bool
) -> tuple[np.ndarray, int] | None:
    """The entries of a lookup table (float64) and the value that the first is for; None where it is not complete.

    Entries are 16-bit words, or packed: two of 8 bits in a word, the first in the low byte (C.11.1.1.1).
    The first value may be written unsigned though `values`, which are looked up, are signed.
    """
    described, words = _numbers(item, descriptor, []), _values(item, data)
    if len(described) != 3 or not all(map(math.isfinite, described)):
        return None
    count, first, bits = int(described[0]) % 2**16 or 2**16, int(described[1]), described[2]
    if words and isinstance(words[0], bytes):
        words = [*np.frombuffer(words[0] + b"\0" * (len(words[0]) % 2), "<u2" if little_endian else ">u2")]
    entries = np.asarray(words, dtype=np.int64) % 2**16
    if len(entries) < count and bits <= 8:
        entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < count:
        return None
    if first >= 2**15 and (values.min() < 0 or first > values.max()):
        first -= 2**16
    return entries[:count].astype(np.float64), first


def _mapped(values: np.ndarray, entries: np.ndarray, first: int) -> np.ndarray:
    """Values through a lookup table; those before its first and after its last entry get that entry (C.11.1.1)."""
    return entries[(np.rint(values) - first).clip(0, len(entries) - 1).astype(np.intp)]


def _values(data, keyword: str) -> list:
    """The values of an element; none where it is absent, empty or malformed."""
    from pydicom.multival import MultiValue
    from pydicom.sequence import Sequence

    try:
        value = data[keyword].value
    except Exception:  # absent, or pydicom cannot make it out
        return []
    if isinstance(value, MultiValue | Sequence | list):
        return list(value)
    return [] if value is None or value == "" else [value]


def _numbers(data, keyword: str, notes: list[str]) -> list[float]:
    """The numbers of an element, NaN for each that is none; an empty list where no value is a number."""
    numbers = [_number(each) for each in _values(data, keyword)]
    if any("," in str(each) for each in _values(data, keyword)) and any(math.isfinite(each) for each in numbers):
        notes.append(f"{_name(keyword)} {_quoted(_values(data, keyword))} is read as {_quoted(numbers)}")
    if keyword in data and not any(math.isfinite(each) for each in numbers):
        notes.append(f"{_name(keyword)} is empty or not a number; it counts as absent")
        return []
    return numbers


def _number(value) -> float:
    """A number, with a decimal point or comma; NaN where it is none, or where the comma may mark thousands."""
    text = str(value).strip(" \0")
    try:
        number = math.nan if THOUSANDS.fullmatch(text) else float(text.replace(",", "."))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _word(data, keyword: str, known: tuple[str, ...], notes: list[str]) -> str:
    """The first value of an element in capitals; "" where it is absent, or is not `known`."""
    word = str((_values(data, keyword) or [""])[0]).strip(" \0").upper()
    if keyword in data and (not word or (known and word not in known)):
        notes.append(f"{_name(keyword)} is {word or 'empty'}; it counts as absent")
        return ""
    return word


def _name(keyword: str) -> str:
    from pydicom.datadict import dictionary_description

    return dictionary_description(keyword)


def _quoted(values: list) -> str:
    return "\\".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)[:60] or "absent"


def _stream(data) -> bytes:
    """The stream of a compressed image, put together from its fragments."""
    from pydicom.encaps import generate_frames

    return next(generate_frames(data.PixelData, number_of_frames=1))


def _stream_precision(data) -> int:
    """Bits per sample of a compressed stream; FilmError where its size, which decoders trust, is not the header's."""
    stream = _stream_header(_stream(data))
    if stream is None:
        raise FilmError("broken DICOM: its image does not begin as a JPEG, JPEG-LS or JPEG 2000 stream does")
    columns, rows, precision = stream
    if (columns, rows) != (data.Columns, data.Rows):
        raise FilmError(f"its header says {data.Columns} x {data.Rows} pixels, its image {columns} x {rows}")
    return precision


def _stream_header(stream: bytes) -> tuple[int, int, int] | None:
    """Width, height and bits per sample by the header of a JPEG, JPEG-LS or JPEG 2000 stream; None for others."""
    from openjpeg.utils import get_parameters

    if stream.startswith(JPEG_2000):
        about = get_parameters(stream)
        return int(about["columns"]), int(about["rows"]), int(about["precision"])
    at = 2
    while stream.startswith(b"\xff\xd8") and (at := stream.find(b"\xff", at)) >= 0 and at + 9 <= len(stream):
        if stream[at + 1] in FRAME_HEADERS:
            height, width = stream[at + 5 : at + 7], stream[at + 7 : at + 9]
            return int.from_bytes(width), int.from_bytes(height), stream[at + 4]
        fill = stream[at + 1] in (0x00, 0xFF)  # any number of 0xFF may precede a marker
        at += 1 if fill else 2 + int.from_bytes(stream[at + 2 : at + 4])
    return None


def _refuse_unpacking(data) -> None:
    """Raise FilmError where a run-length coded image unpacks to more than twice what the DICOM header says.

    It has no size of its own, its decoder unpacks to the end, and some writers pad (PS3.5, annex G).
    """
    limit = 2 * data.Rows * data.Columns
    frame = _stream(data)
    segments, *starts = struct.unpack("<16L", frame[:64].ljust(64, b"\0"))
    for start, end in pairwise([*starts[:segments], len(frame)]):
        if _unpacked(frame[start:end], limit) > limit:
            raise FilmError(f"its header says {data.Columns} x {data.Rows} pixels, its image is more than twice that")


def _unpacked(segment: bytes, limit: int) -> int:
    """The bytes that a run-length coded segment unpacks to, counted until they exceed `limit` (PS3.5, G.3.1)."""
    at = size = 0
    while at < len(segment) and size <= limit:
        control = segment[at]
        if control < 128:  # so many bytes and one more, as they stand
            size, at = size + control + 1, at + control + 2
        elif control > 128:  # the next byte, repeated
            size, at = size + 257 - control, at + 2
        else:
            at += 1
    return size
