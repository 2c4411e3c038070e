"""Engines: the fastest way on this machine to run a frozen network over many batches of images.

The first batch of each engine is compared with plain Keras. If an engine is wrong or fails, the next one replaces it.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import keras
import numpy as np

from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_private import all_layers
from transfer.common.text import plural
from transfer.distributed.process_group import current_group
from transfer.frozen import compiled_networks
from transfer.frozen.compiled_networks import CompiledNetwork
from transfer.frozen.constant_graphs import constant_function, graph_behind, small_maps
from transfer.frozen.openvino_engine import (
    ENGINES,
    INT8,
    RunFunction,
    check_without_training,
    compile_network,
    export_part,
    has_bfloat16,
    import_openvino,
    import_part,
    padded,
    processor,
    read_graph,
    run_parts,
)
from transfer.frozen.quantization import Calibration, check_nncf, nncf_version, quantize, relative_error
from transfer.networks.graphs import fingerprint, graph

_TENSORFLOW = keras.backend.backend() == "tensorflow"
if _TENSORFLOW:
    import tensorflow as tf
if TYPE_CHECKING:
    from openvino import CompiledModel

PRECISIONS = ("auto", "float32", "bfloat16")

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.15}
"""Largest accepted `relative_error` between an engine and Keras, by the precision of the engine."""

CHUNK = {"float32": 2, "bfloat16": 4, "int8": 4, "keras": 8}
"""Images per request. Cores work in parallel on small requests, whose feature maps fit in their caches."""

_FORM = 1  # part of the cache key: increase it when the code that compiles networks changes
_CHECKED = 8  # images of the first batch that plain Keras runs as well; more would take longer than the rest

log = logging.getLogger(__name__)


def make_engine(
    model: keras.Model,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    calibration: Calibration | None = None,
) -> Engine:
    """Return an engine for a network in inference mode, with its weights at the time of the first batch."""
    if calibration is None:
        check_without_training(engine)
    check_engine(engine)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"Expected a batch_size of at least 1. Received: {batch_size!r}.")
    model, sections = _with_one_output(model)
    graph(model)  # raises InputError unless there is one input
    plain = _replicas(model) > 1 or on_accelerator() or not _TENSORFLOW
    wanted = engine in ("openvino", INT8) or (engine == "auto" and not plain)
    installed = wanted and import_openvino() is not None
    if engine == "auto" and wanted and not installed:
        _report_missing()
    names = engine_names(
        engine,
        precision,
        installed=installed,
        has_bfloat16=wanted and has_bfloat16(),
        plain=plain,
    )
    if names[0] == "openvino bfloat16" and precision == "auto" and small_maps(model) is None:
        del names[0]  # entirely in bfloat16, the error would be too large, see `_openvino`
    if engine != INT8 or calibration is None:
        return Engine(model, names, batch_size, sections)
    run = Engine(model, ["openvino int8", *names], batch_size, sections, calibration)
    # Compare with Keras now: the feature store depends on whether int8 or a float engine runs.
    run(calibration.check_images()[:batch_size])
    return run


def check_engine(engine: str) -> None:
    """Raise `InputError` for an engine that does not exist, or that cannot run here."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine in ("openvino", INT8) and not _TENSORFLOW:
        raise InputError(f"engine={engine!r} needs TensorFlow as Keras' backend. Use engine='auto' on JAX.")
    if engine != INT8:
        return
    if on_accelerator() or current_group().count > 1:
        raise InputError(
            f"engine={INT8!r} runs on the CPU of one machine. Use engine='auto' with a GPU, a TPU or several workers."
        )
    if import_openvino() is None:
        raise _not_installed(engine)
    check_nncf()


def _not_installed(engine: str) -> InputError:
    return InputError(
        f"engine={engine!r} needs OpenVINO, which is not installed. Install it with pip install openvino, or use "
        "engine='auto'."
    )


@functools.cache
def _report_missing() -> None:
    """Log, once per process, that OpenVINO is not installed."""
    log.warning(
        "OpenVINO is not installed. Keras runs the frozen layers instead, with the same results, but slower. Install "
        "it with: pip install openvino"
    )


