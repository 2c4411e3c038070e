"""Engines: the fastest way to run a frozen network forward over many batches on this machine.

Each engine is checked against plain Keras on its first batch, and gives way to the next when it is wrong.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import all_layers, with_constants
from transfer.frozen.openvino_engine import RunFunction, compile_graph, has_bfloat16, import_openvino, padded
from transfer.networks.graphs import bottlenecks, graph

_TENSORFLOW = keras.backend.backend() == "tensorflow"
if _TENSORFLOW:
    import tensorflow as tf

ENGINES = ("auto", "keras", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Most that an engine may differ from Keras, see `relative_error`."""

CHUNK = {"float32": 2, "bfloat16": 4, "keras": 8}
"""Images per request. A batch is cut into small ones, which the cores work at side by side: what a layer
hands to the next then stays in a core's cache."""

_CHECKED = 8  # images of the first batch that plain Keras runs too; more would take longer than the rest

log = logging.getLogger(__name__)


def make_engine(
    model: keras.Model, *, engine: str = "auto", precision: str = "auto", batch_size: int = 32
) -> Engine:
    """Make what runs a frozen network forward."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"Expected a batch_size of at least 1. Received: {batch_size!r}.")
    sections = _sections(model)
    model = _side_by_side(model)
    graph(model)  # it has one input and one output
    plain = _replicas(model) > 1 or on_accelerator() or not _TENSORFLOW
    if engine == "openvino" and not _TENSORFLOW:
        raise InputError(
            "engine='openvino' reads TensorFlow's graphs. Leave engine='auto' with Keras on JAX."
        )
    wanted = engine == "openvino" or (engine == "auto" and not plain)
    names = engine_names(
        engine,
        precision,
        installed=wanted and import_openvino() is not None,
        has_bfloat16=wanted and has_bfloat16(),
        plain=plain,
    )
    if names[0] == "openvino bfloat16" and precision == "auto" and _small_maps(model) is None:
        del names[0]  # in bfloat16 throughout it is too far off, see `_openvino`
    return Engine(model, names, batch_size, sections)


def on_accelerator() -> bool:
    """Say whether there is a GPU or TPU."""
    if _TENSORFLOW:
        return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def _sections(model: keras.Model) -> tuple[int, ...]:
    """How many numbers of the vector each of several outputs gives."""
    shapes = [tensor.shape[1:] for tensor in getattr(model, "outputs", None) or ()]
    if len(shapes) < 2:
        return ()
    if any(None in shape for shape in shapes):
        raise InputError(
            f"Expected a network for images of one size. Received: {model.name!r}, which gives {shapes}. Build it "
            "with image_size=..."
        )
    return tuple(math.prod(shape) for shape in shapes)


def _side_by_side(model: keras.Model) -> keras.Model:
    if len(getattr(model, "outputs", None) or ()) < 2:
        return model
    # By names of their own: a network may have a layer called `flatten`, as VGG has.
    names = [f"side_{number}_of_{model.name}" for number in range(len(model.outputs))]
    flat = [
        keras.layers.Flatten(dtype="float32", name=name)(tensor)
        for name, tensor in zip(names, model.outputs, strict=True)
    ]
    return keras.Model(model.inputs[0], keras.layers.Concatenate(dtype="float32")(flat), name=model.name)


def engine_names(
    engine: str, precision: str, *, installed: bool, has_bfloat16: bool, plain: bool
) -> list[str]:
    """Say which engines to try, best first."""
    if engine == "openvino" and not installed:
        raise InputError(
            "engine='openvino' needs OpenVINO, which is not installed. Install it with pip install "
            '"transfer[fast]", or leave engine="auto".'
        )
    if engine == "keras" and precision == "bfloat16":
        raise InputError(
            "The keras engine computes in the precision that the model was made with. Expected "
            "precision='auto' or 'float32' with engine='keras'. Received: 'bfloat16'."
        )
    names = ["keras predict"] if plain else ["keras", "keras predict"]
    use_openvino = installed and (engine == "openvino" or (engine == "auto" and not plain))
    if use_openvino:
        names.insert(0, "openvino float32")
        if has_bfloat16 and precision != "float32":
            names.insert(0, "openvino bfloat16")
    if precision == "bfloat16" and names[0] != "openvino bfloat16":
        why = "this CPU has no bfloat16 in hardware" if use_openvino else "only OpenVINO computes in bfloat16"
        log.warning("precision='bfloat16': %s. It runs as %s.", why, names[0])
    return names


class Engine:
    """A frozen network, ready to run over batches of images; for one thread at a time."""

    def __init__(
        self, model: keras.Model, names: list[str], batch_size: int, sections: tuple[int, ...] = ()
    ) -> None:
        self.batch_size, self.model, self.sections = batch_size, model, sections
        self._names = list(names)
        self._run: RunFunction | None = None
        self._shape: tuple[int, ...] | None = None
        self._trusted = False

    @property
    def name(self) -> str:
        """What runs now."""
        return self._names[0]

    def __call__(self, images: Any) -> np.ndarray:
        """Run over one batch."""
        images = self._accept(images)
        while True:
            try:
                if self._run is None:
                    self._run = _make(self.name, self.model, images.shape[1:], self.batch_size)
                result = self._run(images)
                problem = self._problem(images, result)
            except InputError:
                raise
            except Exception as error:  # whatever an exporter, a compiler or a driver throws
                if len(self._names) == 1:
                    raise
                problem = f"failed ({type(error).__name__}: {one_line(error, most=200)})"
            if not problem:
                return result
            if len(self._names) == 1:
                raise RuntimeError(f"Keras' predict {problem} in itself.")
            old, self._run = self._names.pop(0), None
            log.warning("%r: engine %s %s; %s instead.", self.model.name, old, problem, self.name)

    def _accept(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        expected = self._shape or tuple(self.model.inputs[0].shape[1:])
        fits = images.ndim == 4 and all(
            want in (None, got) for want, got in zip(expected, images.shape[1:], strict=True)
        )
        if not fits or not 1 <= len(images) <= self.batch_size or images.dtype.kind not in "uif":
            raise InputError(
                f"Expected 1 to {self.batch_size} images of shape {expected} as uint8 or float32. Received: "
                f"shape {images.shape}, {images.dtype}."
            )
        self._shape = images.shape[1:]
        return np.ascontiguousarray(images, "float32")

    def _problem(self, images: np.ndarray, result: np.ndarray) -> str:
        """Say what is wrong with a result; nothing where it is right, or was found right before."""
        finite = np.isfinite(result).reshape(len(result), -1).all(axis=1)
        if finite.all() and self._trusted:
            return ""
        rows = np.flatnonzero(~finite if not finite.all() else finite)[:_CHECKED]
        expected = _output(self.model(images[rows], training=False))
        if not np.isfinite(expected).all():
            raise InputError(
                f"The network {self.model.name!r} gives NaN or infinity on these images. Its weights may be "
                "broken, or it expects other images than raw RGB from 0 to 255."
            )
        ends = np.cumsum(self.sections)[:-1]
        pairs = zip(*(np.split(part, ends, axis=-1) for part in (result[rows], expected)), strict=True)
        error = max(relative_error(found, wanted) for found, wanted in pairs)
        if len(self._names) == 1 and finite.all():  # plain Keras; only rounding can differ
            error = 0.0
        self._trusted = error <= _tolerance(self.name, self.model)
        return "" if self._trusted else f"differs from Keras by {error:.1%}"


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Give the Euclidean length of the error in units of that of what was expected."""
    if not np.isfinite(result).all():
        return float("inf")
    length = np.linalg.norm(expected.astype("float64"))
    error = np.linalg.norm(result.astype("float64") - expected)
    return float(error / length) if length else float("inf" if error else 0)


