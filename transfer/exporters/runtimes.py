"""Exported files run again, each in its own runtime, as whoever takes them away would run them."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transfer.frozen.openvino_engine import import_openvino, padded

RunFunction = Callable[[np.ndarray], np.ndarray]

BATCH = 32
"""Images at once, but for LiteRT, whose place is a telephone: there it is one."""


@contextlib.contextmanager
def in_full() -> Iterator[None]:
    """Let GPUs compute in float32 and not with fewer digits (TF32), as TensorFlow lets them by itself."""
    from tensorflow.config import experimental

    before = experimental.tensor_float_32_execution_enabled()
    experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        experimental.enable_tensor_float_32_execution(before)


def open_exported(kind: str, path: Path) -> tuple[RunFunction, int]:
    """Load an exported file with its runtime."""
    opened = {"saved-model": _saved_model, "litert": _litert, "onnx": _onnx, "openvino": _openvino}[kind]
    return opened(path), 1 if kind == "litert" else BATCH


def run_all(run: RunFunction, images: np.ndarray, batch: int) -> tuple[np.ndarray, float]:
    """Run images through a network, and measure how fast it is when warm."""
    # Always the same number at once: for another, runtimes would prepare anew.
    batches = [padded(images[start : start + batch], batch) for start in range(0, len(images), batch)]
    run(batches[0])
    start = time.perf_counter()
    results = [run(one) for one in batches]
    seconds = time.perf_counter() - start
    return np.concatenate(results)[: len(images)], len(batches) * batch / seconds


def _saved_model(path: Path) -> RunFunction:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    def run(images: np.ndarray, loaded: Any = loaded) -> np.ndarray:  # its variables live as long as it does
        return serve(images=tf.constant(images))["probabilities"].numpy()

    return run


def _litert(path: Path) -> RunFunction:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow import lite  # the same, which TensorFlow is going to leave to that package

        Interpreter = lite.Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's says on every use that it is going to leave
        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner("serving_default")
    # A view into the interpreter's memory, which the next call overwrites.
    return lambda images: np.array(runner(images=images.astype("float32"))["probabilities"])


def _onnx(path: Path) -> RunFunction:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images.astype("float32")})[0]


def _openvino(path: Path) -> RunFunction:
    openvino = import_openvino()
    if openvino is None:
        raise ImportError("OpenVINO is not installed")
    # By itself it computes in bfloat16 where the CPU can, and the file would be blamed for that.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", exact)
    return lambda images: compiled({"images": images.astype("float32")})["probabilities"].copy()
