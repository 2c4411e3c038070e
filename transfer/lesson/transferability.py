"""Measure the transferability of each layer of a network (Yosinski et al. 2014, arXiv:1411.1792).

One network is trained on task A and one on task B. For each layer n, the first n layers of one of them get new upper
layers, and the result is trained on B: with the transferred layers frozen (`BnB`, `AnB`) or fine-tuned (`BnB+`,
`AnB+`). The loss of `BnB` against network B shows that its layers were co-adapted. The further loss of `AnB` shows how
specific layer n is to task A.
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
from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, unknown
from transfer.common.text import plural
from transfer.frozen.extraction import input_size
from transfer.frozen.shared_pass import BATCH_SIZE as LARGE_BATCH
from transfer.images.datasets import ImageData
from transfer.images.pipeline import make_dataset
from transfer.images.splitting import Split
from transfer.networks import graphs, surgery
from transfer.networks.backbones import load_backbone
from transfer.training.schedules import WarmupCosine

KINDS = ("BnB", "BnB+", "AnB", "AnB+")
"""Task from which the first n layers come; with `+`, they are fine-tuned."""

_MAX_LAYERS = 8  # a network with more layers is measured at the ends of its blocks

Weights = dict[str, list[np.ndarray]]
"""Weights by layer name."""


@dataclass(frozen=True)
class Point:
    """One network of the experiment."""

    kind: str
    layer: str
    seed: int
    accuracy: float  # on the test images of B, 0 to 1


@dataclass(frozen=True)
class Transferability:
    """Accuracy on task B by transferred layer and kind of transfer.

    Attributes:
        network: Name of the network.
        layers: Last transferred layers, in the order of the network.
        train: Number of training images of B, mean over the seeds.
        test: Number of test images of B, mean over the seeds.
        chance: Accuracy of a random guess, 0 to 1.
        base: Accuracy of network B itself for each seed, 0 to 1.
        points: Accuracy of every other network.

    Example:
        >>> points = (Point("AnB", "conv1", 0, 0.25), Point("AnB", "conv1", 1, 0.75))
        >>> Transferability("net", ("conv1",), 10, 5, 0.5, (0.75, 1.0), points).means("AnB")
        [0.5]
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
        """The measured kinds, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if any(point.kind == kind for point in self.points))

    def accuracies(self, kind: str, layer: str) -> list[float]:
        """Return the accuracies of a kind at a layer, one per seed."""
        return [point.accuracy for point in self.points if (point.kind, point.layer) == (kind, layer)]

    def means(self, kind: str) -> list[float]:
        """Return the mean accuracy of a kind at each layer."""
        return [float(np.mean(self.accuracies(kind, layer))) for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Return all values, and the means by kind, for JSON."""
        return {**asdict(self), "means": {kind: self.means(kind) for kind in self.kinds}}

    def to_text(self) -> str:
        """Return a table of the means, one row per layer."""
        base = float(np.mean(self.base))
        text = (
            f"{self.network}: {plural(self.train, 'training image')}, {plural(self.test, 'test image')}, "
            f"{plural(len(self.base), 'seed')}. Accuracy of network B: {base:.1%}; chance: {self.chance:.1%}."
        )
        return f"{text}\n{self._table().to_text()}\n"

    def _table(self) -> display.Table:
        columns = [[f"{mean:.1%}" for mean in self.means(kind)] for kind in self.kinds]
        return display.Table(("layer n", *self.kinds), [*zip(self.layers, *columns, strict=True)])

    def __repr__(self) -> str:
        kinds = (
            f"{plural(len(self.layers), 'layer')}, {plural(len(self.base), 'seed')}, {', '.join(self.kinds)}"
        )
        return display.one_line(
            self, f"{display.quoted(self.network)}: {kinds}; network B {np.mean(self.base):.1%}"
        )

    def _repr_html_(self) -> str:
        return display.to_html(repr(self), self._table())


