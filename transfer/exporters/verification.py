"""Compare an exported file with Keras, and decide whether it is good enough."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.display import one_line, quoted
from transfer.common.text import plural

MIN_AGREEMENT = 0.99
"""Smallest fraction of images on which a float file must predict the same class as Keras. Not 1, since an image may
lie between two classes. Ties (see `TIE`) always count as agreement."""

TIE = 1e-3
"""Two classes whose probabilities differ by less than this are tied: rounding decides between them."""

MAX_DIFFERENCE = {None: 1e-3, "float16": 0.2}
"""Largest difference of a probability from Keras'. Rounding in float32 caused 1.4e-5 at most. float16 has three digits;
rounded weights caused up to 0.06 where two classes were close. A mistake, such as images scaled twice, causes more."""

MAX_ACCURACY_LOSS = 0.01
"""Accuracy that an int8 file may lose."""

CHANCE = 1.64
"""Standard deviations that an int8 file may lose on top of `MAX_ACCURACY_LOSS`. With 1.64, 5% of the files that lose
exactly this much are rejected; with 0, half of them. Only images on which one of the two is correct add variance."""


@dataclass(frozen=True)
class Exported:
    """An exported file, with the results of its verification."""

    path: Path
    kind: str
    quantize: str | None  # "float16" or "int8"
    size: int  # bytes of all files that the runtime loads
    num_images: int
    largest_difference: float  # largest difference of a probability from Keras', 0 to 1
    agreement: float  # fraction of images with the same class as Keras, 0 to 1
    accuracy: float  # accuracy of the file, 0 to 1
    keras_accuracy: float
    images_per_second: float
    keras_images_per_second: float
    num_gained: int = 0  # images on which only the file is correct
    num_lost: int = 0  # images on which only Keras is correct

    def __repr__(self) -> str:
        kind = f"{format_name(self.kind, self.quantize)}, {self.size / 1e6:.1f} MB"
        checked = f"same class as Keras for {self.agreement:.1%} of {plural(self.num_images, 'image')}"
        return one_line(self, f"{quoted(str(self.path))}: {kind}; {checked}")

    @property
    def problem(self) -> str:
        """Why the file is not good enough; empty for a good file."""
        if not math.isfinite(self.largest_difference):
            return "it returns NaN or infinity"
        if self.quantize == "int8":
            chance = CHANCE * math.sqrt(self.num_lost + self.num_gained)
            if self.num_lost - self.num_gained > MAX_ACCURACY_LOSS * self.num_images + chance:
                return (
                    f"its accuracy is {self.accuracy:.1%} and that of Keras {self.keras_accuracy:.1%}, a loss of more "
                    f"than {MAX_ACCURACY_LOSS:.0%} that is not due to chance"
                )
            return ""
        if self.agreement < MIN_AGREEMENT:
            return f"it predicts the same class for {self.agreement:.1%}, less than {MIN_AGREEMENT:.0%}"
        bound = MAX_DIFFERENCE[self.quantize]
        if self.largest_difference > bound:
            return f"a probability differs by {self.largest_difference:.2g}, more than {bound:g}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return all values but the path, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    def to_text(self) -> str:
        """Return a line that describes the file and its verification."""
        return (
            f"{format_name(self.kind, self.quantize)}: {self.path}, {self.size / 1e6:.1f} MB. Compared with Keras on "
            f"{self.num_images:,} held-out images: same class for {self.agreement:.1%}; probabilities differ by "
            f"{self.largest_difference:.2g} at most; accuracy {self.accuracy:.1%} (Keras {self.keras_accuracy:.1%}); "
            f"{self.images_per_second:,.0f} images/s (Keras {self.keras_images_per_second:,.0f})."
        )


def format_name(kind: str, quantize: str | None) -> str:
    """Return the name of a format with its quantization, such as "litert int8"."""
    return f"{kind} {quantize}" if quantize else kind


def compare(probabilities: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare a file's probabilities with Keras', both of shape (N, classes); return fields of `Exported`."""
    top = np.sort(expected, axis=1)
    tie = top[:, -1] - top[:, -2] < TIE
    predicted, keras_predicted = probabilities.argmax(axis=1), expected.argmax(axis=1)
    correct, keras_correct = predicted == labels, keras_predicted == labels
    finite = np.isfinite(probabilities).all()
    return {
        "num_images": len(labels),
        "largest_difference": float(np.abs(probabilities - expected).max()) if finite else math.inf,
        "agreement": float(np.mean(tie | (predicted == keras_predicted))),
        "accuracy": float(correct.mean()),
        "keras_accuracy": float(keras_correct.mean()),
        "num_gained": int((correct & ~keras_correct).sum()),
        "num_lost": int((keras_correct & ~correct).sum()),
    }
