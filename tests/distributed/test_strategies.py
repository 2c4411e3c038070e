"""Strategies of names, and the errors for devices that do not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import keras
import pytest

from transfer.common.errors import InputError
from transfer.distributed.strategies import STRATEGIES, get_strategy, scope_of


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


def config(workers: int, **more) -> str:
    return json.dumps({"cluster": {"worker": [f"host{i}:1" for i in range(workers)], **more}})


@pytest.mark.parametrize("name", ["default", "auto", None])
def test_one_cpu_has_the_default_strategy(name):
    import tensorflow as tf

    assert get_strategy(name) is tf.distribute.get_strategy()
    assert get_strategy(name).num_replicas_in_sync == 1


def test_mirrored_is_one_strategy_for_the_whole_process():
    import tensorflow as tf

    strategy = get_strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert get_strategy("mirrored") is strategy


def test_a_strategy_is_returned_as_it_is():
    import tensorflow as tf

    mine = tf.distribute.OneDeviceStrategy("CPU:0")
    assert get_strategy(mine) is mine


@pytest.mark.parametrize(
    "name, message", [("mirored", "Did you mean 'mirrored'"), (3, "Expected one of 'auto'")]
)
def test_an_unknown_name_is_refused_with_the_nearest_names(name, message):
    with pytest.raises(InputError, match=message):
        get_strategy(name)


def test_a_missing_tpu_is_reported_within_seconds():
    start = time.perf_counter()
    with pytest.raises(InputError, match="No TPU was found"):
        get_strategy("tpu")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("text", ["{", "[]", "3", '"worker"', '{"cluster": 3}', '{"cluster": {"worker": 3}}'])
def test_multiworker_refuses_an_invalid_tf_config(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="Expected JSON with the addresses of the workers in TF_CONFIG"):
        get_strategy("multiworker")


def test_multiworker_after_a_computation_is_refused(monkeypatch):
    keras.ops.ones(1)
    worker = json.loads(config(2)) | {"task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(worker))
    with pytest.raises(InputError, match=r"call get_strategy\('multiworker'\) first"):
        get_strategy("multiworker")


@pytest.mark.slow
def test_multiworker_with_one_worker_trains():
    code = """if True:
        import numpy as np
        from transfer.distributed.strategies import get_strategy
        strategy = get_strategy("multiworker")
        import keras
        with strategy.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        print(len(model.fit(np.ones((4, 2)), np.ones(4), verbose=0).history["loss"]))
    """
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "1"


def test_the_scope_of_a_model_is_the_scope_of_its_strategy():
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with scope_of(model):
        assert tf.distribute.get_strategy() is strategy
    assert tf.distribute.get_strategy() is not strategy


def test_the_default_of_the_command_is_a_strategy():
    from transfer.config import TrainConfig

    assert TrainConfig().strategy in STRATEGIES