def on_accelerator() -> bool:
    """Return whether there is a GPU or TPU."""
    if _TENSORFLOW:
        return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def _with_one_output(model: keras.Model) -> tuple[keras.Model, tuple[int, ...]]:
    """Join several outputs into one vector; return the new model and the length of each output."""
    outputs = getattr(model, "outputs", None) or ()
    if len(outputs) < 2:
        return model, ()
    shapes = [tensor.shape[1:] for tensor in outputs]
    if any(None in shape for shape in shapes):
        raise InputError(
            f"Expected a network with a fixed image size. Received: {model.name!r} with output shapes {shapes}. Build "
            "it with image_size=..."
        )
    # These names are unique: a network may have a layer called `flatten`, as VGG has.
    flat = [
        keras.layers.Flatten(dtype="float32", name=f"side_{number}_of_{model.name}")(tensor)
        for number, tensor in enumerate(outputs)
    ]
    joined = keras.layers.Concatenate(dtype="float32")(flat)
    return keras.Model(model.inputs[0], joined, name=model.name), tuple(map(math.prod, shapes))


def engine_names(
    engine: str, precision: str, *, installed: bool, has_bfloat16: bool, plain: bool
) -> list[str]:
    """Return the names of the engines to try, the fastest first; `plain` allows only Keras' predict."""
    if engine in ("openvino", INT8) and not installed:
        raise _not_installed(engine)
    if engine == "keras" and precision == "bfloat16":
        raise InputError(
            "Expected precision='auto' or 'float32' with engine='keras', which computes in the model's own precision. "
            "Received: 'bfloat16'."
        )
    names = ["keras predict"] if plain else ["keras", "keras predict"]
    use_openvino = installed and (engine != "keras") and (engine != "auto" or not plain)
    if use_openvino:
        names.insert(0, "openvino float32")
        if has_bfloat16 and precision != "float32":
            names.insert(0, "openvino bfloat16")
    if precision == "bfloat16" and names[0] != "openvino bfloat16":
        why = "this CPU has no bfloat16 in hardware" if use_openvino else "only OpenVINO computes in bfloat16"
        log.warning("precision='bfloat16' is not available: %s. Using engine %s.", why, names[0])
    return names


class _RejectedError(Exception):
    """An earlier run found that an engine differs from Keras; the message says how."""


