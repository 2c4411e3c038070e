"""OpenVINO, which runs frozen networks on CPUs: imported such that it sends nothing, and its requests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RunFunction = Callable[[np.ndarray], np.ndarray]


def import_openvino() -> Any | None:
    """Import OpenVINO such that nothing is ever sent."""
    missing = object()
    before = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        return None
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not missing:
            sys.modules["openvino_telemetry"] = before  # type: ignore[assignment]
    return openvino


def has_bfloat16() -> bool:
    """Say whether OpenVINO is installed and the CPU computes with bfloat16 in hardware."""
    openvino = import_openvino()
    return openvino is not None and "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_graph(
    definition: bytes, ends: tuple[str, str], *, precision: str, chunk: int, batch_size: int
) -> RunFunction:
    """Compile a graph of TensorFlow for the CPU."""
    openvino = import_openvino()
    if openvino is None:
        raise ImportError("OpenVINO is not installed")
    core = openvino.Core()
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # a file is read without the converter and what that reports
        file = Path(folder) / "network.pb"
        file.write_bytes(definition)
        network = core.read_model(file)
        parameters = [p for p in network.get_parameters() if ends[0] in p.output(0).get_names()]
        part = openvino.Model([network.output(ends[1])], parameters)
        return _requests(core.compile_model(part, "CPU", hints), chunk, batch_size)


def _requests(compiled: Any, chunk: int, batch_size: int) -> RunFunction:
    """Run a few images per request, as many requests side by side as the CPU has streams."""
    count = min(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"), -(-batch_size // chunk))
    requests = [compiled.create_infer_request() for _ in range(count)]

    def run(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + chunk] for start in range(0, len(images), chunk)]
        results: list[np.ndarray] = []

        def collect() -> None:
            request = requests[len(results) % count]
            request.wait()
            results.append(request.get_output_tensor(0).data[: len(parts[len(results)])].copy())

        for number, part in enumerate(parts):
            if number >= count:
                collect()
            requests[number % count].start_async({0: padded(part, chunk)}, share_inputs=True)
        while len(results) < len(parts):
            collect()
        return np.concatenate(results)

    return run


def padded(images: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last image until there are `count`, since another shape would be compiled anew."""
    missing = count - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images
