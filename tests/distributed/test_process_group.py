"""Equal weights on one device, two devices and two processes, and the errors of workers that do not match."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import worker_processes

HERE = Path(__file__).parents[1]
SAME = 1e-5  # largest difference, relative to the largest weight of each layer

pytestmark = pytest.mark.slow


RUNS = {
    "one": "scratch",
    "two": "scratch,two",
    "other": "scratch,seed:1",
    "head": "head",
    "upper": "upper",
    "mixed": "everything,mix:mixup,class_weights:1",
    "mixed-two": "everything,two,mix:mixup,class_weights:1",
    "unweighted": "everything,mix:mixup",
    "labels": "everything,task:multi,class_weights:1",
    "labels-two": "everything,two,task:multi,class_weights:1",
    "values": "everything,task:regression,mix:mixup",
    "values-two": "everything,two,task:regression,mix:mixup",
    "rates": "everything,mix:mixup,layer_decay:0.3",
}
SHARED = ("one", "head", "mixed", "labels", "values", "rates")


@pytest.fixture(scope="module")
def by_tensorflow(tmp_path_factory) -> dict[str, dict]:
    return train(tmp_path_factory.mktemp("tensorflow"), RUNS.keys() - {"upper", "mixed-two"}, SHARED)


@pytest.fixture(scope="module")
def by_jax(tmp_path_factory) -> dict[str, dict]:
    """Train with Keras on JAX, where TensorFlow cannot be imported."""
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("jax")
    return train(
        folder, RUNS.keys() - {"other", "rates"}, {"one", "mixed", "labels", "values"}, KERAS_BACKEND="jax"
    )


def train(folder: Path, alone, shared, **environment: str) -> dict[str, dict]:
    """Return the weights of runs on one process and on each of two; runs with the same count share a Python process."""
    found = {}
    for count, names in ((1, alone), (2, shared)):
        place = folder / str(count)
        place.mkdir()
        runs = [f"{name}={RUNS[name]}" for name in sorted(names)]
        arguments = [str(HERE / "helpers" / "train_tiny.py"), str(place), *runs]
        worker_processes.run(arguments, count, place, timeout=600, PYTHONPATH=str(HERE), **environment)
        for path in place.glob("*.npz"):
            name, _, worker = path.stem.rpartition("-")
            found[f"{name} {worker} of 2" if count == 2 else name] = dict(np.load(path))
    return found


def difference(some: dict, others: dict) -> float:
    assert some.keys() == others.keys()
    return max(np.abs(some[n] - others[n]).max() / (np.abs(some[n]).max() + 1e-12) for n in some)


def moved(some: dict, others: dict) -> bool:
    return any(not np.array_equal(some[n], others[n]) for n in some)


@pytest.mark.parametrize("runs", ["by_tensorflow", "by_jax"])
def test_two_devices_and_two_processes_end_with_the_weights_of_one_device(runs, request):
    found = request.getfixturevalue(runs)
    assert difference(found["one"], found["two"]) < SAME
    assert difference(found["one"], found["one 0 of 2"]) < SAME
    assert difference(found["one 0 of 2"], found["one 1 of 2"]) == 0


def test_another_seed_leads_to_other_weights(by_tensorflow):
    assert difference(by_tensorflow["one"], by_tensorflow["other"]) > 100 * SAME


def test_two_processes_divide_the_forward_pass_and_train_the_same_head(by_tensorflow):
    assert difference(by_tensorflow["head"], by_tensorflow["head 0 of 2"]) < SAME
    assert difference(by_tensorflow["head 0 of 2"], by_tensorflow["head 1 of 2"]) == 0


@pytest.mark.parametrize("runs", ["by_tensorflow", "by_jax"])
def test_mixup_and_class_weights_are_the_same_on_two_processes(runs, request):
    found = request.getfixturevalue(runs)
    assert difference(found["mixed"], found["unweighted"]) > 100 * SAME  # the class weights have an effect
    assert difference(found["mixed"], found["mixed 0 of 2"]) < SAME
    if runs == "by_jax":
        assert difference(found["mixed"], found["mixed-two"]) < SAME


@pytest.mark.parametrize("runs", ["by_tensorflow", "by_jax"])
@pytest.mark.parametrize("task", ["labels", "values"])
def test_several_labels_and_numbers_are_the_same_on_two_devices_and_processes(task, runs, request):
    found = request.getfixturevalue(runs)
    # The exact head is sure of its predictions, so that rounding matters more.
    assert difference(found[task], found[f"{task}-two"]) < 10 * SAME
    assert difference(found[task], found[f"{task} 0 of 2"]) < 10 * SAME
    assert difference(found[f"{task} 0 of 2"], found[f"{task} 1 of 2"]) == 0


def test_layer_decay_is_the_same_on_two_processes(by_tensorflow):
    assert difference(by_tensorflow["rates"], by_tensorflow["unweighted"]) > 100 * SAME
    assert difference(by_tensorflow["rates"], by_tensorflow["rates 0 of 2"]) < SAME


def test_the_upper_layers_train_on_jax(by_jax):
    start, end = by_jax["head"], by_jax["upper"]
    assert np.array_equal(start["block1_conv_kernel"], end["block1_conv_kernel"])
    assert not np.array_equal(start["block3_conv_kernel"], end["block3_conv_kernel"])


def test_workers_with_different_seeds_raise_an_error(tmp_path):
    ports = worker_processes.free_ports(2)
    script = [str(HERE / "helpers" / "train_tiny.py"), str(tmp_path)]
    more = {"PYTHONPATH": str(HERE)}
    workers = [
        worker_processes.start([*script, f"run=everything,seed:{number}"], number, ports, tmp_path, **more)
        for number in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [1, 1]
    for number in range(2):
        output = (tmp_path / f"worker-{number}.log").read_text()
        assert "Expected the same options and versions on all workers" in output
        assert "seed is 0 on worker 0, 1 here" in output


def test_a_missing_worker_is_reported_after_the_waiting_time(tmp_path):
    code = "from transfer.distributed.strategies import *; start_quietly(); get_strategy('multiworker', patience=5)"
    ports = worker_processes.free_ports(2)
    for number in range(2):  # the chief alone, and a worker without its chief
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=worker_processes.environment(number, ports),
            capture_output=True,
            text=True,
        )
        assert "connect within 5 seconds" in done.stderr or "workers within 5 seconds" in done.stderr
        assert f"localhost:{ports[1 - number]}" in done.stderr
        assert time.monotonic() - begun < 60


def test_keras_still_cannot_train_on_several_workers_by_itself(tmp_path):
    """If this fails, Keras has fixed keras#20585, and `make_steps_exact` can be shortened."""
    (tmp_path / "plain.py").write_text(
        "import os\n"
        "import numpy as np, tensorflow as tf\n"
        "strategy = tf.distribute.MultiWorkerMirroredStrategy()\n"
        "import keras\n"
        "with strategy.scope():\n"
        "    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "    model.compile('sgd', 'mse')\n"
        "data = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.ones((8, 1)))).batch(4)\n"
        "try:\n"
        "    model.fit(data, verbose=0)\n"
        "except Exception as error:\n"
        "    print('FAILED', type(error).__name__, flush=True)\n"
        "    os._exit(0)\n"
        "print('TRAINED')\n"
    )
    outputs = worker_processes.run([str(tmp_path / "plain.py")], 2, tmp_path, timeout=120)
    assert all("FAILED" in text for text in outputs)


def test_the_command_resumes_after_a_worker_was_killed(tmp_path):
    from scripts.kill_workers import kill_workers

    assert kill_workers(tmp_path, 1, epochs=12) == 0


def test_the_command_chooses_a_case_on_several_workers(tmp_path):
    from scripts.kill_workers import TRAIN, make_inputs

    make_inputs(tmp_path)
    first, second = worker_processes.run([*TRAIN, "--output", "run"], 2, tmp_path, timeout=240)
    assert "2 workers" in first and "Test accuracy" in first and "Results: run" in first
    assert "Test accuracy" not in second and "Results:" not in second
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_accuracy"] > 0.9
    assert (tmp_path / "run" / "reference.npz").is_file()
