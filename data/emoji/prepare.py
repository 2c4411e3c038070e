"""Draw the emoji image set: small labeled images from the Noto Color Emoji font.

    python data/emoji/prepare.py [--font PATH] [--emoji-test PATH] [--output DIR]

The table `CLASSES` defines the classes. A second run with the same font, Unicode file and version of Pillow writes
bit-identical files.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")

NATIVE_SIZE = 109  # the font contains bitmaps of this size only
IMAGE_SIZE = 128
MARGIN = 6  # pixels
MAX_PER_CLASS = 58
# Two images are near-duplicates if their 16x16 gray versions (0 to 255) have a smaller mean absolute difference.
NEAR_DUPLICATE = 3.0

OUR_NAME = re.compile(r"u[0-9a-f]{4,6}-[a-z0-9]+(-[a-z0-9]+)*\.png")
TEST_LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\d+\.\d+ (?P<name>.+)")
VARIATION_SELECTOR = 0xFE0F


@dataclass(frozen=True)
class Rule:
    """The emoji of one class."""

    subgroups: tuple[str, ...]  # of emoji-test.txt
    # Reason -> names of emoji of these subgroups that are excluded.
    exclude: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Reason -> names of emoji of other subgroups that are included.
    include: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Emoji:
    """An emoji of a single code point, from emoji-test.txt."""

    code: int
    name: str
    subgroup: str

    @property
    def file_name(self) -> str:
        """The ASCII file name, such as `u1f600-grinning-face.png`."""
        plain = unicodedata.normalize("NFKD", self.name.replace("\u2019", ""))
        words = re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode().lower())
        return f"u{self.code:04x}-{'-'.join(words)}.png"


CLASSES: dict[str, Rule] = {
    "building": Rule(
        subgroups=("place-building", "place-religious"),
        exclude={
            "material or site, not a building": ("building construction", "brick", "rock", "wood"),
            "a statue": ("Statue of Liberty",),
        },
    ),
    "clothing": Rule(
        subgroups=("clothing",),
        exclude={
            "carried, not worn": (
                *("folding hand fan", "purse", "handbag", "clutch bag", "shopping bags", "backpack"),
            ),
            "jewelry or make-up": ("hair pick", "prayer beads", "lipstick", "ring", "gem stone"),
        },
        include={"worn": ("martial arts uniform", "running shirt")},
    ),
    "cold-blooded": Rule(
        subgroups=("animal-amphibian", "animal-reptile", "animal-marine", "animal-bug", "food-marine"),
        exclude={
            "a mammal": ("spouting whale", "whale", "dolphin", "seal"),
            "no animal visible": ("spiral shell", "coral", "spider web", "oyster"),
            "visible only under a microscope": ("microbe",),
        },
    ),
    "device": Rule(
        subgroups=("phone", "computer"),
        exclude={"not electric": ("abacus",)},
        include={
            "images and light": (
                *("movie camera", "film projector", "television", "camera", "camera with flash"),
                *("video camera", "videocassette", "flashlight"),
            ),
            "sound": (
                "studio microphone",
                "microphone",
                "headphone",
                "radio",
                "level slider",
                "control knobs",
            ),
            "games": ("video game", "joystick"),
            "other electric things": ("watch", "light bulb", "satellite antenna"),
        },
    ),
    "dish": Rule(
        subgroups=("food-prepared", "food-asian", "food-sweet"),
        exclude={
            "an ingredient": ("butter", "salt", "egg", "honey pot", "cut of meat"),
            "only the packaging is visible": ("canned food", "takeout box"),
            "looks like a vegetable": ("roasted sweet potato",),
        },
    ),
    "face": Rule(
        subgroups=(
            *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical"),
            *("face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative"),
        ),
        exclude={"a skull": ("skull", "skull and crossbones")},
    ),
    "mammal": Rule(
        subgroups=("animal-mammal",),
        exclude={"a part or a trace": ("pig nose", "paw prints"), "a mythical animal": ("unicorn",)},
    ),
    "plant": Rule(
        subgroups=("plant-flower", "plant-other"),
        exclude={
            "a stamp, not a plant": ("white flower",),
            "not a plant": ("empty nest", "nest with eggs", "mushroom"),
        },
        include={"a tree or branches, if decorated": ("Christmas tree", "tanabata tree", "pine decoration")},
    ),
    "produce": Rule(subgroups=("food-fruit", "food-vegetable")),
    "sky": Rule(
        subgroups=("sky & weather",),
        exclude={
            "a face": (
                *("new moon face", "first quarter moon face", "last quarter moon face", "full moon face"),
                *("sun with face", "wind face"),
            ),
            "an object on the ground": (
                *("thermometer", "closed umbrella", "umbrella", "umbrella with rain drops"),
                *("umbrella on ground", "snowman", "snowman without snow", "fire", "water wave"),
            ),
            "a sign": ("high voltage",),
        },
    ),
    "tool": Rule(
        subgroups=("tool", "writing"),
        exclude={
            "a weapon": ("dagger", "crossed swords", "bomb", "boomerang", "bow and arrow", "shield"),
            "not a hand tool": ("balance scale", "white cane", "link", "chains"),
            "a sheet of paper": ("memo",),
        },
        include={
            "office": (
                "scissors",
                "straight ruler",
                "triangular ruler",
                "pushpin",
                "round pushpin",
                "paperclip",
            ),
            "kitchen": ("chopsticks", "fork and knife", "spoon", "kitchen knife"),
            "household": ("plunger", "broom", "razor", "safety pin", "toothbrush", "bucket"),
            "sewing": ("sewing needle",),
        },
    ),
    "vehicle": Rule(
        subgroups=("transport-ground", "transport-water", "transport-air"),
        exclude={
            "beside the road or track": (
                *("station", "bus stop", "motorway", "railway track", "oil drum", "fuel pump"),
                *("horizontal traffic light", "vertical traffic light", "stop sign", "construction"),
            ),
            "a part": ("wheel", "police car light", "seat", "anchor"),
            "worn or stood on": ("skateboard", "roller skate"),
            "no transport of people or goods": ("ring buoy", "parachute", "satellite"),
        },
    ),
}


def read_emoji(path: Path) -> list[Emoji]:
    """Read the fully-qualified emoji of a single code point from emoji-test.txt, in Unicode's order."""
    # Variants of skin tone, hair and gender are sequences. Sequences need a text shaper, and so may differ between
    # computers.
    emoji = []
    subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif match := TEST_LINE.match(line):
            codes = [int(code, 16) for code in match["codes"].split()]
            codes = [code for code in codes if code != VARIATION_SELECTOR]
            if len(codes) == 1:
                emoji.append(Emoji(codes[0], match["name"].strip(), subgroup))
    return emoji


