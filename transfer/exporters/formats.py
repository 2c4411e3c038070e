"""Write a network in the file formats of other runtimes: LiteRT, ONNX, OpenVINO."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transfer.common.errors import InputError, install_hint
from transfer.common.streams import discarded
from transfer.common.tasks import PROBABILITIES
from transfer.frozen.constant_graphs import all_constant
from transfer.frozen.openvino_engine import import_openvino
from transfer.results.finished_runs import add_labels

INPUT = "images"
"""Name of the input in every file."""

OPSET = 17
"""ONNX operator set: the newest that runtimes of the last three years read, also in browsers."""

_ONNX = ("tf2onnx", "onnx", "onnxruntime")
_CALIBRATION_BATCH = 16  # images


def load_packages(kind: str, quantize: str | None) -> None:
    """Import the packages that a format needs, or raise an error that names the missing ones."""
    needs_onnx = kind == "onnx" or (kind, quantize) == ("openvino", "int8")
    with quiet():
        missing = [name for name in _ONNX if needs_onnx and not _imports(name)]
        if kind == "openvino" and import_openvino() is None:
            raise InputError(
                "Export to openvino needs OpenVINO, which is not installed. Install it with pip install openvino, or "
                "use --to saved-model or --to litert."
            )
    if missing:
        raise InputError(
            f"Export to {kind} needs {', '.join(missing)}: {install_hint('export')}. Without them, use "
            "--to saved-model or --to litert."
        )


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress all output of converters, which they write through several channels for their developers."""
    before, unseen = logging.root.manager.disable, io.StringIO()
    redirected = contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen)
    logging.disable(max(before, logging.ERROR))
    try:
        with discarded(1, 2), warnings.catch_warnings(), redirected[0], redirected[1]:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _inlined() -> Iterator[None]:
    """Inline nested functions while tracing; Keras wraps grouped convolutions in a function of their own."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


class Graph(tf.Module):
    """A network in inference mode with constants instead of variables, as every converter reads it."""

    def __init__(self, model: keras.Model, image_size: tuple[int, int], output: str = PROBABILITIES) -> None:
        super().__init__()
        spec = tf.TensorSpec((None, *image_size, 3), tf.float32, name=INPUT)
        traced = tf.function(
            lambda images: tf.cast(model(images, training=False), tf.float32), autograph=False
        )
        with _inlined():
            frozen = all_constant(traced.get_concrete_function(spec))
        self.image_size, self.output = image_size, output
        self.frozen = frozen
        self.call = tf.function(lambda images: {output: frozen(images)[0]}, [spec], autograph=False)


def write_litert(
    graph: Graph,
    file: Path,
    *,
    class_names: Sequence[str],
    quantize: str | None,
    calibration: np.ndarray | None,
) -> None:
    """Write a `.tflite` file with float32 inputs and outputs, also if it is quantized."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        # The custom gradients of swish and others cannot be written, and inference does not need them.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(graph, folder, graph.call.get_concrete_function(), options)
        file.write_bytes(_to_litert(folder, quantize, calibration))
    add_labels(file, tuple(class_names))


def _to_litert(folder: str, quantize: str | None, calibration: np.ndarray | None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8" and calibration is not None:
        images = calibration.astype("float32")
        converter.representative_dataset = lambda: ({INPUT: images[i : i + 1]} for i in range(len(images)))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converted: bytes = converter.convert()
    return converted


def write_onnx(
    graph: Graph,
    file: Path,
    *,
    notes: Mapping[str, Any],
    quantize: str | None,
    calibration: np.ndarray | None,
) -> None:
    """Write an `.onnx` file with float32 inputs and outputs, also if it is quantized."""
    import onnx
    import tf2onnx

    spec = graph.call.input_signature
    proto, _ = tf2onnx.convert.from_function(
        graph.call, input_signature=spec, opset=OPSET, custom_op_handlers={"Erfc": (_as_erf, [])}
    )
    if quantize == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        proto = convert_float_to_float16(proto, keep_io_types=True)
        OnnxModel(proto).topological_sort()  # ONNX requires topological order; the added casts come last
    if quantize == "int8" and calibration is not None:
        proto = _in_int8(proto, file.parent, calibration)
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(proto, {name: _json(value) for name, value in notes.items()})
    onnx.checker.check_model(proto)
    onnx.save(proto, str(file))


def _as_erf(graph: Any, node: Any, name: str, _: Sequence[Any]) -> None:
    """Write erfc(x), which GELU needs and tf2onnx does not know, as 1 - erf(x)."""
    from tf2onnx.utils import map_onnx_to_numpy_type

    inputs, outputs = list(node.input), list(node.output)
    kind = graph.get_dtype(outputs[0])
    form: dict[str, Any] = {"dtypes": [kind], "shapes": [graph.get_shape(outputs[0])]}
    graph.remove_node(name)
    one = graph.make_const(f"{name}_one", np.array(1, map_onnx_to_numpy_type(kind)))
    erf = graph.make_node("Erf", inputs, **form)
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, name=name, **form)


def _in_int8(proto: Any, folder: Path, calibration: np.ndarray) -> Any:
    """Quantize an ONNX model with temporary files in a folder."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(calibration), _CALIBRATION_BATCH)
            self.batches = (calibration[i : i + _CALIBRATION_BATCH] for i in starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.astype("float32")}

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source, folded, quantized = (f"{temporary}/{step}.onnx" for step in ("source", "folded", "quantized"))
        onnx.save(proto, source)
        # Folds BatchNormalization into convolutions; without it, EfficientNetLite0 lost 15 points of agreement.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            quantized,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Unsigned activations are four times as fast on CPUs as signed ones, and as exact.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(quantized)


def write_openvino(
    graph: Graph,
    file: Path,
    *,
    notes: Mapping[str, Any],
    quantize: str | None,
    calibration: np.ndarray | None,
) -> None:
    """Write an `.xml` file and its `.bin`, with float32 inputs and outputs, also if it is quantized."""
    openvino = import_openvino()
    if openvino is None:
        raise ImportError("OpenVINO is not installed")
    source = file.with_suffix(".onnx" if quantize == "int8" else ".pb")
    try:  # OpenVINO reads these files directly; its Python converter would report usage data
        if quantize == "int8":
            write_onnx(graph, source, notes={}, quantize=quantize, calibration=calibration)
        else:
            source.write_bytes(graph.frozen.graph.as_graph_def().SerializeToString())
        network = openvino.Core().read_model(source)
    finally:
        source.unlink(missing_ok=True)
    network.inputs[0].set_names({INPUT})
    network.outputs[0].set_names({graph.output})
    for name, value in notes.items():
        network.set_rt_info(_json(value), ["transfer", name])
    openvino.save_model(network, str(file), compress_to_fp16=quantize == "float16")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
