"""Names of devices to `tf.distribute` strategies, what several replicas need to train exactly, and the only place that
makes or mends any of it.

Whatever the devices, a batch is one batch: `batch_size` counts the images of all replicas together, and learning
rates are those of one device, unscaled. So the number of devices changes how long training takes, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from transfer.common import keras_private
from transfer.common.errors import InputError, unknown
from transfer.distributed.cluster import as_workers, names_several, read_cluster, wait_for
from transfer.distributed.process_group import BatchPart, ProcessGroup, current_group, join

STRATEGIES = ("auto", "default", "mirrored", "multiworker", "tpu")

PATIENCE = 300.0
"""Seconds to wait for other workers: machines of a cluster start one after the other."""

HEARTBEAT = 10
"""Seconds without a sign of life after which a worker is gone."""


def start_quietly(*, repeatable: bool = False) -> None:
    """Import TensorFlow and list its devices without the notes that it writes to standard error."""
    # 3: repeatable operations make tf.data write an error that is none, once for each data set.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if repeatable else "2")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        if not on_tensorflow():  # asks Keras, which imports TensorFlow
            return
        import tensorflow as tf

        tf.config.list_physical_devices()
        if repeatable and not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def get_strategy(strategy: Any = "auto", *, patience: float = PATIENCE) -> Any:
    """Give the strategy that a name stands for."""
    if hasattr(strategy, "num_replicas_in_sync"):
        return strategy
    name = "auto" if strategy is None else str(strategy)
    if name not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    if not on_tensorflow():
        return _with_jax(name, patience)
    import tensorflow as tf

    if name == "auto":
        name = _best(tf)
    if name == "mirrored":
        return _mirrored()
    if name == "multiworker":
        return _multiworker(patience)
    if name == "tpu":
        return _tpu(tf)
    return tf.distribute.get_strategy()


def on_tensorflow() -> bool:
    """Say whether Keras runs on TensorFlow; on JAX, no room imports it."""
    if "KERAS_BACKEND" in os.environ and "keras" not in sys.modules:
        return os.environ["KERAS_BACKEND"] == "tensorflow"
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def _with_jax(name: str, patience: float) -> Any:
    import keras

    if keras.backend.backend() != "jax":
        raise InputError(f"Expected Keras on TensorFlow or JAX. Received: {keras.backend.backend()!r}.")
    from transfer.distributed import jax_devices

    addresses, index = read_cluster() if name in ("auto", "multiworker") else ((), 0)
    return jax_devices.devices(name, addresses, index, patience)


def _best(tf: Any) -> str:
    if names_several("auto"):
        return "multiworker"
    if "TPU_NAME" in os.environ or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "default"


@functools.cache
def _mirrored() -> Any:
    """Make one strategy for the whole process: TensorFlow takes what the devices of a second one tell each
    other for messages of the first ("Shape mismatch in the collective instance")."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


def _tpu(tf: Any) -> Any:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise InputError(
            f"No TPU was found ({str(error).splitlines()[0]}). Use strategy 'auto', or in Colab choose a TPU "
            "runtime; TensorFlow has TPU wheels up to version 2.20."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


_met: list[Any] = []


def _multiworker(patience: float) -> Any:
    """Make the one strategy that a process can have with others, and meet them."""
    if _met:
        return _met[0]
    import tensorflow as tf

    addresses, index = read_cluster()
    if len(addresses) < 2:  # by itself, and a sixth slower if TensorFlow were told otherwise
        return (
            _mirrored() if len(tf.config.list_physical_devices("GPU")) > 1 else tf.distribute.get_strategy()
        )
    os.environ["TF_CONFIG"] = as_workers(addresses, index)
    keras_private.set_worker_timeouts(len(addresses), start=patience, heartbeat=HEARTBEAT)
    wait_for(addresses[1:] if index == 0 else (), patience)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow cannot start the worker that TF_CONFIG names: {str(error).splitlines()[0]}. Its strategy "
            "must be made before anything else is computed: call get_strategy('multiworker') first, and hand what "
            "it gives to the builders."
        ) from None
    except tf.errors.OpError as error:
        raise InputError(
            f"Not all of the {len(addresses)} workers came within {patience:.0f} seconds: {', '.join(addresses)}. Is "
            f"the same command running on each, and can they reach one another? ({error.message.splitlines()[0]})"
        ) from None
    tf.get_logger().setLevel("ERROR")  # each exchange would be said to retrace
    join(ProcessGroup(index, addresses, functools.partial(_all_gather, strategy)))
    _met.append(strategy)
    return strategy


