"""Image files with several labels and with numbers, in lists that training takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("=red", "blue", "green")


def colored(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image of noise whose colors have these levels, uint8 of shape (40, 40, 3)."""
    mean = 60 + 45 * np.asarray(levels, "float64") + rng.normal(0, 12, 3)
    return np.clip(mean + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype("uint8")


def write_labels(folder: Path, count: int = 160) -> Path:
    """Write images with none to three labels, and their list."""
    rng = np.random.default_rng(1)
    labels = rng.random((count, 3)) < [0.3, 0.4, 0.5]
    names = ["|".join(np.array(LABELS)[row]) for row in labels]
    images = [colored(row[[0, 2, 1]], rng) for row in labels]  # the order of RGB
    return _write(folder, images, names, "label")


def write_numbers(folder: Path, count: int = 160) -> Path:
    """Write images whose number, from about -60 to 60, is their brightness with an error, and their list."""
    rng = np.random.default_rng(2)
    levels = rng.uniform(0, 3, count)
    numbers = [f"{40 * level - 60 + rng.normal(0, 5):.2f}" for level in levels]
    return _write(folder, [colored(np.full(3, level), rng) for level in levels], numbers, "age")


def _write(folder: Path, images: list[np.ndarray], labels: list[str], column: str) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    rows = [f"{number:03}.png,{label}" for number, label in enumerate(labels)]
    path = folder / "list.csv"
    path.write_text("\n".join([f"path,{column}", *rows, ""]), encoding="utf-8")
    return path