def _tolerance(name: str, model: keras.Model) -> float:
    """How much an engine may differ: by what its own precision, or the model's, costs."""
    low = any(layer.compute_dtype in ("float16", "bfloat16") for layer in all_layers(model))
    return TOLERANCE["bfloat16" if low or name.endswith("bfloat16") else "float32"]


def _output(result: Any) -> np.ndarray:
    """The one output of a model as float32."""
    return np.asarray(keras.ops.convert_to_numpy(keras.tree.flatten(result)[0])).astype("float32", copy=False)


def _replicas(model: keras.Model) -> int:
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy is not None else 1


def _make(name: str, model: keras.Model, shape: tuple[int, ...], batch_size: int) -> RunFunction:
    """Make the engine of that name for images of one shape."""
    if name == "keras predict":
        return _predict(model, batch_size)
    if name == "keras":
        return _keras(model, shape, batch_size)
    return _openvino(model, shape, batch_size, name.split()[1])


def _predict(model: keras.Model, batch_size: int) -> RunFunction:
    """Plain Keras, which knows of devices, strategies and jit_compile itself."""

    def run(images: np.ndarray) -> np.ndarray:
        batch = padded(images, batch_size)
        if _replicas(model) > 1:  # predict_on_batch would give the whole batch to each of them
            result = model.predict(batch, batch_size=batch_size, verbose=0)
        else:
            result = model.predict_on_batch(batch)
        return _output(result)[: len(images)]

    return run


