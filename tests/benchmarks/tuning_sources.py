"""Download and draw the images of the tuning sets that are not part of the package.

`tuning_sets.py build FOLDER` calls `build`. Nothing of the system changes: each package is unpacked into
`FOLDER/sources/PACKAGE`, and each set of images is written once into its own folder. It needs `apt-get` with current
lists of packages (`apt-get update`), `dpkg-deb`, `npm`, and `pip install cairosvg` for the emoji.

| Images | Source | License |
|---|---|---|
| `clipart` | Debian package `openclipart-png` | public domain |
| `letters`, `kana` | Debian packages of fonts, see `FONTS` and `KANA_FONTS` | free licenses, most of them OFL 1.1 |
| `emoji-styles` | npm packages of `STYLES` | CC BY 4.0, CC BY-SA 4.0, MIT and Apache 2.0 |

`FOLDER/LICENSES.txt` lists the license of each package and the file with its text.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLIPART = "openclipart-png"
FONTS = tuple(
    f"fonts-{name}"
    for name in (
        *("adf-oldania", "b612", "bajaderka", "bebas-neue", "breip", "cabin", "cabinsketch", "cantarell"),
        *("cherrybomb", "comfortaa", "comic-neue", "courier-prime", "crosextra-caladea", "dancingscript"),
        *("dejavu-core", "dkg-handwriting", "ebgaramond", "ecolier-court", "essays1743", "fantasque-sans"),
        *(
            "femkeklaver",
            "gnutypewriter",
            "goudybookletter",
            "humor-sans",
            "inconsolata",
            "isabella",
            "junction",
        ),
        *("jura", "karla", "kaushanscript", "lato", "leckerli-one", "liberation", "lindenhill", "lobster"),
        *("monofur", "oldstandard", "opendyslexic", "play", "prociono", "quattrocento", "quicksand"),
        *(
            "radisnoir",
            "roboto-slab",
            "rufscript",
            "sjfonts",
            "staypuft",
            "summersby",
            "tomsontalks",
            "tuffy",
        ),
        *("vollkorn", "yanone-kaffeesatz"),
    )
)
KANA_FONTS = tuple(
    f"fonts-{name}"
    for name in (
        *("aoyagi-soseki", "dejima-mincho", "dotgothic16", "ipaexfont-mincho", "kiloji", "motoya-l-maruberi"),
        *(
            "reggae",
            "rocknroll",
            "seto",
            "stick",
            "umeplus",
            "vlgothic",
            "yozvox-yozfont-cute",
            "yusei-magic",
        ),
    )
)
FACES = 2  # fonts of a package at most
STYLES = {
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji-flat": "1.2.6",
    "emojione": "1.2.3",
    "noto-v1": "1.2.5",
}
"""Styles of emoji and the versions of their packages `@iconify-json/STYLE`."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Without the pairs that look the same in both scripts, such as HE, and without small and voiced kana.
KANA = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふほまみむめもやゆよらるれろわをん"
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフホマミムメモヤユヨラルレロワヲン"
)
GLYPH_SIZE, EMOJI_SIZE = 96, 128  # pixels