@explain_arguments()
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
    """Measure the transferability of the first n layers of a network to another task, for each n.

    All networks train for the same number of epochs with Adam and a cosine learning rate. Layers that are not
    transferred start from random weights.

    Args:
        data: Images of task B, or of both tasks.
        other: Images of task A. None assigns a random half of the classes of `data` to A and the other half to B,
            with a new draw for each seed.
        base: The network; it is not changed, and its weights are not used. None is the DemoCNN.
        layers: Last layers to transfer; every path from the input to the output must pass through each of them. None
            is each layer with weights of a small network except its classifier, or the block ends of a larger one.
        kinds: Some of `"BnB"`, `"BnB+"`, `"AnB"` and `"AnB+"`.
        epochs: Epochs for each network, 1 or more.
        batch_size: Images per step, 1 or more.
        learning_rate: Peak learning rate of Adam, above 0.
        seeds: Random seeds, 0 or more; the experiment is repeated for each.
        preprocessing: Input scaling that your own network expects: `"none"`, `"tf"`, `"torch"`, `"caffe"` or `"lite"`.

    Returns:
        The accuracies on the test images of B.

    Raises:
        InputError: A kind or layer is unknown, a path bypasses a layer, a number is out of range, or there are fewer
            than four classes to divide.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> from transfer.lesson.shapes import SHAPES, make_shapes
        >>> images, labels = make_shapes(60, classes=SHAPES[:4])
        >>> data = load_data((images, labels), class_names=SHAPES[:4], near_duplicates=False)
        >>> result = transferability(data, layers=["conv1"], kinds=["AnB"], epochs=1)
        >>> [(point.kind, point.layer) for point in result.points]
        [('AnB', 'conv1')]
    """
    base = load_backbone("DemoCNN", weights="none") if base is None else base
    layers = _check_layers(base, layers)
    _check(data, other, kinds, epochs, batch_size, seeds)
    trainer = _Trainer(base, epochs, batch_size, learning_rate, preprocessing)
    results = []
    for seed in seeds:
        task_b, task_a = (data, other) if other is not None else _split_classes(data, seed)
        results.append((_experiment(trainer, task_b, task_a, layers, kinds, seed), task_b))
    return Transferability(
        network=base.name,
        layers=layers,
        train=round(float(np.mean([len(task_b.train) for _, task_b in results]))),
        test=round(float(np.mean([len(task_b.test) for _, task_b in results]))),
        chance=1 / results[0][1].num_classes,
        base=tuple(accuracy for (accuracy, _), _ in results),
        points=tuple(point for (_, points), _ in results for point in points),
    )


def _experiment(
    trainer: _Trainer,
    task_b: ImageData,
    task_a: ImageData,
    layers: Sequence[str],
    kinds: Sequence[str],
    seed: int,
) -> tuple[float, list[Point]]:
    """Train networks A and B, then every network that takes layers from them."""
    init_seeds = itertools.count(1000 * seed)
    donors = {}
    donors["B"], accuracy = trainer.train(task_b, {}, None, frozen=False, seeds=(next(init_seeds), seed))
    if any(kind.startswith("A") for kind in kinds):
        donors["A"], _ = trainer.train(task_a, {}, None, frozen=False, seeds=(next(init_seeds), seed))
    points = []
    for layer in layers:
        # The new layers have the same initial weights for all kinds, so only the transferred layers differ.
        seeds = next(init_seeds), seed
        for kind in kinds:
            frozen = not kind.endswith("+")
            _, right = trainer.train(task_b, donors[kind[0]], layer, frozen=frozen, seeds=seeds)
            points.append(Point(kind, layer, seed, right))
    return accuracy, points


