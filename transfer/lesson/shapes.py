"""Draw synthetic labeled images of forty kinds of shapes, from a seed.

The classes differ in edges, corners, curves and the arrangement of parts. Color, size, position, background and light
are independent of the class. The demonstration network was pre-trained on these images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral

import numpy as np
from PIL import Image, ImageDraw

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, unknown
from transfer.networks.demo_cnn import IMAGE_SIZE

_CHUNK = (
    64  # images that are colored together; they fit the processor's cache. Each chunk has its own generator.
)
_OVERSAMPLING = 2  # masks are drawn larger and averaged, for smooth edges
_MIN_SIZE = 8

# A part of a figure: "fill" or "line", its ink (1 or 2, the figure's two colors), and its points, shape (N, 2), in a
# square from -1 to 1 with y downwards.
Part = tuple[str, int, np.ndarray]
Figure = Sequence[Part] | Callable[[np.random.Generator], Sequence[Part]]


def _points(*numbers: float) -> np.ndarray:
    return np.array(numbers, "float64").reshape(-1, 2)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _points(left, top, right, top, right, bottom, left, bottom)


def _arc(
    x: float, y: float, radius: float, *, of: tuple[float, float] = (0, 360), flat: float = 1.0
) -> np.ndarray:
    """Return points of a circle or a flat ellipse from one angle to another, clockwise from the right."""
    angle = np.radians(np.linspace(*of, 25 if of[1] - of[0] > 180 else 13))
    return np.stack([x + radius * np.cos(angle), y + radius * flat * np.sin(angle)], axis=1)


def _corners(count: int, outer: float, inner: float | None = None) -> np.ndarray:
    """Return the corners of a regular polygon, or of a star."""
    steps = count if inner is None else 2 * count
    angle = 2 * np.pi * np.arange(steps) / steps - np.pi / 2
    radius = np.full(steps, outer)
    if inner is not None:
        radius[1::2] = inner
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:2]])  # past the first corner, so that it is joined too


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 30)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 17


def _fill(*numbers: float, ink: int = 1) -> Part:
    return "fill", ink, _points(*numbers)


def _line(*numbers: float, ink: int = 1) -> Part:
    return "line", ink, _points(*numbers)


def _face(*, happy: bool) -> Figure:
    mouth = _arc(0, 0.05, 0.5, of=(20, 160)) if happy else _arc(0, 0.75, 0.5, of=(200, 340))
    eyes = [("fill", 2, _arc(x, -0.25, 0.13)) for x in (-0.33, 0.33)]
    return [("fill", 1, _arc(0, 0, 0.92)), *eyes, ("line", 2, mouth)]


def _stripes(angle: float) -> Figure:
    """Return a function that draws bars across the image; bars at 45 degrees lean to a random side."""

    def draw(rng: np.random.Generator) -> list[Part]:
        step = rng.uniform(0.36, 0.7)
        lean = np.radians(angle * (rng.choice([-1, 1]) if angle == 45 else 1))
        turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
        thick = step * rng.uniform(0.35, 0.6)
        tops = np.arange(-2.2, 2.2, step) + rng.uniform(0, step)
        return [("fill", 1, _box(-2.6, top, 2.6, top + thick) @ turn) for top in tops]

    return draw


def _checkers(rng: np.random.Generator) -> list[Part]:
    side = rng.uniform(0.36, 0.6)
    places = np.arange(-4, 4)
    return [
        ("fill", 1, _box(side * x, side * y, side * (x + 1), side * (y + 1)))
        for x in places
        for y in places
        if (x + y) % 2
    ]


def _dots(rng: np.random.Generator) -> list[Part]:
    step = rng.uniform(0.42, 0.65)
    dot, shift = _arc(0, 0, step * rng.uniform(0.22, 0.36))[::2], rng.choice([0.0, 0.5])
    places = np.arange(-3, 4)
    return [("fill", 1, dot + step * np.array([x + shift * (y % 2), y])) for x in places for y in places]


def _lattice(rng: np.random.Generator) -> list[Part]:
    step = rng.uniform(0.45, 0.75)
    lines = [_points(-2, at, 2, at) for at in step * np.arange(-3, 4)]
    return [("line", 1, line) for line in lines] + [("line", 1, line[:, ::-1]) for line in lines]


def _target(rng: np.random.Generator) -> list[Part]:
    rings = int(rng.integers(2, 4))
    step = 0.95 / rings
    return [("line", 1, _closed(_arc(0, 0, step * (i + 1)))) for i in range(rings)]


def _waves(rng: np.random.Generator) -> list[Part]:
    x = np.linspace(-2, 2, 33)
    step, bend = rng.uniform(0.45, 0.7), 0.16 * np.sin(rng.uniform(5, 8) * x + rng.uniform(0, 6))
    return [("line", 1, np.stack([x, bend + step * place], axis=1)) for place in range(-3, 4)]


def _tree(rng: np.random.Generator) -> list[Part]:
    crown = _points(0, -0.95, 0.62, 0.35, -0.62, 0.35) if rng.random() < 0.5 else _arc(0, -0.3, 0.62)
    return [("fill", 2, _box(-0.14, 0.2, 0.14, 0.95)), ("fill", 1, crown)]


def _flower(rng: np.random.Generator) -> list[Part]:
    petals = _corners(int(rng.integers(5, 8)), 0.58)
    return [("fill", 1, _arc(x, y, 0.32)) for x, y in petals] + [("fill", 2, _arc(0, 0, 0.3))]


def _sun(rng: np.random.Generator) -> list[Part]:
    ink, rays = int(rng.integers(1, 3)), _corners(int(rng.integers(8, 12)), 1.0)
    return [("line", ink, np.stack([0.62 * ray, ray])) for ray in rays] + [("fill", 1, _arc(0, 0, 0.48))]


_FRAME, _THREE = _closed(_box(-0.75, -0.75, 0.75, 0.75)), _corners(3, 0.95)
_CROSS = _points(-1, -3, 1, -3, 1, -1, 3, -1, 3, 1, 1, 1, 1, 3, -1, 3, -1, 1, -3, 1, -3, -1, -1, -1) / 3.3
_CRESCENT = np.concatenate([_arc(0, 0, 0.92, of=(40, 320)), _arc(0.36, 0, 0.68, of=(60, 300))[::-1]])
_DROP = np.concatenate([_points(0, -0.98), _arc(0, 0.3, 0.62, of=(-30, 210))])
_S = np.concatenate([_arc(0, -0.42, 0.45, of=(-20, -270)), _arc(0, 0.42, 0.45, of=(-90, 160))])
_SHIRT = _points(
    -0.3, -0.75, 0.3, -0.75, 0.95, -0.35, 0.7, 0.05, 0.45, -0.1, 0.45, 0.85, -0.45, 0.85, -0.45, -0.1
)
_SHIRT = np.concatenate([_SHIRT, _points(-0.7, 0.05, -0.95, -0.35)])
_EARS = [("fill", 1, _points(s * 0.8, -0.95, s * 0.75, -0.1, s * 0.15, -0.5)) for s in (-1, 1)]
_CAT_EYES = [("fill", 2, _arc(s * 0.3, 0, 0.12)) for s in (-1, 1)]
_WHISKERS = [("line", 2, _points(s * 0.2, 0.35, s * 0.95, y)) for s in (-1, 1) for y in (0.25, 0.55)]
_WHEELS = [("fill", 2, _arc(x, 0.45, 0.22)) for x in (-0.5, 0.5)]
_CABIN = _fill(-0.45, -0.1, -0.25, -0.5, 0.3, -0.5, 0.55, -0.1)
_ROOF, _TAIL = _fill(-0.9, -0.15, 0, -0.95, 0.9, -0.15, ink=2), _fill(0.35, 0, 0.98, -0.5, 0.98, 0.5)
_HULL, _SAIL = (
    _fill(-0.9, 0.35, 0.9, 0.35, 0.55, 0.85, -0.55, 0.85),
    _fill(0.05, -0.9, 0.75, 0.2, 0.05, 0.2, ink=2),
)
_BODY, _BRIM = (
    _fill(-0.75, -0.55, 0.55, -0.55, 0.4, 0.8, -0.6, 0.8),
    ("fill", 2, _arc(-0.1, -0.55, 0.65, flat=0.28)),
)
_E = _line(0.55, -0.85, -0.5, -0.85, -0.5, 0.85, 0.55, 0.85)
_H = [_line(-0.55, -0.9, -0.55, 0.9), _line(0.55, -0.9, 0.55, 0.9)]
_PUFFS = [("fill", 1, _arc(x, y, r)) for x, y, r in ((-0.5, 0.15, 0.36), (0, -0.15, 0.48), (0.5, 0.12, 0.38))]

# Name -> its parts, and the largest rotation in degrees.
_FIGURES: dict[str, tuple[Figure, float]] = {
    "disc": ([("fill", 1, _arc(0, 0, 0.88))], 180),
    "ring": ([("line", 1, _closed(_arc(0, 0, 0.82)))], 180),
    "square": ([("fill", 1, _box(-0.75, -0.75, 0.75, 0.75))], 180),
    "frame": ([("line", 1, _FRAME)], 180),
    "triangle": ([("fill", 1, _THREE)], 180),
    "open triangle": ([("line", 1, _closed(_THREE))], 180),
    "star": ([("fill", 1, _corners(5, 1.0, 0.42))], 180),
    "cross": ([("fill", 1, _CROSS)], 180),
    "crescent": ([("fill", 1, _CRESCENT)], 180),
    "heart": ([("fill", 1, _heart())], 40),
    "drop": ([("fill", 1, _DROP)], 40),
    "arrow": ([_fill(-0.9, -0.2, 0.1, -0.2, 0.1, -0.6, 0.95, 0, 0.1, 0.6, 0.1, 0.2, -0.9, 0.2)], 180),
    "zigzag": ([_line(-0.9, 0.5, -0.45, -0.5, 0, 0.5, 0.45, -0.5, 0.9, 0.5)], 180),
    "half disc": ([("fill", 1, _arc(0, -0.4, 0.9, of=(0, 180)))], 180),
    "horizontal stripes": (_stripes(0), 12),
    "vertical stripes": (_stripes(90), 12),
    "diagonal stripes": (_stripes(45), 12),
    "checkers": (_checkers, 180),
    "dots": (_dots, 180),
    "lattice": (_lattice, 180),
    "target": (_target, 180),
    "waves": (_waves, 25),
    "letter A": ([_line(-0.65, 0.9, 0, -0.9, 0.65, 0.9), _line(-0.36, 0.25, 0.36, 0.25)], 20),
    "letter E": ([_E, _line(-0.5, 0, 0.4, 0)], 20),
    "letter H": ([*_H, _line(-0.55, 0, 0.55, 0)], 20),
    "letter S": ([("line", 1, _S)], 20),
    "happy face": (_face(happy=True), 25),
    "sad face": (_face(happy=False), 25),
    "cat": ([("fill", 1, _arc(0, 0.15, 0.75)), *_EARS, *_CAT_EYES, *_WHISKERS], 25),
    "house": (
        [("fill", 1, _box(-0.65, -0.15, 0.65, 0.9)), _ROOF, ("fill", 2, _box(-0.18, 0.3, 0.18, 0.9))],
        20,
    ),
    "tree": (_tree, 20),
    "flower": (_flower, 180),
    "fish": ([("fill", 1, _arc(-0.2, 0, 0.72, flat=0.6)), _TAIL, ("fill", 2, _arc(-0.55, -0.1, 0.11))], 30),
    "car": ([("fill", 1, _box(-0.95, -0.1, 0.95, 0.4)), _CABIN, *_WHEELS], 20),
    "boat": ([_HULL, _line(-0.05, 0.35, -0.05, -0.95, ink=2), _SAIL], 20),
    "sun": (_sun, 180),
    "cup": ([("line", 1, _arc(0.45, 0.1, 0.36, of=(-100, 100))), _BODY, _BRIM], 20),
    "hammer": ([("fill", 2, _box(-0.11, -0.5, 0.11, 0.98)), ("fill", 1, _box(-0.6, -0.9, 0.6, -0.4))], 180),
    "cloud": ([*_PUFFS, ("fill", 1, _box(-0.5, 0.1, 0.5, 0.5))], 15),
    "shirt": ([("fill", 1, _SHIRT)], 20),
}

SHAPES = tuple(_FIGURES)
"""Class names: plain shapes, patterns, letters, and objects made of several parts. Label 0 is the first name."""

_PATTERNS = SHAPES[14:22]
_LETTERS = SHAPES[22:26]  # letters are not mirrored


@explain_arguments()
def make_shapes(
    num_images: int, *, classes: Sequence[str] | None = None, image_size: int = IMAGE_SIZE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labeled images of shapes with random colors, size, position, rotation, background, light and blur.

    All classes have the same number of images, up to one. The order is random, and colors are independent of the class.

    Args:
        num_images: Number of images, 1 or more.
        classes: Some of `SHAPES`; their order sets the labels. None takes all.
        image_size: Height and width in pixels, 8 or more.
        seed: Random seed, 0 or more. The same seed draws the same images.

    Returns:
        Images, uint8 of shape (num_images, image_size, image_size, 3), RGB from 0 to 255; and labels, int64 of shape
        (num_images,), positions in `classes`.

    Raises:
        InputError: A number is out of range, or a class is unknown or repeated.

    Example:
        >>> images, labels = make_shapes(6, classes=["disc", "star"], seed=1)
        >>> images.shape, images.dtype.name, sorted(labels.tolist())
        ((6, 48, 48, 3), 'uint8', [0, 0, 0, 1, 1, 1])
    """
    return make_colored_shapes(num_images, classes=classes, image_size=image_size, seed=seed)[:2]


