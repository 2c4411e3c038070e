"""How transferable each layer is: the experiment of Yosinski et al. 2014 (arXiv:1411.1792), on any network and data.

Two networks are trained, one on the classes A, one on the classes B. For each layer n, the first n layers of one of
them are put under fresh layers, and that is trained on B: kept as they are (`BnB`, `AnB`), or trained further (`BnB+`,
`AnB+`). What `BnB` loses against the network B is what layers had learnt together (co-adaptation); what `AnB` loses
beyond that is how specific layer n is to A.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

from transfer.cases.builders import large_different, unfreeze
from transfer.cases.policies import SCRATCH_LEARNING_RATE
from transfer.common.errors import InputError, unknown
from transfer.frozen.extraction import input_size
from transfer.frozen.shared_pass import BATCH_SIZE as LARGE_BATCH
from transfer.images.datasets import ImageData
from transfer.images.pipeline import make_dataset
from transfer.images.splitting import Split
from transfer.networks import graphs, surgery
from transfer.networks.backbones import block_ends, load_backbone
from transfer.training.schedules import WarmupCosine

KINDS = ("BnB", "BnB+", "AnB", "AnB+")
"""From whom the first n layers are, and with `+`, that they train on."""

_MOST_LAYERS = 8  # of a network with no more layers than these, each is looked at

State = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Point:
    """One network of the experiment."""

    kind: str
    layer: str
    seed: int
    # On the test images of B, 0 to 1.
    accuracy: float


@dataclass(frozen=True)
class Transferability:
    """How well layers of one network serve another.

    Attributes:
        network: its name.
        layers: the last layer that was taken over, from the first to the last.
        train: images of B to train on, in the mean over the seeds.
        test: images of B that accuracies were measured on, likewise.
        chance: accuracy of guessing one of B's classes.
        base: accuracy of the network B itself, by seed.
        points: all others.
    """

    network: str
    layers: tuple[str, ...]
    train: int
    test: int
    chance: float
    base: tuple[float, ...]
    points: tuple[Point, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds were looked at, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if any(point.kind == kind for point in self.points))

    def accuracies(self, kind: str, layer: str) -> list[float]:
        """Give one kind's accuracies at one layer, by seed."""
        return [point.accuracy for point in self.points if (point.kind, point.layer) == (kind, layer)]

    def means(self, kind: str) -> list[float]:
        """Give one kind's mean accuracy at each layer."""
        return [float(np.mean(self.accuracies(kind, layer))) for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Give everything, and the means by kind, for JSON."""
        return {**asdict(self), "means": {kind: self.means(kind) for kind in self.kinds}}

    def to_text(self) -> str:
        """Write the means as a table, a row a layer."""
        base = float(np.mean(self.base))
        wide = max(len("layer n"), *map(len, self.layers))
        seeds = f"{len(self.base)} seed{'s' if len(self.base) > 1 else ''}"
        lines = [
            f"{self.network}: {self.train:,} images to train on, {self.test:,} to measure on, {seeds}. "
            f"The network B itself: {base:.1%}; chance: {self.chance:.1%}.",
            "layer n".ljust(wide) + "".join(f"{kind:>8}" for kind in self.kinds),
        ]
        columns = [self.means(kind) for kind in self.kinds]
        for place, layer in enumerate(self.layers):
            lines.append(layer.ljust(wide) + "".join(f"{column[place]:>8.1%}" for column in columns))
        return "\n".join(lines) + "\n"


def transferability(
    data: ImageData,
    other: ImageData | None = None,
    *,
    base: keras.Model | None = None,
    layers: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    epochs: int = 8,
    batch_size: int = 32,
    learning_rate: float = SCRATCH_LEARNING_RATE,
    seeds: Sequence[int] = (0,),
    preprocessing: str | None = None,
) -> Transferability:
    """Measure how well the first n layers of a network serve another task, for each n.

    All networks start from random weights, their own but for the layers that they take over, and train equally long,
    with Adam and a rate that falls to 0.

    Args:
        data: the images of B, or those of A and B.
        other: the images of A; None draws half of the classes of `data` for A, at random, others for each seed, and
            leaves the other half to B.
        base: the network, whose weights do not count; it stays as it is. None is the DemoCNN.
        layers: the last layers to take over, such that everything runs through each. None is each layer with weights of
            a small network, but the classifier, and the ends of the blocks of a larger one.
        kinds: some of `KINDS`.
        epochs: passes over the training images, of each network, 1 or more.
        batch_size: images per step, 1 or more.
        learning_rate: of Adam, above 0.
        seeds: one repetition of the experiment for each.
        preprocessing: a key of `backbones.PREPROCESSING`, needed for a network of one's own.

    Returns:
        The accuracies, on the test images of B.

    Raises:
        InputError: an unknown kind or layer, a layer that something runs past, fewer than four classes to halve, a
            number that is out of range.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> from transfer.lesson.shapes import SHAPES, make_shapes
        >>> images, labels = make_shapes(60, classes=SHAPES[:4])
        >>> data = load_data((images, labels), class_names=SHAPES[:4], near_duplicates=False)
        >>> found = transferability(data, layers=["conv1"], kinds=["AnB"], epochs=1)
        >>> [(point.kind, point.layer) for point in found.points]
        [('AnB', 'conv1')]
    """
    base = load_backbone("DemoCNN", weights="none") if base is None else base
    layers = _checked_layers(base, layers)
    _check(data, other, kinds, epochs, batch_size, seeds)
    lab = _Lab(base, epochs, batch_size, learning_rate, preprocessing)
    results = []
    for seed in seeds:
        ours, theirs = (data, other) if other is not None else _halves(data, seed)
        results.append((_experiment(lab, ours, theirs, layers, kinds, seed), ours))
    return Transferability(
        network=base.name,
        layers=layers,
        train=round(float(np.mean([len(ours.train) for _, ours in results]))),
        test=round(float(np.mean([len(ours.test) for _, ours in results]))),
        chance=1 / results[0][1].num_classes,
        base=tuple(accuracy for (accuracy, _), _ in results),
        points=tuple(point for (_, points), _ in results for point in points),
    )


def _experiment(
    lab: _Lab, ours: ImageData, theirs: ImageData, layers: Sequence[str], kinds: Sequence[str], seed: int
) -> tuple[float, list[Point]]:
    """Train the networks A and B, then all that take layers over from them."""
    turns = itertools.count(1000 * seed)
    donors = {}
    donors["B"], accuracy = lab.train(ours, {}, None, frozen=False, seeds=(next(turns), seed))
    if any(kind.startswith("A") for kind in kinds):
        donors["A"], _ = lab.train(theirs, {}, None, frozen=False, seeds=(next(turns), seed))
    points = []
    for layer in layers:
        # The fresh layers are the same for all kinds: what differs is what was taken over.
        seeds = next(turns), seed
        for kind in kinds:
            frozen = not kind.endswith("+")
            _, right = lab.train(ours, donors[kind[0]], layer, frozen=frozen, seeds=seeds)
            points.append(Point(kind, layer, seed, right))
    return accuracy, points


class _Lab:
    """Builds and trains the networks, each kind of network once: to compile takes longer than to train a
    small one."""

    def __init__(
        self, base: keras.Model, epochs: int, batch_size: int, learning_rate: float, preprocessing: str | None
    ) -> None:
        self.base, self.epochs, self.batch_size = base, epochs, batch_size
        self.learning_rate, self.preprocessing = learning_rate, preprocessing
        self._read: dict[int, tuple[ImageData, tuple[Any, Any]]] = {}
        self._born: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self._built: dict[tuple[int, str | None], tuple[keras.Model, list[np.ndarray]]] = {}

    def train(
        self, data: ImageData, donor: State, layer: str | None, *, frozen: bool, seeds: tuple[int, int]
    ) -> tuple[State, float]:
        """Train a network whose layers up to `layer` are the donor's; give its weights and its accuracy."""
        model = self._fresh(data.num_classes, layer if frozen else None, seeds[0])
        for name in _up_to(model, layer) if layer else ():
            if name in donor:
                model.get_layer(name).set_weights(donor[name])
        train, test = self._batches(data, input_size(model, data), seeds[1])
        steps = self.epochs * -(-len(data.train) // self.batch_size)
        schedule = WarmupCosine(peak=self.learning_rate, steps=steps)
        # The data set shuffles.
        model.fit(train, epochs=self.epochs, callbacks=[schedule], shuffle=False, verbose=0)
        right = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        return {one.name: one.get_weights() for one in model.layers if one.weights}, float(right)

    def _batches(self, data: ImageData, size: tuple[int, int], seed: int) -> tuple[Any, Any]:
        """Give the training and the test images; they are decoded once for all networks of a task."""
        if id(data) not in self._read:
            batches: dict[str, Any] = {"batch_size": self.batch_size, "training": True, "seed": seed}
            train = make_dataset(data.train, image_size=size, **batches)
            test = make_dataset(data.test, image_size=size, batch_size=LARGE_BATCH, cache=True)
            self._read[id(data)] = data, (train, test)  # who is held keeps his id
        return self._read[id(data)][1]

    def _fresh(self, classes: int, frozen: str | None, seed: int) -> keras.Model:
        """Give a network with fresh weights and a fresh optimizer; what is up to `frozen` does not
        train."""
        if (classes, frozen) not in self._built:
            model = self._build(classes, frozen)
            model.optimizer.build(model.trainable_variables)
            self._built[classes, frozen] = model, _values(model.optimizer.variables)
        model, optimizer = self._built[classes, frozen]
        if self._born is None or self._born[0] != (classes, seed):
            fresh = surgery.clone(model, weights="random", seed=seed).get_weights()
            self._born = (classes, seed), fresh
        model.set_weights(self._born[1])
        for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        return model

    def _build(self, classes: int, frozen: str | None) -> keras.Model:
        rate = self.learning_rate
        model = large_different(
            self.base, classes, init="random", learning_rate=rate, preprocessing=self.preprocessing
        )
        if frozen is not None:
            names = [node.op.name for node in graphs.graph(model)]
            behind = names[names.index(frozen) + 1]
            unfreeze(model, from_layer=behind, learning_rate=rate, pin_batchnorm=False)
        return model


def _values(variables: Sequence[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _up_to(model: keras.Model, layer: str) -> list[str]:
    """Name everything that a layer's output is made by."""
    return [node.op.name for node in graphs.graph(surgery.slice_at(model, layer))][1:]


def _checked_layers(base: keras.Model, layers: Sequence[str] | None) -> tuple[str, ...]:
    nodes = graphs.graph(base)
    last = graphs.layer_before_classifier(base)
    names = [node.op.name for node in nodes]
    if layers is None:
        classifier = names[names.index(last) + 1 :]
        layers = [node.op.name for node in nodes if getattr(node.op, "weights", ())]
        layers = [name for name in layers if name not in classifier]
        if len(layers) > _MOST_LAYERS:
            layers = list(dict.fromkeys([*block_ends(base), last]))
    necks = [names[place] for place in graphs.bottlenecks(nodes)[1:]]
    for name in layers:
        graphs.find(base, name)
        if name not in necks or names.index(name) > names.index(last):
            raise InputError(
                f"Expected layers that everything before the classifier runs through. Received: {name!r}. Take the "
                "end of a block, such as backbones.block_ends lists."
            )
    if not layers:
        raise InputError("Expected the name of at least one layer. Received none.")
    return tuple(sorted(set(layers), key=names.index))


def _check(
    data: ImageData,
    other: ImageData | None,
    kinds: Sequence[str],
    epochs: int,
    batch_size: int,
    seeds: Sequence[int],
) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    if not kinds or not seeds:
        raise InputError(f"Expected one kind and one seed, or more. Received: {list(kinds)}, {list(seeds)}.")
    if epochs < 1 or batch_size < 1 or min(seeds) < 0:
        raise InputError(
            "Expected epochs and batch_size of 1 or more, and seeds of 0 or more. Received: "
            f"{epochs}, {batch_size}, {list(seeds)}."
        )
    if other is None and data.num_classes < 4:
        raise InputError(
            f"Expected 4 classes or more, two for each half. Received: {data.num_classes}. Give the other task's "
            "images, as a second argument."
        )


def _halves(data: ImageData, seed: int) -> tuple[ImageData, ImageData]:
    """Give half of the classes, drawn at random, and the other half; of an odd number one is left out."""
    order = np.random.default_rng(seed).permutation(data.num_classes)
    half = data.num_classes // 2
    return _some(data, np.sort(order[:half])), _some(data, np.sort(order[half : 2 * half]))


def _some(data: ImageData, classes: np.ndarray) -> ImageData:
    number = np.full(data.num_classes, -1)
    number[classes] = np.arange(len(classes))

    def of(split: Split) -> Split:
        part = split.take(np.flatnonzero(number[split.labels] >= 0))
        return replace(part, labels=number[part.labels])

    return replace(
        data,
        class_names=tuple(data.class_names[i] for i in classes),
        train=of(data.train),
        val=of(data.val),
        test=of(data.test),
    )