def _all_gather(strategy: Any, own: np.ndarray) -> np.ndarray:
    """Join arrays of all workers; of each, its first replica speaks."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync // current_group().count

    def value(context: Any) -> Any:
        return tf.constant(own if context.replica_id_in_sync_group % replicas == 0 else own[:0])

    values = strategy.experimental_distribute_values_from_function(value)
    return np.asarray(strategy.gather(values, axis=0))


def scope_of(model: Any) -> Any:
    """Give the scope of the strategy that a model was made under, to compile it again in."""
    strategy = _strategy_of(model)
    if strategy is not None or not on_tensorflow():
        return strategy.scope() if strategy is not None else contextlib.nullcontext()
    import tensorflow as tf

    return tf.distribute.get_strategy().scope()


# Keras on JAX does not record the devices of a model as it does on TensorFlow. An entry lives as long as its model.
_JAX_DEVICES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _strategy_of(model: Any) -> Any:
    return _JAX_DEVICES.get(model) or getattr(model, "distribute_strategy", None)


def settle(model: Any, devices: Any) -> Any:
    """Note on which devices a model was made, as Keras does by itself on TensorFlow alone."""
    if not on_tensorflow():
        _JAX_DEVICES[model] = devices
    return model


def replicas_of(model: Any) -> int:
    """Say on how many devices copies of a model train together."""
    strategy = _strategy_of(model)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def must_synchronize(model: Any) -> bool:
    """Say whether BatchNormalization must be told to look at the whole batch: on JAX it does so by
    itself."""
    return on_tensorflow() and replicas_of(model) > 1


def while_training(model: Any) -> Any:
    """Give what Keras' `fit` has to run in: on JAX it asks then on which devices."""
    return contextlib.nullcontext() if on_tensorflow() else scope_of(model)


def batch_part_of(model: Any) -> BatchPart | None:
    """Say which part of each batch this process reads for a model."""
    if not on_tensorflow():  # JAX splits a part over devices itself, and compiles for each size of it
        return BatchPart(current_group().index, 1, current_group().count, whole=True)
    total = replicas_of(model)
    if total == 1:
        return None
    return BatchPart(
        current_group().index * (total // current_group().count), total // current_group().count, total
    )


def distributed(model: Any, dataset: Any, class_weights: Mapping[int, float] | None = None) -> Any:
    """Give a model's replicas the batches that this process reads for them."""
    batch_part = batch_part_of(model)
    if batch_part is None:
        return dataset
    if not on_tensorflow():
        if class_weights:
            dataset.class_weights = np.array([class_weights[label] for label in sorted(class_weights)])
        return dataset
    import tensorflow as tf

    if class_weights:
        weights = tf.constant([class_weights[label] for label in sorted(class_weights)], tf.float32)

        def weigh(images: Any, labels: Any) -> Any:
            numbers = tf.argmax(labels, axis=1) if len(labels.shape) > 1 else labels
            return images, labels, tf.gather(weights, numbers)

        dataset = dataset.map(weigh)
    found = model.distribute_strategy.distribute_datasets_from_function(lambda context: dataset)
    keras_private.divide_cardinality(found, batch_part.replicas)  # TensorFlow counts batches, Keras steps
    return found


def make_exact(model: Any, *, soft_labels: bool = False) -> None:
    """Let `fit` on several replicas do what it does on one, to rounding."""
    strategy, replicas = _strategy_of(model), replicas_of(model)
    if replicas == 1 or not on_tensorflow():
        return
    import keras
    import tensorflow as tf

    labels = np.zeros(model.output_shape[1:], "float32")[None] if soft_labels else np.zeros(1, "int64")
    made_up = (np.zeros((1, *model.input_shape[1:]), "float32"), labels)

    def rows(logs: dict[str, Any]) -> dict[str, Any]:
        return (
            {name: tf.reshape(value, (1,)) for name, value in logs.items()}
            if current_group().count > 1
            else logs
        )

    def train_step(data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        size = tf.cast(tf.shape(y)[0], "float32")
        whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=True)
            own = loss * tf.cast(size * replicas / whole, loss.dtype)
            scaled = model.optimizer.scale_loss(own)
        keras_private.update_loss(model, loss * replicas, size)
        weights = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        return rows(model.compute_metrics(x, y, predicted, sample_weight=weight))

    test_step = type(model).test_step.__get__(model)
    keras_private.replace_symbolic_build(model, made_up, strategy.scope)
    model.train_step, model.test_step = train_step, lambda data: rows(test_step(data))
