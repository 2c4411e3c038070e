"""Write hostile files and folders, load them, and report the outcome: `python tests/helpers/hostile_files.py DIR`."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import shutil
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

HEIC_PROBLEM = (
    'HEIC needs the package pillow-heif: pip install "transfer-cases[formats]"'
    if find_spec("pillow_heif") is None
    else "broken at its beginning"
)
"""Why the first bytes of a HEIC file alone cannot be read, with and without the package for it."""

COLORS = {"red": (220, 40, 30), "green": (40, 180, 50), "blue": (30, 50, 210), "grey": (119, 119, 119)}
SIZE = (16, 16)
PNG = b"\x89PNG\r\n\x1a\n"


class Case(NamedTuple):
    """One kind of hostile file or folder.

    Attributes:
        kind: a short description.
        root: the folder that is loaded.
        paths: the files or folders of this kind, with the same expected outcome; empty if it is the root itself.
        expected: the allowed outcomes. For a path: `read`, `skipped` (reported with a reason), `ignored` (reported
            as not an image) or `hidden` (not reported). For the root: `read`, or `refused` with an `InputError`.
        why: text that the reason must contain.
        shows: the color, or the pixels, of a good image.
        within: the largest allowed difference of a color value from `shows`.
    """

    kind: str
    root: Path
    paths: tuple[Path, ...]
    expected: tuple[str, ...]
    why: str = ""
    shows: Any = None
    within: int = 2


class Corpus:
    """Writes files and collects their cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []
        self.shade = 0

    def color(self, name: str) -> tuple[int, int, int]:
        """Return a new shade of a color, so that no two files are duplicates."""
        self.shade += 1
        red, green, blue = COLORS[name]
        return red + self.shade % 12 - 6, green + self.shade // 12 % 12 - 6, blue + self.shade // 144 % 12 - 6

    def write(self, path: str, content: bytes, root: str = "files") -> Path:
        target = self.folder / root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    def good(self, kind: str, path: str, content: bytes, shows: Any, within: int = 2) -> None:
        """Add an image that must be read."""
        self.note(kind, [self.write(path, content)], "read", shows=shows, within=within)

    def bad(self, kind: str, path: str, content: bytes, expected: str = "skipped", why: str = "") -> None:
        self.note(kind, [self.write(path, content)], expected, why=why)

    def note(self, kind: str, paths: Iterable[Path], expected: str, root: str = "files", **more: Any) -> None:
        self.cases.append(Case(kind, self.folder / root, tuple(paths), tuple(expected.split("|")), **more))

    def plain(self, root: str, *paths: str, count: int = 4) -> None:
        """Write ordinary images to folders; the layout of the folders is the case."""
        for path in paths:
            for i in range(count):
                self.write(f"{path}/{i}.png", encode(solid(self.color("red"))), root)


def make_corpus(folder: str | Path) -> list[Case]:
    """Write all hostile files and folders.

    Args:
        folder: the folder to write to; it is deleted first if it exists.

    Returns:
        The cases with their expected outcomes.
    """
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    corpus = Corpus(folder)
    for name in COLORS:
        for i in range(5):
            color = corpus.color(name)
            corpus.good("an ordinary image", f"{name}/{i}.png", encode(solid(color)), color)
    for part in (
        truncations,
        disguises,
        jpegs,
        exifs,
        pngs,
        others,
        shapes,
        bombs,
        broken,
        names,
        places,
        folders,
    ):
        part(corpus)
    return corpus.cases


# Encoders


def solid(color: tuple[int, int, int], mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, color).convert(mode)


def texture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(
        0, 256, (max(height // 8, 2), max(width // 8, 2), 3), "uint8"
    )
    return Image.fromarray(blocks).resize((width, height)).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(color: tuple[int, int, int], **options: Any) -> bytes:
    return encode(solid(color), "JPEG", quality=95, **options)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    depth: int, kind: int, row: bytes, *extra: bytes, size: tuple[int, int] = SIZE, data: bytes | None = None
) -> bytes:
    """Return a PNG of equal rows, with extra chunks before its pixels; `kind` is the color type of the standard."""
    pixels = zlib.compress((b"\0" + row) * size[1]) if data is None else data
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    return PNG + head + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def interlaced(color: tuple[int, int, int]) -> bytes:
    """Return a PNG with Adam7 interlacing: seven passes of one color."""
    passes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)]
    data = b"".join((b"\0" + bytes(color) * width) * height for width, height in passes)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1))
    return PNG + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def ycck(color: tuple[int, int, int]) -> bytes:
    """Return a JPEG as Photoshop writes it for print: luma, chroma and black, all inverted."""
    inverse = tuple(255 - value for value in color)
    y, cb, cr = Image.new("RGB", (1, 1), inverse).convert("YCbCr").getpixel((0, 0))
    stored = Image.new("CMYK", SIZE, tuple(255 - v for v in (y, cb, cr, 255)))  # Pillow inverts once more
    content = bytearray(encode(stored, "JPEG", quality=98))
    content[content.index(b"Adobe") + 11] = 2  # the transform: YCCK
    return bytes(content)


