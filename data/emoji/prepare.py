"""Draw the emoji image set: small labelled images from the Noto Color Emoji font.

    python data/emoji/prepare.py [--font PATH] [--emoji-test PATH] [--output DIR]

The classes are the table `CLASSES` below. A second run with the same font, Unicode file and Pillow
writes bit-identical files.
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

NATIVE_SIZE = 109  # the font holds bitmaps, so this is the one size it can be opened at
IMAGE_SIZE = 128
MARGIN = 6
MOST_PER_CLASS = 58
# Mean absolute difference of two 16x16 grey reductions (0 to 255) below which two images count as one.
NEAR_DUPLICATE = 3.0

OUR_NAME = re.compile(r"u[0-9a-f]{4,6}-[a-z0-9]+(-[a-z0-9]+)*\.png")
TEST_LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\d+\.\d+ (?P<name>.+)")
VARIATION_SELECTOR = 0xFE0F


@dataclass(frozen=True)
class Rule:
    """What goes into one class.

    Attributes:
        subgroups: Subgroups of emoji-test.txt that are taken whole.
        leave_out: Reason -> names of emoji of these subgroups that are not taken.
        take_in: Reason -> names of emoji of other subgroups that are taken too.
    """

    subgroups: tuple[str, ...]
    leave_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    take_in: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Emoji:
    """One emoji of a single code point, as emoji-test.txt lists it."""

    code: int
    name: str
    subgroup: str

    @property
    def file_name(self) -> str:
        """ASCII file name, such as `u1f600-grinning-face.png`."""
        plain = unicodedata.normalize("NFKD", self.name.replace("\u2019", ""))
        words = re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode().lower())
        return f"u{self.code:04x}-{'-'.join(words)}.png"


CLASSES: dict[str, Rule] = {
    "building": Rule(
        subgroups=("place-building", "place-religious"),
        leave_out={
            "material or site, not a building": ("building construction", "brick", "rock", "wood"),
            "a statue": ("Statue of Liberty",),
        },
    ),
    "clothing": Rule(
        subgroups=("clothing",),
        leave_out={
            "carried, not worn": (
                *("folding hand fan", "purse", "handbag", "clutch bag", "shopping bags", "backpack"),
            ),
            "jewellery or make-up": ("hair pick", "prayer beads", "lipstick", "ring", "gem stone"),
        },
        take_in={"worn": ("martial arts uniform", "running shirt")},
    ),
    "cold-blooded": Rule(
        subgroups=("animal-amphibian", "animal-reptile", "animal-marine", "animal-bug", "food-marine"),
        leave_out={
            "a mammal": ("spouting whale", "whale", "dolphin", "seal"),
            "no animal to be seen": ("spiral shell", "coral", "spider web", "oyster"),
            "seen only under a microscope": ("microbe",),
        },
    ),
    "device": Rule(
        subgroups=("phone", "computer"),
        leave_out={"not electric": ("abacus",)},
        take_in={
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
        leave_out={
            "an ingredient": ("butter", "salt", "egg", "honey pot", "cut of meat"),
            "only the package shows": ("canned food", "takeout box"),
            "looks like a vegetable": ("roasted sweet potato",),
        },
    ),
    "face": Rule(
        subgroups=(
            *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical"),
            *("face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative"),
        ),
        leave_out={"a skull": ("skull", "skull and crossbones")},
    ),
    "mammal": Rule(
        subgroups=("animal-mammal",),
        leave_out={"a part or a trace": ("pig nose", "paw prints"), "a fable": ("unicorn",)},
    ),
    "plant": Rule(
        subgroups=("plant-flower", "plant-other"),
        leave_out={
            "a stamp": ("white flower",),
            "not a plant": ("empty nest", "nest with eggs", "mushroom"),
        },
        take_in={"a tree or branches, if decorated": ("Christmas tree", "tanabata tree", "pine decoration")},
    ),
    "produce": Rule(subgroups=("food-fruit", "food-vegetable")),
    "sky": Rule(
        subgroups=("sky & weather",),
        leave_out={
            "a face": (
                *("new moon face", "first quarter moon face", "last quarter moon face", "full moon face"),
                *("sun with face", "wind face"),
            ),
            "a thing on the ground": (
                *("thermometer", "closed umbrella", "umbrella", "umbrella with rain drops"),
                *("umbrella on ground", "snowman", "snowman without snow", "fire", "water wave"),
            ),
            "a sign": ("high voltage",),
        },
    ),
    "tool": Rule(
        subgroups=("tool", "writing"),
        leave_out={
            "a weapon": ("dagger", "crossed swords", "bomb", "boomerang", "bow and arrow", "shield"),
            "not worked with by hand": ("balance scale", "white cane", "link", "chains"),
            "a sheet of paper": ("memo",),
        },
        take_in={
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
        leave_out={
            "beside the road or track": (
                *("station", "bus stop", "motorway", "railway track", "oil drum", "fuel pump"),
                *("horizontal traffic light", "vertical traffic light", "stop sign", "construction"),
            ),
            "a part": ("wheel", "police car light", "seat", "anchor"),
            "worn or stood on": ("skateboard", "roller skate"),
            "carries nobody across": ("ring buoy", "parachute", "satellite"),
        },
    ),
}


def read_emoji(path: Path) -> list[Emoji]:
    """Read the emoji of a single code point from emoji-test.txt, in Unicode's order.

    Skin-tone, hair and gender variants are sequences, and so is what needs a text shaper to draw;
    leaving all sequences out keeps the images the same on every computer.

    Args:
        path: The file emoji-test.txt.

    Returns:
        The fully-qualified emoji of one code point (a variation selector does not count).
    """
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
    """Apply the table `CLASSES`.

    Args:
        emoji: All emoji, in Unicode's order.

    Returns:
        Class name -> its emoji, in Unicode's order.

    Raises:
        ValueError: If two classes claim the same emoji, or a name in the table does not exist.
    """
    known = {one.name for one in emoji}
    owner: dict[str, str] = {}
    classes: dict[str, list[Emoji]] = {}
    for name, rule in CLASSES.items():
        left_out = {one for names in rule.leave_out.values() for one in names}
        taken_in = {one for names in rule.take_in.values() for one in names}
        if unknown := sorted((left_out | taken_in) - known):
            raise ValueError(f"class {name}: no such emoji: {', '.join(unknown)}")
        classes[name] = [
            one
            for one in emoji
            if one.name in taken_in or (one.subgroup in rule.subgroups and one.name not in left_out)
        ]
        for one in classes[name]:
            if owner.setdefault(one.name, name) != name:
                raise ValueError(f"{one.name} is in the classes {owner[one.name]} and {name}")
    return classes


def draw_glyph(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """Draw one code point on a transparent ground.

    Args:
        font: The color font, opened at its native size.
        code: The code point.

    Returns:
        The image cut to what is visible (RGBA), or None if nothing is.
    """
    canvas = Image.new("RGBA", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), (255, 255, 255, 0))
    place = (IMAGE_SIZE // 2, IMAGE_SIZE // 2)
    ImageDraw.Draw(canvas).text(place, chr(code), font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    return canvas.crop(box) if box else None


def frame(glyph: Image.Image) -> Image.Image:
    """Fit a glyph whole into the white square of the final image.

    Args:
        glyph: Image with an alpha channel, of any size.

    Returns:
        RGB image of `IMAGE_SIZE` pixels a side.
    """
    scale = (IMAGE_SIZE - 2 * MARGIN) / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    # Premultiplied alpha, or the color of transparent pixels would bleed into the edges.
    small = glyph.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    image = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), (255, 255, 255, 255))
    image.alpha_composite(small, ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2))
    return image.convert("RGB")


def reduce_grey(image: Image.Image) -> np.ndarray:
    """Reduce an image to 16x16 grey values, to compare it with others.

    Args:
        image: RGB image.

    Returns:
        256 grey values, 0 to 255.
    """
    small = image.convert("L").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()


def encode(image: Image.Image) -> bytes:
    """Encode an image as a small PNG with a palette of 256 colors.

    No value of an image moves by more than a few steps of 255, and the files take less than half the space.

    Args:
        image: RGB image.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    colors = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    # The corner always shows the ground, and the quantiser may have moved it off white.
    palette = colors.getpalette()
    white = colors.getpixel((0, 0))
    palette[3 * white : 3 * white + 3] = [255, 255, 255]
    colors.putpalette(palette)
    colors.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def spread(items: list, most: int) -> list:
    """Choose at most `most` items, evenly spaced along the list.

    Args:
        items: The items, in order.
        most: How many may stay, at least 2.

    Returns:
        The chosen items, in order.
    """
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def draw_classes(
    classes: dict[str, list[Emoji]], font: ImageFont.FreeTypeFont
) -> tuple[dict[str, list[tuple[Emoji, Image.Image]]], list[str]]:
    """Draw all classes, without missing glyphs and near-duplicates.

    Args:
        classes: Class name -> its emoji.
        font: The color font, opened at its native size.

    Returns:
        Class name -> at most `MOST_PER_CLASS` pairs of emoji and image; and a line for each one skipped.
    """
    # What the font draws for a code point that can never have a glyph.
    missing = draw_glyph(font, 0xFFFFE)
    drawn: dict[str, list[tuple[Emoji, Image.Image]]] = {}
    skipped: list[str] = []
    seen_names: list[str] = []
    seen: list[np.ndarray] = []
    for name, members in classes.items():
        kept = []
        for one in members:
            glyph = draw_glyph(font, one.code)
            if glyph is None or (missing is not None and glyph.tobytes() == missing.tobytes()):
                skipped.append(f"{name}: no glyph for {one.name}")
                continue
            image = frame(glyph)
            grey = reduce_grey(image)
            distances = [float(np.abs(grey - other).mean()) for other in seen]
            if distances and min(distances) < NEAR_DUPLICATE:
                twin = seen_names[int(np.argmin(distances))]
                skipped.append(f"{name}: {one.name} looks like {twin}")
                continue
            seen_names.append(one.name)
            seen.append(grey)
            kept.append((one, image))
        drawn[name] = spread(kept, MOST_PER_CLASS)
    return drawn, skipped