class Engine:
    """A frozen network that runs over batches of images; for one thread at a time."""

    def __init__(
        self,
        model: keras.Model,
        names: list[str],
        batch_size: int,
        sections: tuple[int, ...] = (),
        calibration: Calibration | None = None,
    ) -> None:
        self.batch_size, self.model, self.calibration = batch_size, model, calibration
        self.sections = sections  # lengths of the joined outputs; each is compared with Keras by itself
        self._names = list(names)
        self._run: RunFunction | None = None
        self._shape: tuple[int, ...] | None = None
        self._trusted = False  # whether outputs agreed with Keras on a batch, in this run or an earlier one
        self._key = ""
        self._new_parts: list[CompiledModel] = []  # compiled in this run, not yet compared with Keras

    @property
    def name(self) -> str:
        """The engine that runs now, such as "openvino bfloat16" or "keras predict"."""
        return self._names[0]

    @property
    def precision(self) -> str:
        """The precision of OpenVINO: "float32", "bfloat16" or "int8"; another word if Keras runs."""
        return self.name.split()[-1]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs for a batch of RGB images with values from 0 to 255, as float32."""
        images = self._accept(images)
        while True:
            try:
                if self._run is None:
                    self._run = self._start(images.shape[1:])
                result = self._run(images)
                problem = self._problem(images, result)
            except InputError:
                raise
            except _RejectedError as earlier:
                problem = str(earlier)
            except Exception as error:  # exporters, compilers and drivers may raise anything
                if len(self._names) == 1:
                    raise
                problem = f"failed ({type(error).__name__}: {one_line(error, most=200)})"
            if not problem:
                return result
            if len(self._names) == 1:
                raise RuntimeError(f"Keras' predict {problem}.")
            old, self._run = self._names.pop(0), None
            log.warning("%r: engine %s %s. Using engine %s.", self.model.name, old, problem, self.name)

    def _accept(self, images: np.ndarray) -> np.ndarray:
        """Return images as float32; raise InputError if the network cannot take them."""
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
        """Return what is wrong with a result, or ""; only the first batch and NaN or infinity are checked."""
        finite = np.isfinite(result).reshape(len(result), -1).all(axis=1)
        if finite.all() and self._trusted:
            return ""
        rows = np.flatnonzero(~finite if not finite.all() else finite)
        rows = rows if self.precision == "int8" else rows[:_CHECKED]
        expected = _output(self.model(images[rows], training=False))
        if not np.isfinite(expected).all():
            raise InputError(
                f"The network {self.model.name!r} returns NaN or infinity on these images. Check its weights, and that "
                "it takes raw RGB values from 0 to 255."
            )
        ends = np.cumsum(self.sections)[:-1]
        pairs = zip(*(np.split(part, ends, axis=-1) for part in (result[rows], expected)), strict=True)
        error = max(relative_error(*pair) for pair in pairs)
        if len(self._names) == 1 and finite.all():  # this is plain Keras; only rounding can differ
            error = 0.0
        self._trusted = error <= _tolerance(self.name, self.model)
        problem = "" if self._trusted else f"differs from Keras by {error:.1%}"
        if self.precision == "int8" and self._trusted:
            log.info("int8: features differ from float32 by %.1f%% on %d images.", 100 * error, len(rows))
        self._remember(problem)
        return problem

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the network and its weights."""
        return fingerprint(self.model)

    def _start(self, shape: tuple[int, ...]) -> RunFunction:
        """Return a function that runs images of one shape, compiled in this run or an earlier one."""
        name, precision = self.name.split()[0], self.precision
        if self.name == "keras predict":
            return _predict(self.model, self.batch_size)
        if name == "keras":
            return _keras(self.model, shape, self.batch_size)
        chunk = _openvino_chunk(precision, self.batch_size)
        details: list[str] = []
        calibration = self.calibration if precision == "int8" else None
        if calibration is not None:
            details = [nncf_version(), calibration.key]
        self._key = compiled_networks.key_of(
            self.fingerprint, shape, chunk, precision, processor(), _FORM, *details
        )
        parts = self._read_parts(precision)
        if parts is None and calibration is not None:
            parts = self._new_parts = [_quantized(self.model, shape, chunk, calibration)]
        elif parts is None:
            parts = self._new_parts = _openvino(self.model, shape, self.batch_size, precision)
        return run_parts(parts, chunk=chunk, batch_size=self.batch_size)

    def _read_parts(self, precision: str) -> list[CompiledModel] | None:
        """Return the parts that an earlier run compiled and accepted, or None; raise if it rejected them."""
        known = compiled_networks.read(self._key)
        if known is None:
            return None
        if known.problem:
            raise _RejectedError(known.problem)
        precisions = _part_precisions(precision, len(known.parts))
        try:
            parts = [
                import_part(part, precision=own) for part, own in zip(known.parts, precisions, strict=True)
            ]
        except Exception as error:  # OpenVINO raises errors of many classes
            log.debug("Cannot use the cached network %s: %s.", self._key, one_line(error))
            return None
        self._trusted = True
        return parts

    def _remember(self, problem: str) -> None:
        """Cache a network that this run compiled, or the reason to reject it, for later runs."""
        if self._new_parts:
            parts = () if problem else tuple(map(export_part, self._new_parts))
            compiled_networks.write(self._key, CompiledNetwork(parts, problem))
        self._new_parts = []


def _tolerance(name: str, model: keras.Model) -> float:
    """Return the largest relative error for the precision of an engine or its model, whichever is lower."""
    low = any(layer.compute_dtype in ("float16", "bfloat16") for layer in all_layers(model))
    own = TOLERANCE.get(name.split()[-1], TOLERANCE["float32"])
    return max(own, TOLERANCE["bfloat16"]) if low else own


