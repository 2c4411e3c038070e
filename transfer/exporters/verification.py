"""Whether an exported file says what Keras says, and what it costs where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEAST_AGREEMENT = 0.99
"""Share of images of which a float file must name the class that Keras names. One in a hundred, since an image may
lie between two classes; those closer than `TIE` count as agreeing in any case."""

TIE = 1e-3
"""Two classes whose probabilities differ by less are equally good answers: rounding decides between them."""

MOST_DIFFERENCE = {None: 1e-3, "float16": 0.2}
"""Most that a probability may differ. In float32 rounding moved it by 1.4e-5 at most. float16 has three digits, and
weights rounded so moved it by up to 0.06 where two classes were close. A mistake, such as images scaled twice, moves
most of them by more, and names other classes too."""

MOST_LOST = 0.01
"""Accuracy that an int8 file may lose: below it, people would not notice."""

DOUBT = 1.64
"""Standard deviations of chance that int8 is given besides, so that of files that lose exactly `MOST_LOST`, 5% are
refused and not half. Chance is in the images that one names rightly and the other does not."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and what its check found."""

    path: Path
    kind: str
    # None, `"float16"` or `"int8"`.
    quantize: str | None
    # Bytes on disk of all that the runtime loads.
    size: int
    num_images: int
    # Of a probability from Keras', 0 to 1.
    largest_difference: float
    # Share of images of which it names the same class as Keras, 0 to 1.
    agreement: float
    # Of the file, 0 to 1.
    accuracy: float
    keras_accuracy: float
    images_per_second: float
    keras_images_per_second: float
    num_gained: int = 0
    num_lost: int = 0

    @property
    def problem(self) -> str:
        """Why the file is no good; empty where it is."""
        if not math.isfinite(self.largest_difference):
            return "it gives NaN or infinity"
        if self.quantize == "int8":
            chance = DOUBT * math.sqrt(self.num_lost + self.num_gained)
            if self.num_lost - self.num_gained > MOST_LOST * self.num_images + chance:
                return (
                    f"its accuracy is {self.accuracy:.1%}, Keras' {self.keras_accuracy:.1%}: more than "
                    f"{MOST_LOST:.0%} and chance below"
                )
            return ""
        bound = MOST_DIFFERENCE[self.quantize]
        if self.agreement < LEAST_AGREEMENT:
            return f"it names the class that Keras names for {self.agreement:.1%}, not {LEAST_AGREEMENT:.0%}"
        if self.largest_difference > bound:
            return f"a probability differs by {self.largest_difference:.2g}, more than {bound:g}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Give it for programs, without the path."""
        names = [name for name in self.__dataclass_fields__ if name != "path"]
        return {name: getattr(self, name) for name in names}

    def to_text(self) -> str:
        """Give it as a line for people."""
        what = f"{self.kind} {self.quantize}" if self.quantize else self.kind
        return (
            f"{what}: {self.path}, {self.size / 1e6:.1f} MB. On {self.num_images:,} held-out images it names the "
            f"class that Keras names for {self.agreement:.1%}; a probability differs by {self.largest_difference:.2g} "
            f"at most; accuracy {self.accuracy:.1%} (Keras {self.keras_accuracy:.1%}); "
            f"{self.images_per_second:,.0f} images/s (Keras {self.keras_images_per_second:,.0f})."
        )


def compare(found: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare an exported file's probabilities with Keras'."""
    top = np.sort(expected, axis=1)
    tie = top[:, -1] - top[:, -2] < TIE
    right, was_right = found.argmax(axis=1) == labels, expected.argmax(axis=1) == labels
    difference = float(np.abs(found - expected).max())
    return {
        "num_images": len(labels),
        "largest_difference": difference if np.isfinite(found).all() else math.inf,
        "agreement": float(np.mean(tie | (found.argmax(axis=1) == expected.argmax(axis=1)))),
        "accuracy": float(right.mean()),
        "keras_accuracy": float(was_right.mean()),
        "num_gained": int((right & ~was_right).sum()),
        "num_lost": int((was_right & ~right).sum()),
    }
