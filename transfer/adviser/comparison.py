"""Comparison of networks for some images, by cross-validated accuracy and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import keras

from transfer.adviser.advise import MIN_IMAGES, choose_heads, head_evidence, probe_sample
from transfer.adviser.sample_features import extract_sample
from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import ImageData, check_data, check_one_class
from transfer.networks.backbones import load_backbone
from transfer.networks.graphs import analyze

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Candidate:
    """Accuracy and cost of a network with its best head."""

    model: str
    image_size: int
    cut: str
    accuracy: float
    standard_error: float
    seconds_per_image: float | None  # of a forward pass on this machine; None if the features were cached
    parameters: int

    def __repr__(self) -> str:
        return display.one_line(self, ", ".join(self.cells()))

    def cells(self) -> tuple[str, ...]:
        """Return the values as text, for a row of a table."""
        time = "cached" if self.seconds_per_image is None else f"{1000 * self.seconds_per_image:.1f}"
        accuracy, size = f"{self.accuracy:.1%} +- {self.standard_error:.1%}", f"{self.parameters / 1e6:.1f} M"
        late = self.cut.count(",")  # blocks before the last layer
        cut = f"last {late} blocks" if late else self.cut
        return self.model, cut, str(self.image_size), accuracy, size, time


class Comparison(list[Candidate]):
    """The candidates of `compare`, the most accurate first."""

    def to_text(self) -> str:
        """Return the candidates as a table."""
        return self._table().to_text() + "\n"

    def to_json(self) -> str:
        """Return the candidates as JSON text."""
        return json.dumps([asdict(one) for one in self], indent=2) + "\n"

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the candidates as a pandas data frame, one row per network."""
        names = [one.name for one in fields(Candidate)]
        return display.data_frame({name: [getattr(one, name) for one in self] for name in names})

    def _table(self) -> display.Table:
        header = ("network", "head on", "pixels", "accuracy", "parameters", "ms per image")
        return display.Table(header, [one.cells() for one in self], left=2)

    def __repr__(self) -> str:
        best = f"; first {self[0].model}, accuracy {self[0].accuracy:.1%}" if self else ""
        return display.one_line(self, plural(len(self), "network") + best)

    def _repr_html_(self) -> str:
        return display.to_html(self._table())


@explain_arguments()
def compare(
    data: ImageData,
    models: Sequence[str],
    *,
    weights: Mapping[str, str] | None = None,
    image_size: int | None = None,
    max_images: int = 500,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
) -> Comparison:
    """Rank networks by the cross-validated accuracy of a head on each.

    Args:
        data: images from `load_data`. Only training images are used.
        models: names of networks, as for `load_backbone`.
        weights: weights of each network by name, `"pretrained"` by default.
        image_size: height and width in pixels. None is the size that each network was trained at.
        max_images: largest number of training images to use.
        engine: engine that runs the networks, one of `ENGINES`.
        cache: feature cache. None is the user's default cache.
        seed: random seed of the sample.

    Returns:
        The candidates, the most accurate first. Candidates within one standard error of the best are sorted by speed.
        The list has the methods `to_text()`, `to_json()` and `to_dataframe()`.

    Raises:
        InputError: `data` is not `ImageData`, a name is unknown, or there are too few images for cross-validation.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> options = {"weights": {"MobileNetV2": "none"}, "image_size": 32, "max_images": 60}
        >>> [candidate.model for candidate in compare(load_data("emoji"), ["MobileNetV2"], **options)]
        ['MobileNetV2']
    """
    check_data(data, "compare(data, models)")
    check_one_class(data, "compare(data, models)")
    candidates = []
    for name in dict.fromkeys(models):
        base = load_backbone(name, weights=(weights or {}).get(name, "pretrained"), image_size=image_size)
        sample = extract_sample(data, base, max_images=max_images, engine=engine, cache=cache, seed=seed)
        curve, _ = probe_sample(sample, seed)
        if curve is None:
            raise InputError(
                f"Expected {MIN_IMAGES} training images or more, for cross-validation. Received: "
                f"{len(sample.labels)}. Add images."
            )
        network = analyze(base)
        head = head_evidence(choose_heads(sample, network, curve.cut, seed), network)[0]
        parameters = keras.Model(base.inputs, network.output(network.last_layer)).count_params()
        candidates.append(
            Candidate(
                model=name,
                image_size=sample.image_size[0],
                cut=head.cut,
                accuracy=head.accuracy,
                standard_error=head.standard_error,
                seconds_per_image=sample.seconds_per_image,
                parameters=parameters,
            )
        )
    best = max(candidates, key=lambda one: one.accuracy)
    near = [one for one in candidates if best.accuracy - one.accuracy <= best.standard_error]
    rest = [one for one in candidates if one not in near]
    near.sort(key=lambda one: (one.seconds_per_image or 0.0, -one.accuracy))
    return Comparison([*near, *sorted(rest, key=lambda one: -one.accuracy)])
