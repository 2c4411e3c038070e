"""Run exported files, each in its own runtime."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transfer.common.tasks import PROBABILITIES
from transfer.frozen.openvino_engine import import_openvino, padded

RunFunction = Callable[[np.ndarray], np.ndarray]

BATCH = 32
"""Images per batch. LiteRT, which is made for phones, gets one image at a time."""


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Let GPUs compute in float32; TensorFlow's default, TF32, has fewer digits."""
    from tensorflow.config import experimental

    before = experimental.tensor_float_32_execution_enabled()
    experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        experimental.enable_tensor_float_32_execution(before)


def open_exported(kind: str, path: Path, output: str = PROBABILITIES) -> tuple[RunFunction, int]:
    """Load an exported file; return a function that runs it and returns an output, and its batch size."""
    opened = {"saved-model": _saved_model, "litert": _litert, "onnx": _onnx, "openvino": _openvino}[kind]
    return opened(path, output), 1 if kind == "litert" else BATCH


def run_all(run: RunFunction, images: np.ndarray, batch: int) -> tuple[np.ndarray, float]:
    """Return the outputs for all images, and the speed in images per second after a warm-up."""
    # All batches have the same size: a runtime would compile again for another size.
    batches = [padded(images[start : start + batch], batch) for start in range(0, len(images), batch)]
    run(batches[0])
    start = time.perf_counter()
    results = [run(one) for one in batches]
    seconds = time.perf_counter() - start
    return np.concatenate(results)[: len(images)], len(batches) * batch / seconds


def _saved_model(path: Path, output: str) -> RunFunction:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    # The argument keeps the loaded object alive, and with it the variables.
    def run(images: np.ndarray, loaded: Any = loaded) -> np.ndarray:
        return serve(images=tf.constant(images))[output].numpy()

    return run


def _litert(path: Path, output: str) -> RunFunction:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow import (
            lite,
        )  # the same interpreter, which TensorFlow will drop in favor of that package

        Interpreter = lite.Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's interpreter warns of its removal on every use
        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner("serving_default")
    # The output is a view into the interpreter's memory, which the next call overwrites.
    return lambda images: np.array(runner(images=images.astype("float32"))[output])


def _onnx(path: Path, output: str) -> RunFunction:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run([output], {"images": images.astype("float32")})[0]


def _openvino(path: Path, output: str) -> RunFunction:
    openvino = import_openvino()
    if openvino is None:
        raise ImportError("OpenVINO is not installed")
    # OpenVINO's default is bfloat16 on CPUs that have it, whose rounding would look like an error of the file.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", exact)
    return lambda images: compiled({"images": images.astype("float32")})[output].copy()