def _output(result: keras.KerasTensor) -> np.ndarray:
    """Return the only output of a model as float32."""
    return np.asarray(keras.ops.convert_to_numpy(keras.tree.flatten(result)[0])).astype("float32", copy=False)


def _replicas(model: keras.Model) -> int:
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy is not None else 1


def _predict(model: keras.Model, batch_size: int) -> RunFunction:
    """Use plain Keras, which handles devices, strategies, and jit_compile."""

    def run(images: np.ndarray) -> np.ndarray:
        batch = padded(images, batch_size)
        if _replicas(model) > 1:  # predict_on_batch would run the whole batch on each replica
            result = model.predict(batch, batch_size=batch_size, verbose=0)
        else:
            result = model.predict_on_batch(batch)
        return _output(result)[: len(images)]

    return run


def _keras(model: keras.Model, shape: tuple[int, ...], batch_size: int) -> RunFunction:
    """Use the constant graph without XLA, which is ten times slower with depthwise convolutions on a CPU."""
    chunk = min(CHUNK["keras"], batch_size)
    function = constant_function(model, (chunk, *shape))

    def run_chunk(images: np.ndarray) -> np.ndarray:
        return keras.tree.flatten(function(tf.constant(padded(images, chunk))))[0].numpy()[: len(images)]

    started = False

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal started
        chunks = [images[start : start + chunk] for start in range(0, len(images), chunk)]
        # The first call optimizes the graph; TensorFlow has crashed when two threads did so at once.
        first = [] if started else [run_chunk(chunks.pop(0))]
        started = True
        with ThreadPoolExecutor(2) as pool:  # the second thread uses cores that the first leaves idle
            return np.concatenate([*first, *pool.map(run_chunk, chunks)])

    return run


def _openvino(
    model: keras.Model, shape: tuple[int, ...], batch_size: int, precision: str
) -> list[CompiledModel]:
    """Compile the constant graph with OpenVINO; in bfloat16, the first layers stay in float32."""
    # The first layers, down to an eighth of the image's size, cause half to three quarters of the error. Measured on
    # photos with EfficientNet-Lite0 and Lite1: 4 to 11% entirely in bfloat16; 2 to 3.5% with the first layers in
    # float32, in 1.3 times the time, still 1.7 times as fast as float32.
    maps = small_maps(model) if precision == "bfloat16" else None
    if maps is not None:
        model = keras.Model(model.inputs[0], [maps, model.outputs[0]])
    function = constant_function(model, (_openvino_chunk(precision, batch_size), *shape))
    parts = [(function.graph, function.inputs[0], function.outputs[0])]
    if maps is not None:
        parts.append(graph_behind(function.outputs[0], function))
    compiled: list[CompiledModel] = []
    for graph_, first, last in parts:
        definition = graph_.as_graph_def().SerializeToString()
        of_part = _part_precisions(precision, len(parts))[len(compiled)]
        network = read_graph(definition, (first.name, last.name))
        compiled.append(compile_network(network, precision=of_part))
    return compiled


def _quantized(
    model: keras.Model, shape: tuple[int, ...], chunk: int, calibration: Calibration
) -> CompiledModel:
    """Quantize the constant graph to int8 and compile it."""
    count = len(calibration.ranges)
    log.info(
        "Quantizing %r to int8 with %s. Later runs reuse the result.", model.name, plural(count, "image")
    )
    function = constant_function(model, (chunk, *shape))
    definition = function.graph.as_graph_def().SerializeToString()
    network = read_graph(definition, (function.inputs[0].name, function.outputs[0].name))
    return quantize(network, calibration, chunk=chunk, tolerance=TOLERANCE["int8"])


def _part_precisions(precision: str, count: int) -> list[str]:
    """Return the precision of each part of a network. If there are several, the first runs in float32."""
    return [precision] if count == 1 else ["float32", precision]


def _openvino_chunk(precision: str, batch_size: int) -> int:
    """Return the number of images per request."""
    return max(1, min(CHUNK[precision], batch_size // (os.cpu_count() or 1)))