def write_class(folder: Path, images: list[tuple[Emoji, Image.Image]]) -> int:
    """Write the images of one class and remove those of an earlier run that are no longer chosen.

    Args:
        folder: The folder of the class; made if it is not there.
        images: Pairs of emoji and image.

    Returns:
        How many bytes the images have together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for one, image in images:
        content = encode(image)
        target = folder / one.file_name
        # Under a temporary name first, so that a stopped run leaves no half image.
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
    """Read the command line.

    Args:
        arguments: The words after the program name; None for those of the process.

    Returns:
        The values `font`, `emoji_test` and `output`.
    """
    parser = argparse.ArgumentParser(description="Draw the emoji image set from the Noto Color Emoji font.")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf (default: %(default)s)")
    parser.add_argument("--emoji-test", type=Path, default=EMOJI_TEST, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder that gets one folder per class (default: the folder of this script)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Draw the set.

    Args:
        arguments: The words after the program name; None for those of the process.

    Returns:
        Exit code: 0, or 2 if a source file is missing.
    """
    options = parse_arguments(arguments)
    for path, package in ((options.font, "fonts-noto-color-emoji"), (options.emoji_test, "unicode-data")):
        if not path.is_file():
            print(f"{path} is missing; on Debian it comes with the package {package}", file=sys.stderr)
            return 2
    # Basic layout: the better one depends on libraries that not every computer has.
    font = ImageFont.truetype(str(options.font), NATIVE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    drawn, skipped = draw_classes(sort_into_classes(read_emoji(options.emoji_test)), font)
    total = 0
    for name, images in drawn.items():
        total += write_class(options.output / name, images)
        print(f"{name:14} {len(images):4}")
    for line in skipped:
        print(f"skipped: {line}")
    count = sum(map(len, drawn.values()))
    print(f"{count} images in {len(drawn)} classes, {total} bytes; {len(skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