class _Trainer:
    """Builds and trains the networks; each kind is compiled once, which takes longer than to train a small one."""

    def __init__(
        self, base: keras.Model, epochs: int, batch_size: int, learning_rate: float, preprocessing: str | None
    ) -> None:
        self.base, self.epochs, self.batch_size = base, epochs, batch_size
        self.learning_rate, self.preprocessing = learning_rate, preprocessing
        self._data: dict[int, tuple[ImageData, tuple[Any, Any]]] = {}
        self._initial: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self._models: dict[tuple[int, str | None], tuple[keras.Model, list[np.ndarray]]] = {}

    def train(
        self, data: ImageData, donor: Weights, layer: str | None, *, frozen: bool, seeds: tuple[int, int]
    ) -> tuple[Weights, float]:
        """Train a network with the donor's layers up to `layer`; return its weights and its accuracy."""
        model = self._new(data.num_classes, layer if frozen else None, seeds[0])
        for name in _up_to(model, layer) if layer else ():
            if name in donor:
                model.get_layer(name).set_weights(donor[name])
        train, test = self._batches(data, input_size(model, data), seeds[1])
        steps = self.epochs * -(-len(data.train) // self.batch_size)
        schedule = WarmupCosine(peak=self.learning_rate, steps=steps)
        # The data set is shuffled already.
        model.fit(train, epochs=self.epochs, callbacks=[schedule], shuffle=False, verbose=0)
        right = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        return {one.name: one.get_weights() for one in model.layers if one.weights}, float(right)

    def _batches(self, data: ImageData, size: tuple[int, int], seed: int) -> tuple[Any, Any]:
        """Return the training and test batches, which all networks of a task share."""
        if id(data) not in self._data:
            batches: dict[str, Any] = {"batch_size": self.batch_size, "training": True, "seed": seed}
            train = make_dataset(data.train, image_size=size, **batches)
            test = make_dataset(data.test, image_size=size, batch_size=LARGE_BATCH, cache=True)
            self._data[id(data)] = data, (train, test)  # keeps `data` alive, so that its id stays unique
        return self._data[id(data)][1]

    def _new(self, classes: int, frozen: str | None, seed: int) -> keras.Model:
        """Return a network with new weights and a new optimizer, frozen up to the layer `frozen`."""
        if (classes, frozen) not in self._models:
            model = self._build(classes, frozen)
            model.optimizer.build(model.trainable_variables)
            self._models[classes, frozen] = model, _values(model.optimizer.variables)
        model, optimizer = self._models[classes, frozen]
        if self._initial is None or self._initial[0] != (classes, seed):
            fresh = surgery.clone(model, weights="random", seed=seed).get_weights()
            self._initial = (classes, seed), fresh
        model.set_weights(self._initial[1])
        for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        return model

    def _build(self, classes: int, frozen: str | None) -> keras.Model:
        rate = self.learning_rate
        model = large_different(
            self.base, classes, init="random", learning_rate=rate, preprocessing=self.preprocessing
        )
        if frozen is not None:
            network = graphs.analyze(model)
            behind = network.names[network.position(frozen) + 1]
            unfreeze(model, from_layer=behind, learning_rate=rate, pin_batchnorm=False)
        return model


def _values(variables: Sequence[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _up_to(model: keras.Model, layer: str) -> list[str]:
    """Return the names of all layers that the output of a layer depends on."""
    return graphs.analyze(surgery.slice_at(model, layer)).names[1:]


def _check_layers(base: keras.Model, layers: Sequence[str] | None) -> tuple[str, ...]:
    network = graphs.analyze(base)
    last = network.position(network.last_layer)
    if layers is None:
        layers = [node.op.name for node in network.nodes[: last + 1] if getattr(node.op, "weights", ())]
        if len(layers) > _MAX_LAYERS:
            layers = list(dict.fromkeys([*network.block_ends, network.last_layer]))
    bottlenecks = graphs.bottlenecks(network.nodes)[1:]
    for name in layers:
        if network.position(name) not in bottlenecks or network.position(name) > last:
            raise InputError(
                f"Expected layers before the classifier that every path passes through. Received: {name!r}. Choose the "
                "end of a block, see block_ends."
            )
    if not layers:
        raise InputError("Expected the name of at least one layer. Received none.")
    return tuple(sorted(set(layers), key=network.position))


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
        raise InputError(
            f"Expected one kind or more, and one seed or more. Received: {list(kinds)}, {list(seeds)}."
        )
    if epochs < 1 or batch_size < 1 or min(seeds) < 0:
        raise InputError(
            "Expected epochs and batch_size of 1 or more, and seeds of 0 or more. Received: "
            f"{epochs}, {batch_size}, {list(seeds)}."
        )
    if other is None and data.num_classes < 4:
        raise InputError(
            f"Expected 4 classes or more, two for each task. Received: {data.num_classes}. Add classes, or pass the "
            "images of task A as the second argument."
        )


def _split_classes(data: ImageData, seed: int) -> tuple[ImageData, ImageData]:
    """Return two random halves of the classes; an odd class is left out."""
    order = np.random.default_rng(seed).permutation(data.num_classes)
    half = data.num_classes // 2
    return _subset(data, np.sort(order[:half])), _subset(data, np.sort(order[half : 2 * half]))


def _subset(data: ImageData, classes: np.ndarray) -> ImageData:
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