def sort_into_classes(emoji: list[Emoji]) -> dict[str, list[Emoji]]:
    """Return the emoji of each class of `CLASSES`; raise ValueError for unknown names and for two classes."""
    known = {one.name for one in emoji}
    owner: dict[str, str] = {}
    classes: dict[str, list[Emoji]] = {}
    for name, rule in CLASSES.items():
        excluded = {one for names in rule.exclude.values() for one in names}
        included = {one for names in rule.include.values() for one in names}
        if unknown := sorted((excluded | included) - known):
            raise ValueError(f"Unknown emoji in class {name}: {', '.join(unknown)}. Fix the table CLASSES.")
        classes[name] = [
            one
            for one in emoji
            if one.name in included or (one.subgroup in rule.subgroups and one.name not in excluded)
        ]
        for one in classes[name]:
            if owner.setdefault(one.name, name) != name:
                raise ValueError(
                    f"The emoji {one.name!r} is in the classes {owner[one.name]} and {name}. Fix the table CLASSES."
                )
    return classes


def draw_glyph(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """Draw a code point on a transparent background, cropped to the visible part; return None if it is empty."""
    canvas = Image.new("RGBA", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), (255, 255, 255, 0))
    corner = (IMAGE_SIZE // 2, IMAGE_SIZE // 2)
    ImageDraw.Draw(canvas).text(corner, chr(code), font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    return canvas.crop(box) if box else None


def frame(glyph: Image.Image) -> Image.Image:
    """Scale a glyph to the image size minus the margin, and put it on white."""
    scale = (IMAGE_SIZE - 2 * MARGIN) / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    # Premultiplied alpha: otherwise, the color of transparent pixels would change the edges.
    small = glyph.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    image = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), (255, 255, 255, 255))
    image.alpha_composite(small, ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2))
    return image.convert("RGB")