def build(root: Path) -> None:
    """Download and draw what is not yet in a folder, and list the licenses."""
    (root / "sources").mkdir(parents=True, exist_ok=True)
    debian(CLIPART, root)
    once(root / "letters", lambda folder: draw_characters(folder, LETTERS, FONTS, root))
    once(root / "kana", lambda folder: draw_characters(folder, KANA, KANA_FONTS, root))
    once(root / "emoji-styles", lambda folder: draw_emoji(folder, root))
    (root / "LICENSES.txt").write_text("\n".join(licenses(root)) + "\n")


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder unless it exists; an interrupted call leaves none."""
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            (part := Path(temporary) / "new").mkdir()
            write(part)
            part.rename(folder)
    return folder


def debian(package: str, root: Path) -> Path:
    """Return the folder of an unpacked Debian package."""

    def write(folder: Path) -> None:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)
        (folder / "VERSION").write_text(archive.stem)
        archive.unlink()

    return once(root / "sources" / package, write)


def npm(package: str, root: Path) -> Path:
    """Return the folder of an unpacked npm package; `package` includes the version."""

    def write(folder: Path) -> None:
        subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        archive.unlink()

    return once(root / "sources" / package.replace("/", "_"), write) / "package"


def draw_characters(folder: Path, characters: str, packages: tuple[str, ...], root: Path) -> None:
    """Write an image of each character in each font: FOLDER/CHARACTER/PACKAGE--FONT.png."""
    for package in packages:
        for path in font_files(debian(package, root)):
            font = ImageFont.truetype(str(path), 2 * GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)
            missing = glyph(font, "\U000ffffe")
            for character in characters:
                mask = glyph(font, character)
                if mask is None or (missing is not None and mask.tobytes() == missing.tobytes()):
                    continue
                name = unicodedata.name(character).lower().replace(" letter", "").replace(" ", "-")
                (folder / name).mkdir(exist_ok=True)
                key = f"{package}--{path.stem}"
                varied(mask, crc32(f"{key}/{name}".encode())).save(folder / name / f"{key}.png")


def font_files(folder: Path) -> list[Path]:
    """Return at most `FACES` fonts of a package: the first, and the last by name."""
    files = {path.stem: path for kind in ("ttc", "otf", "ttf") for path in folder.rglob(f"*.{kind}")}
    ordered = [files[stem] for stem in sorted(files)]
    return ordered if len(ordered) <= FACES else [ordered[0], ordered[-1]]


def glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """Draw a character in white on black, cropped to its ink; return None if there is none."""
    canvas = Image.new("L", (6 * GLYPH_SIZE, 6 * GLYPH_SIZE))
    ImageDraw.Draw(canvas).text((2 * GLYPH_SIZE, 2 * GLYPH_SIZE), character, fill=255, font=font)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


def varied(mask: Image.Image, seed: int) -> Image.Image:
    """Draw a glyph in a dark color on a light one, with a random size, place and small rotation."""
    rng = np.random.default_rng(seed)
    mask = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(0.45, 0.85) * GLYPH_SIZE / max(mask.size)
    width, height = (max(1, round(side * scale)) for side in mask.size)
    corner = (int(rng.integers(GLYPH_SIZE - width + 1)), int(rng.integers(GLYPH_SIZE - height + 1)))
    paper, ink = (tuple(rng.integers(low, high, 3).tolist()) for low, high in ((170, 256), (0, 110)))
    image = Image.new("RGB", (GLYPH_SIZE, GLYPH_SIZE), paper)
    image.paste(ink, corner, mask.resize((width, height), Image.Resampling.LANCZOS))
    return image


def draw_emoji(folder: Path, root: Path) -> None:
    """Write the emoji of the embedded classes in each style: FOLDER/STYLE/CLASS/NAME.png."""
    import cairosvg

    from transfer.images.datasets import embedded_folder

    styles = {style: npm(f"@iconify-json/{style}@{version}", root) for style, version in STYLES.items()}
    names = json.loads((styles["twemoji"] / "chars.json").read_text())
    for style, package in styles.items():
        icons = json.loads((package / "icons.json").read_text())
        for path in sorted(embedded_folder().glob("*/u*.png")):
            code = path.stem.split("-")[0][1:]
            name = names.get(code) or names.get(f"{code}-fe0f")
            if name not in icons["icons"]:
                continue
            icon = icons["icons"][name]
            sides = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sides[0]} {sides[1]}">{icon["body"]}</svg>'
            png = cairosvg.svg2png(
                svg.encode(), output_width=EMOJI_SIZE, output_height=EMOJI_SIZE, background_color="white"
            )
            target = folder / style / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(png)).convert("RGB").save(target / f"{name}.png")


def licenses(root: Path) -> Iterator[str]:
    """Yield a line on each package: its license, and the file with the text."""
    for package in (CLIPART, *FONTS, *KANA_FONTS):
        text = next((root / "sources" / package).glob("usr/share/doc/*/copyright"))
        words = [line.split(":", 1)[1].strip() for line in text.read_text(errors="replace").splitlines()
                 if line.startswith("License:")]  # fmt: skip
        title = ", ".join(sorted({*words} - {""})) or (
            "public domain" if package == CLIPART else "see the text"
        )
        version = (root / "sources" / package / "VERSION").read_text()
        yield f"Debian {version}: {title}; {text.relative_to(root)}"
    for style, version in STYLES.items():
        info = root / "sources" / f"@iconify-json_{style}@{version}" / "package" / "info.json"
        content = json.loads(info.read_text())
        yield (
            f"npm @iconify-json/{style} {version}: {content['name']} by {content['author']['name']}, "
            f"{content['license']['spdx']}, {content['license']['url']}; {info.relative_to(root)}"
        )
