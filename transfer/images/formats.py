"""Image formats: how files are recognized, and what each format needs."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib.util import find_spec

from PIL import features

from transfer.common.errors import install_hint

_NAMES = (
    "jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff avif jp2 j2k j2c jpc jpf jpx ppm pgm pbm pnm pfm"
)
EXTENSIONS = frozenset(f".{name}" for name in f"{_NAMES} heic heif hif dcm dicom".split())
"""File extensions of images, in lower case."""

READABLE = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, JPEG 2000, PPM, HEIC or DICOM"
"""The formats for messages."""

HEAD_BYTES = 132
"""Number of bytes at the beginning of a file that tell its format; the mark of DICOM comes last."""

_SIGNATURES = {
    "DICOM": rb".{128}DICM",
    "JPEG-LS": rb"\xff\xd8\xff\xf7",
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0{4}",  # text may begin with BM, but not have these zeros
    "WEBP": rb"RIFF.{4}WEBP",
    "camera raw": rb"II\*\0.{4}CR|IIR[OS]|IIU\0|MMOR|FUJIFILMCCD-RAW|.{4}ftypcrx",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb".{4}ftyp.{0,32}avi[fs]",
    "HEIC": rb".{4}ftyp(?:hei|hev|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "PPM": rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s|Pf\s+\d+\s",
    "Photoshop": rb"8BPS",
    "PDF": rb"%PDF-",
}
_PATTERNS = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in _SIGNATURES.items()}
_TEXTS = {
    "a web page": (b"<!doctype html", b"<html"),
    "SVG": (b"<svg",),
    "a pointer of Git LFS (run `git lfs pull`)": (b"version https://git-lfs",),
}
_UNREADABLE = {"JPEG-LS", "camera raw", "JPEG XL", "Photoshop", "PDF", *_TEXTS}


def kind_of(head: bytes) -> str:
    """Return the format of a file from its first bytes; empty if unknown."""
    found = next((kind for kind, pattern in _PATTERNS.items() if pattern.match(head)), "")
    lower = head.lower()
    return found or next((kind for kind, marks in _TEXTS.items() if any(m in lower for m in marks)), "")


def is_image(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` bytes of a file are those of an image format that can be read."""
    kind = kind_of(head)
    return bool(kind) and kind not in _UNREADABLE


def problem_of(kind: str) -> str:
    """Return why images of a format cannot be read here, or an empty string."""
    if kind == "PDF" or kind.startswith("a "):
        return f"not an image but {kind}"
    if kind in _UNREADABLE:
        return f"{kind} is not supported: save it as JPEG or PNG"
    package = {"HEIC": "pillow-heif", "DICOM": "pydicom"}.get(kind)
    if package and find_spec(package.replace("-", "_")) is None:
        return f"{kind} needs the package {package}: {install_hint('formats')}"
    if kind == "AVIF" and "AVIF" not in pillow_formats():
        return 'AVIF needs Pillow 11.3 or newer: pip install --upgrade "pillow>=11.3"'
    if kind == "JPEG 2000" and "JPEG2000" not in pillow_formats():
        return "JPEG 2000 needs a Pillow with OpenJPEG, as its wheels have it"
    return ""


@cache
def pillow_formats(kind: str = "") -> tuple[str, ...]:
    """Return the formats that Pillow may open for a kind of file; some other decoders of Pillow start programs."""
    # Pillow would log each of thousands of files of an unsupported kind; the report lists them once.
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    names = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]
    if features.check("jpg_2000"):
        names.append("JPEG2000")
    if "avif" in features.modules and features.check("avif"):
        names.append("AVIF")
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        names.append("HEIF")
    return tuple(names)