def gray_version(image: Image.Image) -> np.ndarray:
    """Return the 256 gray values (0 to 255) of the image at 16x16 pixels."""
    small = image.convert("L").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()


def encode(image: Image.Image) -> bytes:
    """Encode an image as a PNG with a palette of 256 colors."""
    # Values change by a few steps of 255 at most, and the files need less than half the space.
    buffer = io.BytesIO()
    colors = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    # The corner is always background. Set its color to white, which the quantizer may have changed.
    palette = colors.getpalette()
    white = colors.getpixel((0, 0))
    palette[3 * white : 3 * white + 3] = [255, 255, 255]
    colors.putpalette(palette)
    colors.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def evenly_spaced(items: list, most: int) -> list:
    """Return at most `most` items (at least 2), evenly spaced in the list."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def draw_classes(
    classes: dict[str, list[Emoji]], font: ImageFont.FreeTypeFont
) -> tuple[dict[str, list[tuple[Emoji, Image.Image]]], list[str]]:
    """Return pairs of emoji and image for each class, and a message for each emoji that was skipped."""
    # The placeholder that the font draws for a code point without glyph.
    missing = draw_glyph(font, 0xFFFFE)
    drawn: dict[str, list[tuple[Emoji, Image.Image]]] = {}
    skipped: list[str] = []
    earlier_names: list[str] = []
    earlier: list[np.ndarray] = []
    for name, members in classes.items():
        kept = []
        for one in members:
            glyph = draw_glyph(font, one.code)
            if glyph is None or (missing is not None and glyph.tobytes() == missing.tobytes()):
                skipped.append(f"{name}: the font has no glyph for {one.name}")
                continue
            image = frame(glyph)
            gray = gray_version(image)
            distances = [float(np.abs(gray - other).mean()) for other in earlier]
            if distances and min(distances) < NEAR_DUPLICATE:
                nearest = earlier_names[int(np.argmin(distances))]
                skipped.append(f"{name}: {one.name} is a near-duplicate of {nearest}")
                continue
            earlier_names.append(one.name)
            earlier.append(gray)
            kept.append((one, image))
        drawn[name] = evenly_spaced(kept, MAX_PER_CLASS)
    return drawn, skipped


def write_class(folder: Path, images: list[tuple[Emoji, Image.Image]]) -> int:
    """Write the images of a class, remove outdated ones of an earlier run, and return the bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for one, image in images:
        content = encode(image)
        target = folder / one.file_name
        # Rename after writing, so that an interrupted run leaves no incomplete image.
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, target)
        total += len(content)
    chosen = {one.file_name for one, _ in images}
    for old in folder.iterdir():
        if OUR_NAME.fullmatch(old.name) and old.name not in chosen:
            old.unlink()
    return total


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Draw the emoji image set from the Noto Color Emoji font.")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf (default: %(default)s)")
    parser.add_argument(
        "--emoji-test", type=Path, default=EMOJI_TEST, help="emoji-test.txt of Unicode (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="output folder, with one subfolder per class (default: the folder of this script)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Draw the image set; return the exit code, 2 if a source file is missing."""
    options = parse_arguments(arguments)
    for path, package in ((options.font, "fonts-noto-color-emoji"), (options.emoji_test, "unicode-data")):
        if not path.is_file():
            print(f"Cannot find {path}. On Debian, install the package {package}.", file=sys.stderr)
            return 2
    # The basic layout engine does not depend on installed libraries.
    font = ImageFont.truetype(str(options.font), NATIVE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    drawn, skipped = draw_classes(sort_into_classes(read_emoji(options.emoji_test)), font)
    total = 0
    for name, images in drawn.items():
        total += write_class(options.output / name, images)
        print(f"{name:14} {len(images):4}")
    for line in skipped:
        print(f"Skipped: {line}")
    count = sum(map(len, drawn.values()))
    print(f"Wrote {count} images in {len(drawn)} classes, {total} bytes. Skipped {len(skipped)} emoji.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