def make_colored_shapes(
    num_images: int, *, classes: Sequence[str] | None = None, image_size: int = IMAGE_SIZE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images and labels of `make_shapes`, and the background and main color of each image."""
    names = _checked(num_images, classes, image_size, seed)
    labels = np.random.default_rng([seed, 0]).permutation(np.arange(num_images) % len(names)).astype("int64")
    images = np.empty((num_images, image_size, image_size, 3), "uint8")
    colors = np.empty((num_images, 2, 3), "float32")

    def fill(start: int) -> None:
        rng = np.random.default_rng([seed, 1 + start // _CHUNK])
        chunk = slice(start, start + _CHUNK)
        masks = np.stack([_mask(names[label], image_size, rng) for label in labels[chunk]])
        palettes = _palettes(len(masks), rng)
        images[chunk], colors[chunk] = _colored(masks, palettes, rng), palettes[:, :2]

    with ThreadPoolExecutor(2) as pool:  # each chunk depends only on its own generator
        list(pool.map(fill, range(0, num_images, _CHUNK)))
    return images, labels, colors


def _checked(num_images: int, classes: Sequence[str] | None, image_size: int, seed: int) -> list[str]:
    for name, value, least in (
        ("num_images", num_images, 1),
        ("image_size", image_size, _MIN_SIZE),
        ("seed", seed, 0),
    ):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise InputError(f"Expected {name} as a whole number of at least {least}. Received: {value!r}.")
    names = list(SHAPES if classes is None else classes)
    for name in names:
        if name not in _FIGURES:
            raise unknown("shape", name, SHAPES)
    if not names or len(set(names)) < len(names):
        raise InputError(f"Expected one shape or more, each once. Received: {', '.join(names) or 'none'}.")
    return names


def _mask(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one figure: uint8 of shape (size, size, 3), each pixel's coverage by two inks and clutter."""
    figure, most = _FIGURES[name]
    canvas = Image.new("RGB", (size * _OVERSAMPLING, size * _OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    unit = size * _OVERSAMPLING / 2
    scale, stroke = rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.24)
    if name in _PATTERNS and name != "target":
        scale = rng.uniform(0.6, 1.0)
    for kind, ink, points in _clutter(rng):
        _draw(draw, kind, ink, (points + 1) * unit, 0.05 * unit)
    parts = list(figure(rng) if callable(figure) else figure)
    sizes = np.cumsum([len(points) for _, _, points in parts])[:-1]
    mirrored = name not in _LETTERS and rng.random() < 0.5
    place = rng.uniform(-1, 1, 2) * max(0.0, 0.95 - scale)
    turned = np.concatenate([points for _, _, points in parts]) @ _random_transform(
        most, scale, mirrored, rng
    )
    outlined = name not in _PATTERNS and rng.random() < 0.3
    for (kind, ink, _), points in zip(parts, np.split((turned + place + 1) * unit, sizes), strict=True):
        width = stroke * scale * unit
        _draw(draw, kind, ink, points, width)
        if outlined and kind == "fill" and ink == 1:
            _draw(draw, "line", 2, _closed(points), 0.07 * unit)
    return np.asarray(canvas.reduce(_OVERSAMPLING))


def _random_transform(most: float, scale: float, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
    """Return a matrix that scales, stretches and mirrors, then rotates by up to `most` degrees."""
    angle = np.radians(rng.uniform(-most, most))
    wide, shear = rng.uniform(0.82, 1.0), rng.uniform(-0.15, 0.15)
    stretch = np.array([[(-1 if mirrored else 1) * wide, 0], [shear, 1]])
    cos, sin = np.cos(angle), np.sin(angle)
    return scale * stretch @ np.array([[cos, sin], [-sin, cos]])


def _clutter(rng: np.random.Generator) -> Iterator[Part]:
    """Yield a few thin lines and specks for the background of every third image."""
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 4)):
            at = rng.uniform(-1, 1, 2)
            if rng.random() < 0.5:
                yield "line", 3, np.stack([at, at + rng.normal(0, 0.7, 2)])
            else:
                yield "fill", 3, at + _arc(0, 0, rng.uniform(0.04, 0.12))[::3]


_INKS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def _draw(draw: ImageDraw.ImageDraw, kind: str, ink: int, points: np.ndarray, width: float) -> None:
    flat = points.ravel().tolist()
    if kind == "fill":
        draw.polygon(flat, fill=_INKS[ink])
    else:
        draw.line(flat, fill=_INKS[ink], width=max(2, round(width)), joint="curve")


def _colored(masks: np.ndarray, palettes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Color a chunk of masks; each image has its own colors, shading, background, light, blur and noise."""
    count, size = masks.shape[:2]

    def some(low: float, high: float, fraction: float) -> np.ndarray:
        """Return a random strength for a fraction of the images, and 0 for the others."""
        values = rng.uniform(low, high, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < fraction)
        return values.astype("float32")

    # The color axis comes second: numpy is slow with a last axis of three numbers.
    cover = np.ascontiguousarray(masks.transpose(0, 3, 1, 2)).astype("float32") / 255
    colors = palettes[..., None, None]
    image = some(0, 45, 0.5) * _textures(count, size, rng)
    image += colors[:, 0]
    image += some(-70, 70, 0.5) * _ramps(count, size, rng)
    shade = 1 + some(-0.25, 0.25, 0.5) * _ramps(count, size, rng)
    image *= 1 - cover[:, :1] - cover[:, 1:2] - cover[:, 2:]
    for ink in range(3):
        image += (cover[:, ink : ink + 1] * shade) * colors[:, ink + 1]
    image *= 1 + some(-0.3, 0.3, 0.5) * _ramps(count, size, rng)
    _blur(image, some(0, 0.25, 0.6))
    image += some(0, 22, 0.6) * rng.standard_normal((count, 1, size, size), "float32")
    return np.clip(image + 0.5, 0, 255, out=image).astype("uint8").transpose(0, 2, 3, 1)


def _palettes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the colors of background, two inks and clutter, float32 of shape (count, 4, 3); inks contrast."""
    palette = rng.uniform(0, 255, (count, 4, 3))
    plain = rng.random(count) < 0.25  # white paper
    palette[plain, 0] = rng.uniform(235, 255, (int(plain.sum()), 1))
    for ink in (1, 2):
        candidates = rng.uniform(0, 255, (count, 8, 1, 3))
        apart = np.linalg.norm(candidates - palette[:, None, :ink], axis=3).min(axis=2)
        first = np.where(apart > 120, apart + 1000, apart)
        # Choose the first candidate with enough contrast, not the one with the strongest contrast.
        first[:, 1:] -= 1000 * (np.cumsum(apart > 120, axis=1)[:, :-1] > 0)
        palette[:, ink] = candidates[np.arange(count), first.argmax(axis=1), 0]
    return palette.astype("float32")


def _ramps(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return linear ramps across the images in random directions, about -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype("float32")
    line = np.linspace(-1, 1, size, dtype="float32")
    return (np.cos(angle) * line[None, None, :] + np.sin(angle) * line[None, :, None])[:, None]


def _textures(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return coarse color textures: noise on a 7 x 7 grid, interpolated linearly."""
    grid = rng.standard_normal((count, 3, 7, 7)).astype("float32")
    at = np.linspace(0, 6, size)[:, None] - np.arange(7)
    weights = np.maximum(0, 1 - np.abs(at)).astype("float32")
    return weights @ grid @ weights.T


def _blur(images: np.ndarray, strength: np.ndarray) -> None:
    """Blur in place, first vertically and then horizontally; a strength of 0.25 weighs pixels 1, 2, 1."""
    for turned in (images, images.swapaxes(2, 3)):
        middle = turned[:, :, 1:-1]
        middle += strength * (turned[:, :, 2:] + turned[:, :, :-2] - 2 * middle)