def _constant_function(model: keras.Model, shape: tuple[int, ...]) -> Any:
    """Trace a model in inference mode for one shape of batch, its variables as constants."""
    values = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.variables]

    @tf.function(autograph=False)
    def call(images: Any) -> Any:
        with keras.StatelessScope(state_mapping=[(v, tf.constant(array)) for v, array in values]):
            return [tf.cast(y, tf.float32) for y in keras.tree.flatten(model(images, training=False))]

    function = call.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    if function.captured_inputs:
        function = with_constants(function)
    return function


def _keras(model: keras.Model, shape: tuple[int, ...], batch_size: int) -> RunFunction:
    """The graph with constants, without XLA, which is ten times slower with depthwise convolutions on a
    CPU."""
    chunk = min(CHUNK["keras"], batch_size)
    function = _constant_function(model, (chunk, *shape))

    def part(images: np.ndarray) -> np.ndarray:
        return keras.tree.flatten(function(tf.constant(padded(images, chunk))))[0].numpy()[: len(images)]

    def run(images: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(2) as pool:  # one fills the gaps that the other leaves
            return np.concatenate(list(pool.map(part, _chunks(images, chunk))))

    return run


def _chunks(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _openvino(model: keras.Model, shape: tuple[int, ...], batch_size: int, precision: str) -> RunFunction:
    """The same graph with constants, compiled by OpenVINO."""
    chunk = max(1, min(CHUNK[precision], batch_size // (os.cpu_count() or 1)))
    maps = _small_maps(model) if precision == "bfloat16" else None
    if maps is None:
        function = _constant_function(model, (chunk, *shape))
        parts = [(function.graph, function.inputs[0], function.outputs[0], precision)]
    else:
        two = keras.Model(model.inputs[0], [maps, model.outputs[0]])
        function = _constant_function(two, (chunk, *shape))
        rest = _graph_behind(function.outputs[0], function)
        parts = [(function.graph, function.inputs[0], function.outputs[0], "float32"), (*rest, precision)]
    runs = [
        compile_graph(
            whole.as_graph_def().SerializeToString(),
            (first.name, last.name),
            precision=part_precision,
            chunk=chunk,
            batch_size=batch_size,
        )
        for whole, first, last, part_precision in parts
    ]
    return lambda images: functools.reduce(lambda given, run: run(given), runs, images)


def _graph_behind(output: Any, function: Any) -> tuple[Any, Any, Any]:
    """Give a graph that computes a function's last output from another one, with its input and output."""
    source = output.op.inputs[0] if output.op.type == "Identity" else output
    with tf.Graph().as_default() as rest:
        start = tf.compat.v1.placeholder(source.dtype, source.shape, name="maps")
        (end,) = tf.graph_util.import_graph_def(
            function.graph.as_graph_def(),
            input_map={source.name: start},
            return_elements=[function.outputs[-1].name],
            name="rest",
        )
    return rest, start, end


def _small_maps(model: keras.Model) -> Any | None:
    """Find where all that comes later is computed from maps of an eighth of the image's size or less."""
    nodes = graph(model)
    size = nodes[0].tensor.shape[1:3]
    folded = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
    found: list[Any] = []
    for place in bottlenecks(nodes)[1:-1]:
        maps = nodes[place].tensor
        if len(maps.shape) != 4 or None in (*maps.shape[1:], *size) or maps.dtype != "float32":
            continue
        small = 64 * maps.shape[1] * maps.shape[2] <= size[0] * size[1]
        inside = "Conv" in type(nodes[place].op).__name__ or isinstance(nodes[place + 1].op, folded)
        if small and not inside and (not found or maps.shape[1:3] == found[0].shape[1:3]):
            found.append(maps)
    return min(found, key=lambda maps: maps.shape[3], default=None)