def with_exif(color: tuple[int, int, int], data: bytes) -> bytes:
    """Return a JPEG, colored above and black below, with the given bytes as EXIF."""
    image = solid(color)
    image.paste((0, 0, 0), (0, 8, 16, 16))
    content = encode(image, "JPEG", quality=95, subsampling=0)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data + content[2:]


def entry(tag: int, kind: int, count: int, value: bytes, following: int = 0) -> bytes:
    """Return a TIFF directory with one entry."""
    return (
        b"II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHI", tag, kind, count)
        + value
        + struct.pack("<I", following)
    )


def bmp(
    width: int, height: int, depth: int, data: bytes, *, compression: int = 0, palette: bytes = b""
) -> bytes:
    start = 54 + len(palette)
    sizes = struct.pack("<IiiHHII", 40, width, height, 1, depth, compression, len(data))
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return head + sizes + struct.pack("<iiII", 2835, 2835, len(palette) // 4, 0) + palette + data


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(n + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for n, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zeros(size: int) -> bytes:
    """Return `size` zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(size >> 20)), packer.flush()])


# Files


def truncations(corpus: Corpus) -> None:
    """Cut small images, which are mostly headers, at every byte, and larger ones in their pixels."""
    rgb, palette = texture(16, 16), texture(16, 16, "P")
    for kind, ending, content in (
        ("baseline JPEG", "jpg", encode(rgb, "JPEG")),
        ("progressive JPEG", "jpg", encode(rgb, "JPEG", progressive=True)),
        ("PNG", "png", encode(rgb)),
        ("PNG with a palette", "png", encode(palette)),
        ("GIF", "gif", encode(palette, "GIF")),
        ("BMP", "bmp", encode(rgb, "BMP")),
        ("WebP", "webp", encode(rgb, "WEBP")),
        ("lossless WebP", "webp", encode(rgb, "WEBP", lossless=True)),
    ):
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        last = len(content) - {"PNG": 21, "GIF": 2}.get(
            kind.split()[0], 0
        )  # from there on, only the end mark is missing
        for n in range(len(content)):
            name = f"red/cut {kind}/{n:04}.{ending}"
            corpus.write(name, content[:n])
        cuts = [corpus.folder / f"files/red/cut {kind}/{n:04}.{ending}" for n in range(len(content))]
        corpus.note(f"{kind}, cut after each of its bytes", cuts[:last], "skipped")
        if cuts[last:]:
            corpus.note(f"{kind} without its end mark", cuts[last:], "skipped|read", shows=pixels)
    large = texture(400, 300)
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {}),
    ):
        content = encode(large, kind, **options)
        kind = "progressive JPEG" if options else kind
        fractions = np.linspace(0.1, 0.99, 12)
        cuts = [
            corpus.write(f"red/large/{s:.0%} of a {kind}.{kind[-4:]}", content[: int(len(content) * s)])
            for s in fractions
        ]
        corpus.note(f"{kind}, cut among its pixels", cuts, "skipped")


def disguises(corpus: Corpus) -> None:
    """Write files whose names do not match their content."""
    for name in (
        "a.png",
        "a.gif",
        "a.dat",
        "without ending",
        "b.JPG_large",
        "c.jfif",
        "d.jpg?w=300",
        "e.JPEG",
        "f.",
    ):
        color = corpus.color("green")
        corpus.good(f"JPEG named {name!r}", f"green/{name}", jpeg(color), color, 8)
    for kind, name in (
        ("PNG", "g.jpg"),
        ("GIF", "h.png"),
        ("BMP", "i.jpg"),
        ("WEBP", "j.jpg"),
        ("PNG", "k.tif"),
        ("TIFF", "t.jpg"),
        ("JPEG2000", "l.png"),
    ):
        color = corpus.color("blue")
        corpus.good(
            f"{kind} named {name!r}", f"blue/{name}", encode(solid(color), kind, lossless=True), color, 8
        )
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)
    text = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.jpg", jpeg((9, 9, 9)))
    for kind, name, content in (
        ("a web page named .jpg", "v.jpg", text),
        ("text named .jpg", "w.jpg", b"See the other folder.\n"),
        ("an archive (zip) named .png", "y.png", archive.getvalue()),
        ("a pickle named .jpg", "z.jpg", pickle.dumps({"a": [1]})),
        ("EPS, which could start a program, named .jpg", "eps.jpg", encode(solid((9, 9, 9)), "EPS")),
    ):
        corpus.bad(kind, f"red/{name}", content, why="not an image")
    for name, content, why in (("a.heic", heic, HEIC_PROBLEM), ("a.svg", svg, "is not supported")):
        corpus.bad(f"{name[2:].upper()} with its own extension", f"red/{name}", content, why=why)
    corpus.bad("SVG named .png", "red/x.png", svg, why="SVG is not supported")
    corpus.bad("HEIC named .jpg", "red/u.jpg", heic, why=HEIC_PROBLEM)
    for name, content in (
        ("notes.txt", b"BM is how a BMP begins"),
        ("labels.csv", b"a,b\n"),
        ("x.zip", text),
    ):
        corpus.bad(f"not an image, nor named like one: {name}", f"red/{name}", content, "ignored")


def jpegs(corpus: Corpus) -> None:
    def add(
        kind: str, make: Callable[[tuple[int, int, int]], bytes], within: int = 8, name: str = "red"
    ) -> None:
        color = corpus.color(name)
        corpus.good(f"JPEG, {kind}", f"{name}/jpeg {kind}.jpg", make(color), color, within)

    add("CMYK, inverted as Adobe does", lambda c: encode(solid(c, "CMYK"), "JPEG", quality=95), 12)
    add("YCCK", ycck, 12, "blue")
    add("stored as RGB", lambda c: jpeg(c, keep_rgb=True))
    add("progressive", lambda c: jpeg(c, progressive=True))
    add("with restart marks", lambda c: jpeg(c, restart_marker_blocks=1))
    add("grey", lambda c: encode(solid(c, "L"), "JPEG"), 12, "grey")
    add("garbage after its end", lambda c: jpeg(c) + random.Random(0).randbytes(5000))
    add("another image after its end", lambda c: jpeg(c) + jpeg((0, 0, 0)))
    add(
        "of two images (MPO)",
        lambda c: encode(solid(c), "MPO", save_all=True, append_images=[solid((0, 0, 0))]),
    )
    add("filled up with FF between its parts", lambda c: jpeg(c)[:20] + b"\xff" * 50 + jpeg(c)[20:])
    add("a broken color profile", lambda c: jpeg(c, icc_profile=b"nonsense" * 9))
    add("a comment of 64 KB", lambda c: jpeg(c, comment=b"\0" * 65000))
    huge = jpeg((9, 9, 9)).replace(struct.pack(">HH", 16, 16), b"\0\0\0\x10", 1)
    corpus.bad("JPEG of height 0", "red/jpeg zero.jpg", huge)
    corpus.bad("JPEG after an empty line", "red/jpeg late.jpg", b"\r\n" + jpeg((9, 9, 9)), why="not an image")


def exifs(corpus: Corpus) -> None:
    short = 3
    upright = {
        **{f"orientation {n}": entry(0x112, short, 1, struct.pack("<HH", n, 0)) for n in (0, 9, 65535)},
        "orientation as text": entry(0x112, 2, 4, b"abc\0"),
        "orientation of two values": entry(0x112, short, 2, struct.pack("<HH", 1, 8)),
        "orientation as 0/0": entry(0x112, 5, 1, struct.pack("<I", 26)) + bytes(8),
        "orientation of an unknown type": entry(0x112, 99, 1, b"\x06\0\0\0"),
        "orientation that lies past the end": entry(0x112, 5, 1, struct.pack("<I", 60_000)),
        "four billion values": entry(0x112, short, 2**32 - 1, b"\x08\0\0\0"),
        "directories in a circle": entry(0x10E, short, 1, b"\x01\0\0\0", following=8),
        "a sub-directory in a circle": entry(0x8769, 4, 1, struct.pack("<I", 8)),
        "cut": entry(0x112, short, 1, b"\x06\0\0\0")[:13],
        "no EXIF": b"",
        "random bytes": random.Random(1).randbytes(300),
    }
    for kind, data in upright.items():
        color = corpus.color("red")
        shows = np.zeros((*SIZE, 3), "uint8")
        shows[:8] = color
        corpus.good(
            f"EXIF: {kind}", f"red/exif {kind.replace('/', ' by ')}.jpg", with_exif(color, data), shows, 12
        )
    for turn in range(1, 9):
        color = corpus.color("red")
        shows = np.zeros((*SIZE, 3), "uint8")
        left = {
            5: np.s_[:, :8],
            6: np.s_[:, 8:],
            7: np.s_[:, 8:],
            8: np.s_[:, :8],
            3: np.s_[8:],
            4: np.s_[8:],
        }
        shows[left.get(turn, np.s_[:8])] = color
        data = entry(0x112, short, 1, struct.pack("<HH", turn, 0))
        corpus.good(
            f"EXIF: orientation {turn}", f"red/exif turn {turn}.jpg", with_exif(color, data), shows, 12
        )


def pngs(corpus: Corpus) -> None:
    def add(kind: str, content: bytes, shows: Any, name: str = "grey") -> None:
        corpus.good(f"PNG, {kind}", f"{name}/png {kind}.png", content, shows)

    red, green, blue = (corpus.color(name) for name in ("red", "green", "blue"))
    wide = b"".join(bytes([v, 200]) for v in green)
    add("16-bit grey", png(16, 0, b"\x77\x77" * 16), (119,) * 3)
    add("16-bit RGB", png(16, 2, wide * 16), green, "green")
    add("16-bit RGBA", png(16, 6, (wide + b"\xff\xff") * 16), green, "green")
    add("16-bit grey and alpha", png(16, 4, b"\x78\0\xff\xff" * 16), (120,) * 3)
    add("16-bit grey, transparent", png(16, 0, b"\x77\x77" * 16, chunk(b"tRNS", b"\x77\x77")), (255,) * 3)
    add(
        "16-bit RGB with a color declared transparent",
        png(16, 2, wide * 16, chunk(b"tRNS", bytes(6))),
        green,
        "green",
    )
    add("1-bit", png(1, 0, b"\xff\xff"), (255,) * 3)
    add("1-bit, transparent", png(1, 0, b"\0\0", chunk(b"tRNS", b"\0\0")), (255,) * 3)
    add("2-bit grey", png(2, 0, b"\xaa" * 4), (170,) * 3)
    add("4-bit grey", png(4, 0, b"\x77" * 8), (119,) * 3)
    add("8-bit grey, transparent", png(8, 0, b"\x64" * 16, chunk(b"tRNS", b"\0\x64")), (255,) * 3)
    add("RGB, transparent", png(8, 2, bytes(red) * 16, chunk(b"tRNS", b"\0%c\0%c\0%c" % red)), (255,) * 3)
    add("grey and alpha", png(8, 4, b"\x79\xff" * 16), (121,) * 3)
    add("RGBA, wholly transparent", png(8, 6, bytes((*red, 0)) * 16), (255,) * 3)
    for depth, row in ((1, b"\xff\xff"), (2, b"\x55" * 4), (4, b"\x11" * 8), (8, b"\1" * 16)):
        colors = chunk(b"PLTE", bytes((*red, *blue)))
        add(f"{depth}-bit palette", png(depth, 3, row, colors), blue, "blue")
        add(
            f"{depth}-bit palette, transparent",
            png(depth, 3, row, colors, chunk(b"tRNS", b"\xff\0")),
            (255,) * 3,
        )
    add("interlaced", interlaced(red), red, "red")
    frames = encode(solid(green), save_all=True, append_images=[solid(blue), solid(red)])
    add("animated (APNG)", frames, green, "green")
    data = zlib.compress((b"\0" + bytes(blue) * 16) * 16)
    split = (
        PNG
        + png(8, 2, b"", data=b"")[8:33]
        + b"".join(chunk(b"IDAT", data[i : i + 1]) for i in range(len(data)))
    )
    add("its pixels in chunks of one byte", split + chunk(b"IEND", b""), blue, "blue")
    add("garbage after its end", encode(solid(red)) + b"garbage" * 99, red, "red")
    add("a broken color profile", png(8, 2, bytes(red) * 16, chunk(b"iCCP", b"x\0\0nonsense")), red, "red")
    add(
        "unknown parts",
        png(8, 2, bytes(blue) * 16, chunk(b"abCd", b"?"), chunk(b"gAMA", b"\0\0\0\0")),
        blue,
        "blue",
    )
    good = png(8, 2, bytes(red) * 16)
    corpus.bad("PNG with a wrong checksum of its head", "red/crc.png", good[:29] + bytes(4) + good[33:])
    wrong = good[: good.index(b"IEND") - 8] + bytes(4) + good[good.index(b"IEND") - 4 :]
    add("a wrong checksum of whole pixels", wrong, red, "red")
    for width, height in ((0, 9), (9, 0), (2**32 - 1, 9), (2**31, 2**31)):
        content = png(8, 2, b"", data=data, size=(width, height))
        corpus.bad(f"PNG of {width}x{height} pixels", f"red/{width}x{height}.png", content)
    corpus.bad(
        "PNG without pixels", "red/no pixels.png", good[: good.index(b"IDAT") - 4] + chunk(b"IEND", b"")
    )
    corpus.bad("palette PNG without palette", "red/no palette.png", png(8, 3, b"\1" * 16), "skipped|read")
    corpus.bad("PNG of an invalid color type", "red/kind.png", png(7, 5, b"\1" * 99))


def others(corpus: Corpus) -> None:
    """Write all variants of GIF, BMP and WebP."""
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        red, black = corpus.color("red"), solid((0, 0, 0))
        animated = encode(solid(red), kind, save_all=True, append_images=[black], **options)
        corpus.good(f"animated {kind}", f"red/animated.{kind.lower()}", animated, red)
        clear = solid(red, "RGBA")
        clear.putalpha(0)
        corpus.good(
            f"transparent {kind}", f"grey/clear.{kind.lower()}", encode(clear, kind, **options), (255,) * 3
        )
    red = corpus.color("red")
    corpus.good("interlaced GIF", "red/interlaced.gif", encode(solid(red, "P"), "GIF", interlace=1), red, 40)
    gif = bytearray(encode(solid(red), "GIF"))
    gif[6:10] = struct.pack("<HH", 1, 1)  # the screen; Pillow grows it to the frame
    corpus.good("GIF larger than its screen", "red/screen.gif", bytes(gif), red)
    blue, row = corpus.color("blue"), bytes(reversed(corpus.color("green"))) * 16
    green = tuple(reversed(row[:3]))
    palette = bytes((0, 0, 0, 0, *reversed(blue), 0))
    for kind, content, shows, name in (
        ("1-bit", bmp(16, 16, 1, b"\xff\xff\0\0" * 16, palette=palette), blue, "blue"),
        ("4-bit", bmp(16, 16, 4, b"\x11" * 128, palette=palette), blue, "blue"),
        ("8-bit", bmp(16, 16, 8, b"\1" * 256, palette=palette), blue, "blue"),
        (
            "8-bit, RLE",
            bmp(16, 16, 8, b"\x10\1\0\0" * 16 + b"\0\1", palette=palette, compression=1),
            blue,
            "blue",
        ),
        ("upside down", bmp(16, -16, 24, row * 16), green, "green"),
        ("32-bit", bmp(16, 16, 32, (row[:3] + b"\0") * 256), green, "green"),
        ("16-bit", bmp(16, 16, 16, struct.pack("<H", 31 << 10) * 256), (255, 0, 0), "red"),
        ("its reserved bytes used", (b := bmp(16, 16, 24, row * 16))[:6] + b"ABCD" + b[10:], green, "green"),
    ):
        corpus.good(f"BMP, {kind}", f"{name}/bmp {kind}.bmp", content, shows, 1)
    green = corpus.color("green")
    for kind, options in (("lossy", {"quality": 95}), ("lossless", {"lossless": True})):
        corpus.good(
            f"WebP, {kind}", f"green/webp {kind}.webp", encode(solid(green), "WEBP", **options), green, 8
        )


def shapes(corpus: Corpus) -> None:
    for size in ((1, 1), (1, 5000), (5000, 1), (1, 65000)):
        for kind in ("PNG", "JPEG", "GIF", "BMP") if size[1] < 65000 else ("PNG", "JPEG"):
            color = corpus.color("blue")
            name = f"{kind} of {size[0]}x{size[1]}"
            corpus.good(name, f"blue/{name}.{kind.lower()}", encode(solid(color, size=size), kind), color, 8)


def bombs(corpus: Corpus) -> None:
    """Write small files with huge images in their headers or huge compressed contents."""
    side = 30_000
    gif = encode(solid((9, 9, 9)), "GIF")
    frame = gif.index(b",\0\0\0\0") + 5  # the position of the first frame's size
    small = jpeg((9, 9, 9))
    lossless = b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(9)
    canvas = b"\x02\0\0\0" + 2 * struct.pack("<I", side - 1)[:3]
    moving = riff(
        (b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", bytes(16) + b"VP8L\x0a\0\0\0" + lossless[:10])
    )
    for kind, name, content in (
        ("PNG", "a.png", png(8, 2, b"", size=(side, side), data=zeros(2**20))),
        ("JPEG", "a.jpg", small.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", side, side), 1)),
        ("GIF", "a.gif", gif[:6] + struct.pack("<HH", side, side) + gif[10:]),
        ("GIF's frame", "b.gif", gif[:frame] + struct.pack("<HH", side, side) + gif[frame + 4 :]),
        ("BMP", "a.bmp", bmp(side, side, 24, bytes(99))),
        ("RLE BMP", "b.bmp", bmp(side, side, 8, b"\0\2\xff\xff" * 9, compression=1, palette=bytes(1024))),
    ):
        corpus.bad(
            f"{kind} of {side}x{side} in its header", f"red/bomb {name}", content, why="180,000,000 pixels"
        )
    corpus.bad("WebP of 16383x16383", "red/bomb a.webp", riff((b"VP8L", lossless)))
    corpus.bad(f"animated WebP of {side}x{side}", "red/bomb b.webp", moving)
    text, profile = b"Comment\0\0" + zeros(2**28), b"profile\0\0" + zeros(2**28)
    for name, extra in (("zTXt", text), ("iCCP", profile), ("iTXt", b"Comment\0\1\0\0\0" + text[9:])):
        color = corpus.color("red")
        content = png(8, 2, bytes(color) * 16, chunk(name.encode(), extra))
        corpus.note(
            f"PNG with 256 MB packed in {name}",
            [corpus.write(f"red/bomb {name}.png", content)],
            "skipped|read",
            shows=color,
        )
    late = encode(solid((9, 9, 9)))[:-12] + chunk(b"zTXt", text) + chunk(b"IEND", b"")
    corpus.note(
        "PNG with 256 MB packed after its pixels", [corpus.write("red/bomb late.png", late)], "skipped|read"
    )
    for size, head, why in ((3 * 2**30, small, "bytes are more than"), (900 * 2**20, b"\0", "not an image")):
        sparse = corpus.write(f"red/sparse {size}.jpg", head)
        with contextlib.suppress(OSError):
            os.truncate(sparse, size)
        if sparse.stat().st_size == size and sparse.stat().st_blocks < 2**16:
            corpus.note(f"a sparse file of {size >> 20} MB", [sparse], "skipped", why=why)
        else:
            sparse.unlink()


def broken(corpus: Corpus) -> None:
    corpus.bad("empty file", "red/empty.jpg", b"", why="empty")
    corpus.bad("1 MB of NULs", "red/nulls.jpg", bytes(2**20), why="not an image")
    for ending in ("jpg", "png", "gif", "bmp", "webp"):
        corpus.bad(
            "random bytes", f"red/random.{ending}", random.Random(ending).randbytes(5000), why="not an image"
        )
    heads = {
        "jpg": b"\xff\xd8\xff\xe0",
        "png": PNG,
        "gif": b"GIF89a",
        "bmp": b"BM\0\0\0\0",
        "webp": b"RIFF\0\0\1\0WEBP",
    }
    for ending, head in heads.items():
        content = head + random.Random(ending).randbytes(5000)
        corpus.bad("random bytes after the right first ones", f"red/random head.{ending}", content)
    photo = encode(texture(400, 300), "JPEG")
    nulls = photo[: len(photo) // 2] + bytes(len(photo) - len(photo) // 2)
    corpus.bad("JPEG whose second half is NULs", "red/half.jpg", nulls)
    pixels = encode(texture(400, 300))
    nulls = pixels[: len(pixels) // 2] + bytes(len(pixels) - len(pixels) // 2)
    corpus.bad("PNG whose second half is NULs", "red/half.png", nulls)


# Names and places


def names(corpus: Corpus) -> None:
    odd: dict[str, str | bytes] = {
        "that is not UTF-8": b"caf\xe9.png",
        "that is not UTF-8 and has no ending": b"\xff\xfe\x80",
        "that spells what is not UTF-8": "caf\\xe9.png",
        "with a newline": "two\nlines.png",
        "with a tab": "a\ttab.png",
        "with control characters": "\x1b[31mred\x07\r.png",
        "with quotes": '"it\'s".png',
        "of an emoji": "👩🏽‍🔬🎈.png",
        "from right to left": "תמונה صورة.png",
        "turned around (U+202E)": "\u202egnp.exe",
        "with a zero-width mark": "क्\u200cष.png",
        "with a byte-order mark": "\ufeffbom.png",
        "in Chinese, Hindi, Thai": "图片 चित्र ภาพ.png",
        "with a leading dash": "-rf.png",
        "with a leading space": "  leading.png",
        "with a trailing space": "trailing.png ",
        "of 255 bytes": "x" * 251 + ".png",
        "of 255 bytes in Greek": "ω" * 125 + "x.png",
        "composed (NFC)": "e\u0301é.png".replace("e\u0301", "é"),
        "decomposed (NFD)": "e\u0301e\u0301.png",
        "like the second of two alike": "éé.png#2",
        "in small letters": "case.png",
        "in capitals": "CASE.PNG",
        "of markup": "<script>alert(1)<!--&amp;.png",
        "of a format": "%s{0}{name}%d\\n.png",
        "of commas and semicolons": "a,b;c,,.png",
        "like a missing value": "NA",
        "like a number": "007",
        "like a comment": "#.png",
        "with stars": "*?[a-z].png",
    }
    for number, (kind, name) in enumerate(odd.items()):
        folder = list(COLORS)[number // 3 % 3]  # similar names share a folder
        color = corpus.color(folder)
        with contextlib.suppress(OSError):  # some systems do not allow all names
            corpus.good(f"a name {kind}", f"{folder}/{os.fsdecode(name)}", encode(solid(color)), color)
    for name in (".hidden.png", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/a.jpg", "@eaDir/a.jpg",
                 ".ipynb_checkpoints/a-checkpoint.png"):  # fmt: skip
        corpus.bad(f"a system file: {name}", f"red/{name}", jpeg((9, 9, 9)), "hidden")


def places(corpus: Corpus) -> None:
    """Write links, pipes and other special files among the images."""
    red = corpus.folder / "files" / "red"
    color = corpus.color("red")
    corpus.good("50 levels deep", "red/" + "deep/" * 50 + "a.png", encode(solid(color)), color)
    color = corpus.color("red")
    corpus.good("in a folder named like an image", "red/folder.jpg/a.png", encode(solid(color)), color)
    outside = corpus.write("a.png", encode(solid(color)), "outside")
    (red / "a link.png").symlink_to(outside)
    corpus.note("a link to an image", [red / "a link.png"], "read", shows=color)
    color = corpus.color("red")
    corpus.write("inner/a.png", encode(solid(color)), "outside")
    (red / "a link to a folder").symlink_to(outside.parent / "inner")
    corpus.note("in a folder behind a link", [red / "a link to a folder" / "a.png"], "read", shows=color)
    for kind, name, target, why in (
        ("a broken link, named like an image", "gone.jpg", "nowhere.jpg", "a broken link"),
        ("a broken link, named like a folder", "gone", "no/where", "a broken link"),
        ("a link to itself", "self.jpg", "self.jpg", "a broken link"),
        ("a link to its folder", "here", ".", "contains it"),
        ("a link to the folder above", "up", "..", "contains it"),
        ("a link to the top", "top", str(corpus.folder / "files"), "contains it"),
        ("a link to what is above the top", "far up", "/", "contains it"),
        ("a link to an endless device", "zero.jpg", "/dev/zero", "not a file"),
        ("a link to an empty device", "null.png", "/dev/null", "not a file"),
    ):
        (red / name).symlink_to(target)
        corpus.note(kind, [red / name], "skipped", why=why)
    for one, other in (("ping", "pong"), ("pong", "ping")):
        (red / one).mkdir()
        (red / one / "on").symlink_to(red / other)
    color = corpus.color("red")
    corpus.good("two folders with links to each other", "red/ping/a.png", encode(solid(color)), color)
    os.mkfifo(red / "pipe.jpg")
    os.mkfifo(red / "pipe")
    corpus.note("a pipe", [red / "pipe.jpg", red / "pipe"], "skipped", why="not a file")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(red)  # a socket's path must be short
        server.bind("socket.jpg")
        os.chdir(here)
    corpus.note("a socket", [red / "socket.jpg"], "skipped", why="not a file")
    corpus.bad(
        "an image in no class", "loose.png", encode(solid((9, 9, 9))), why="not in the folder of a class"
    )
    corpus.bad(
        "an image in no class, without ending",
        "loose",
        encode(solid((9, 9, 9))),
        why="not in the folder of a class",
    )


def folders(corpus: Corpus) -> None:
    """Write folders of data with unusual layouts."""
    strange = ["名前 é", '"q", ;\'', " lead", "-dash", "a\nb", "NA", "007", "x.jpg", "🎈", "क्\u200cष", "#"]
    corpus.plain("strange classes", *strange, "a b", "A b")
    corpus.plain("strange classes", os.fsdecode(b"caf\xe9"))
    corpus.note("classes with strange names", (), "read", "strange classes")
    corpus.plain("one form", "Caf\u00e9", "tea")
    for i in range(4):
        corpus.write(f"Cafe\u0301/d{i}.png", encode(solid(corpus.color("blue"))), "one form")
    corpus.note("a class in two forms of Unicode", (), "read", "one form")
    corpus.plain("few", "many")
    corpus.plain("few", "one", count=1)
    corpus.note("a class of one image", (), "read", "few")
    corpus.plain("unsupported class", "a", "b")
    corpus.write("new/a.psd", b"8BPS", "unsupported class")
    corpus.note(
        "a class of PSD alone", (), "refused", "unsupported class", why="new/a.psd (PSD is not supported"
    )
    corpus.plain("empty class", "a", "b")
    (corpus.folder / "empty class" / "nothing").mkdir()
    corpus.note("a class without images", (), "refused", "empty class", why="nothing")
    corpus.plain("broken class", "a", "b")
    corpus.write("bad/a.jpg", b"", "broken class")
    corpus.write("bad/b.jpg", b"text", "broken class")
    corpus.note("a class of broken images alone", (), "refused", "broken class", why="bad")
    (corpus.folder / "nothing").mkdir()
    corpus.note("an empty folder", (), "refused", "nothing")
    corpus.plain("flat", ".")
    corpus.note("images without classes", (), "refused", "flat")
    corpus.plain("one class", "a")
    corpus.note("one class", (), "refused", "one class")
    for root, kind, inside, expected in (
        ("s1", "train and test in capitals", ["TRAIN/a", "TRAIN/b", "Test/a", "Test/b"], "read"),
        ("s2", "val without train", ["val/a", "val/b"], "refused"),
        ("s3", "train and Train", ["train/a", "train/b", "Train/a"], "refused"),
        ("s4", "val and validation", ["train/a", "train/b", "val/a", "validation/b"], "refused"),
        ("s5", "a class in val alone", ["train/a", "train/b", "val/a", "val/c"], "refused"),
        ("s6", "classes called train and test", ["train", "test", "bus"], "read"),
        ("s7", "val without images", ["train/a", "train/b"], "refused"),
        ("s8", "test not sorted into classes", ["train/a", "train/b", "test"], "read"),
        ("s9", "a folder of images beside train", ["train/a", "train/b", "more", "else/c"], "read"),
    ):
        corpus.plain(root, *inside)
        corpus.note(f"splits: {kind}", (), expected, root)
    (corpus.folder / "s7/val/a").mkdir(parents=True)
    corpus.note("splits: unlabeled test images", (corpus.folder / "s8/test").iterdir(), "hidden", "s8")
    lost = [*(corpus.folder / "s9/more").iterdir(), *(corpus.folder / "s9/else/c").iterdir()]
    corpus.note(
        "splits: images in a folder that is no split", lost, "skipped", "s9", why="outside the folders"
    )
    (corpus.folder / "linked").mkdir()
    (corpus.folder / "linked/train").symlink_to(corpus.folder / "s1" / "TRAIN")
    corpus.note("splits: train is a link", (), "read", "linked")
    odd = os.fsdecode(b"\xe9\n folder")
    corpus.plain(odd, "a", "b")
    corpus.note("the folder itself has a strange name", (), "read", odd)


# Outcomes


def outcomes_of(cases: Iterable[Case]) -> Iterator[tuple[Case, list[str]]]:
    """Load each folder once, and yield the outcome of each path of each case."""
    from transfer.common.errors import InputError
    from transfer.images.datasets import load_data

    loaded: dict[Path, Any] = {}
    for case in cases:
        if case.root not in loaded:
            try:
                loaded[case.root] = load_data(case.root, seed=0)
            except InputError as error:
                loaded[case.root] = error
        data = loaded[case.root]
        if isinstance(data, InputError):
            yield case, [f"refused: {data}"]
        else:
            yield case, [outcome_of(path, case, data) for path in case.paths] or ["read"]


def outcome_of(path: Path, case: Case, data: Any) -> str:
    """Return the outcome of one path: a word of `Case.expected`, with the reason."""
    from transfer.images.decoding import decode
    from transfer.images.folder_scan import printable

    used = [part for part in data.splits.values() if str(path) in list(part.images)]
    if used:
        if case.shows is None:
            return "read"
        shows = np.asarray(case.shows, int)
        pixels = decode(path, shows.shape[:2] if shows.ndim == 3 else SIZE)
        difference = int(np.abs(pixels - shows).max())
        return "read" if difference <= case.within and len(used) == 1 else f"wrong by {difference}"
    name = printable(path.relative_to(case.root).as_posix())
    if name in (why := dict(data.skipped)):
        return f"skipped: {why[name]}"
    return "ignored" if name in data.report.ignored else "hidden"


def as_expected(case: Case, outcome: str) -> bool:
    word, _, why = outcome.partition(": ")
    return word in case.expected and (word == "read" or case.why in why)


def table(results: Iterable[tuple[Case, list[str]]]) -> str:
    """Return a Markdown table with the number of files and the outcome of each kind."""
    rows: dict[tuple[str, str], int] = {}
    for case, outcomes in results:
        words = sorted({outcome.replace(f"{case.root.parent}/", "") for outcome in outcomes})
        shown = "; ".join(words).replace("|", "\\|").replace("\n", " ")
        mark = "" if all(as_expected(case, outcome) for outcome in outcomes) else "**unexpected**: "
        key = case.kind, mark + shown
        rows[key] = rows.get(key, 0) + len(case.paths)
    lines = [f"| {kind} | {count or 'a folder of data'} | {shown} |" for (kind, shown), count in rows.items()]
    return "\n".join(["| kind | files | outcome |", "|---|---|---|", *lines])


def megabytes(field: str) -> int:
    """Return the memory of this process, now (`VmRSS`) or at most (`VmHWM`); 0 if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith(field)).split()[1]) >> 10


def main() -> None:
    from transfer.images.datasets import load_data

    load_data("emoji")  # its imports do not count as memory of the corpus
    cases = make_corpus(sys.argv[1])
    before = megabytes("VmRSS")
    results = list(outcomes_of(cases))
    grown = megabytes("VmHWM") - before
    sys.stdout.reconfigure(errors="backslashreplace")
    print(table(results))
    kinds, files = len({case.kind for case in cases}), sum(max(1, len(case.paths)) for case in cases)
    print(f"\n{kinds} kinds, {files} files and folders. Memory grew by {grown} MB at most.")
    wrong = any(not as_expected(case, outcome) for case, outcomes in results for outcome in outcomes)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
