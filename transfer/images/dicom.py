"""Read DICOM files through pydicom, which the extra `formats` installs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # a few bytes may unpack to gigabytes


class DicomImage(NamedTuple):
    """One frame of a DICOM file."""

    # uint8 if the file says how to show its values, else wider: shape (height, width) or (height, width, 3).
    pixels: np.ndarray
    # Whether low values are bright.
    inverted: bool
    frames: int
    # PatientID; empty if there is none.
    patient: str


def read_dicom(content: bytes, check_size: Callable[[int, int], None]) -> DicomImage:
    """Read the middle frame, with the window of the file; `check_size` may refuse its width and height."""
    import pydicom

    if _DEFLATED in content[:4096]:
        raise ValueError("deflated DICOM files are not supported")
    data = pydicom.dcmread(io.BytesIO(content))
    if "Rows" not in data or "Columns" not in data or "PixelData" not in data:
        raise ValueError("a DICOM file without an image")
    check_size(int(data.Columns), int(data.Rows))
    frames = int(data.get("NumberOfFrames", 1) or 1)
    values = _frame(data, frames // 2)
    _adopt_frame_settings(data, frames // 2)
    photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    patient = str(data.get("PatientID", "") or "").strip()
    if photometric == "PALETTE COLOR":
        colors = pydicom.pixels.apply_color_lut(values, data)
        return DicomImage(
            (colors >> 8 if colors.dtype == np.uint16 else colors).astype("uint8"), False, frames, patient
        )
    if values.ndim == 2:
        values = _windowed(data, values)
    return DicomImage(values, photometric == "MONOCHROME1", frames, patient)


def _frame(data: Dataset, number: int) -> np.ndarray:
    """Decode one frame; color becomes RGB."""
    from pydicom.pixels import pixel_array

    try:
        return np.asarray(pixel_array(data, index=number))
    except RuntimeError as error:  # pydicom also raises its subclass NotImplementedError
        kind = data.file_meta.TransferSyntaxUID.name
        raise ValueError(
            f"its {kind} pixels cannot be decoded: the file is damaged, or pydicom needs another decoder (pip install "
            "python-gdcm)"
        ) from error


def _adopt_frame_settings(data: Dataset, number: int) -> None:
    """Copy the window and the rescaling of a frame to where files of a single frame have them."""
    shared = data.get("SharedFunctionalGroupsSequence") or []
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*frames[number : number + 1], *shared[:1]]:
        for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            for settings in (group.get(name) or [])[:1]:
                for element in settings:
                    if element.tag not in data:
                        data.add(element)


def _windowed(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return gray values: 0 to 255 if the file has a window, else in the units of the file."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, data)
    if table := (data.get("VOILUTSequence") or [None])[0]:
        shown, low, high = apply_voi_lut(values, data), 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1
    elif _has_window(data):
        shown = apply_voi_lut(values, data)
        with np.errstate(over="ignore"):
            low, high = apply_voi_lut(np.array([-1e30, 1e30]), data).tolist()
    elif stored.dtype == np.uint8 and values is stored:
        return stored
    else:
        return _without_padding(data, stored, values)
    scaled = (shown.astype("float32") - low) * (255.0 / max(high - low, 1e-30))
    return np.rint(np.clip(scaled, 0, 255)).astype("uint8")


def _has_window(data: Dataset) -> bool:
    """Return whether the file has a window, wide enough to be valid; it may have several."""
    first = [np.ravel(data.get(name))[:1].tolist() for name in ("WindowCenter", "WindowWidth")]
    return all(values and values[0] not in (None, "") for values in first) and float(first[1][0]) >= 1


def _without_padding(data: Dataset, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replace the value that marks pixels outside the scan by the lowest other value."""
    padding = stored == data.get("PixelPaddingValue")
    if np.ndim(padding) and padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    return (
        values
        if np.issubdtype(values.dtype, np.floating) is False or (values % 1).any()
        else values.astype("int32")
    )
