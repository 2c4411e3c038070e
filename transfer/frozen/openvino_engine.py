"""Run frozen networks on CPUs with OpenVINO, without its telemetry."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from transfer.common.errors import InputError, unknown

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

INT8 = "openvino-int8"
"""Name of the engine that quantizes frozen networks with training images."""

ENGINES = ("auto", "keras", "openvino", INT8)
"""Names of the engines that run frozen networks; `auto` picks the fastest one, except int8."""

RunFunction = Callable[[np.ndarray], np.ndarray]


def check_without_training(engine: str) -> None:
    """Raise `InputError` for an engine that does not exist, or that needs training images."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == INT8:
        raise InputError(
            f"engine={INT8!r} needs training images, which set the quantization ranges. Use engine='auto' here. To "
            "run a trained model in int8, export it: python -m transfer.export RUN --to openvino --quantize int8."
        )


def in_float(engine: str) -> str:
    """Return the name of the engine to use where int8 is not precise enough."""
    return "openvino" if engine == INT8 else engine


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Make the import of OpenVINO's telemetry fail, so that packages that use it send none."""
    missing = object()
    before = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not missing:
            sys.modules["openvino_telemetry"] = before  # type: ignore[assignment]


def import_openvino() -> ModuleType | None:
    """Return OpenVINO, imported so that it sends no telemetry; None if it is not installed."""
    with without_telemetry():
        try:
            import openvino
        except ImportError:
            return None
    return openvino


def has_bfloat16() -> bool:
    """Return whether OpenVINO is installed and the CPU computes bfloat16 in hardware."""
    openvino = import_openvino()
    return openvino is not None and "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def processor() -> str:
    """Return the version of OpenVINO, and the name and capabilities of the CPU: compiled networks depend on them."""
    openvino = _imported()
    core = openvino.Core()
    abilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return f"{openvino.__version__} {core.get_property('CPU', 'FULL_DEVICE_NAME')} {abilities}"


def read_graph(definition: bytes, ends: tuple[str, str]) -> Model:
    """Read a TensorFlow graph, from its input to its output."""
    openvino = _imported()
    # Reading a file needs no converter, which would send telemetry.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pb"
        file.write_bytes(definition)
        network = openvino.Core().read_model(file)
        parameters = [p for p in network.get_parameters() if ends[0] in p.output(0).get_names()]
        return openvino.Model([network.output(ends[1])], parameters)


def compile_network(network: Model, *, precision: str) -> CompiledModel:
    """Compile a network for the CPU."""
    return _imported().Core().compile_model(network, "CPU", _hints(precision))


def export_part(compiled: CompiledModel) -> bytes:
    """Return a compiled network as bytes."""
    content = compiled.export_model()
    return content if isinstance(content, bytes) else content.getvalue()


def import_part(content: bytes, *, precision: str) -> CompiledModel:
    """Return the compiled network that `export_part` returned as bytes."""
    return _imported().Core().import_model(io.BytesIO(content), "CPU", _hints(precision))


def run_parts(parts: Sequence[CompiledModel], *, chunk: int, batch_size: int) -> RunFunction:
    """Return a function that runs compiled networks one after another."""
    runs = [_run_in_chunks(part, chunk, batch_size) for part in parts]
    return lambda images: functools.reduce(lambda values, run: run(values), runs, images)


def _hints(precision: str) -> dict[str, str]:
    # A quantized network marks its int8 layers. The others run in float32: in bfloat16, the first layers of
    # MobileNetV2 would increase the error by 40%.
    number_type = "bf16" if precision == "bfloat16" else "f32"
    return {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": number_type}


def _imported() -> ModuleType:
    openvino = import_openvino()
    if openvino is None:
        raise ImportError("OpenVINO is not installed")
    return openvino


def _run_in_chunks(compiled: CompiledModel, chunk: int, batch_size: int) -> RunFunction:
    """Run a few images per request, with one request at a time on each stream of the CPU."""
    # Do not use OpenVINO's AsyncInferQueue: when it was deleted right after a callback, it could wait forever for a
    # thread that needed Python's GIL.
    count = min(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"), -(-batch_size // chunk))
    requests = [compiled.create_infer_request() for _ in range(count)]

    def run(images: np.ndarray) -> np.ndarray:
        parts = [padded(images[start : start + chunk], chunk) for start in range(0, len(images), chunk)]
        results: list[np.ndarray] = []
        for number in range(len(parts) + count):
            request = requests[number % count]
            if count <= number:
                request.wait()
                results.append(request.get_output_tensor(0).data.copy())
            if number < len(parts):
                request.start_async({0: parts[number]}, share_inputs=True)
        return np.concatenate(results[: len(parts)])[: len(images)]

    return run


def padded(images: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last image up to `count` images: another batch shape would need another compilation."""
    missing = count - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images
