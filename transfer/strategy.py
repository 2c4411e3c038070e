"""Names of devices to `tf.distribute` strategies; the only place that makes them."""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import Any

from transfer.errors import InputError, unknown

STRATEGIES = ("auto", "default", "mirrored", "multiworker", "tpu")


def start_quietly(*, repeatable: bool = False) -> None:
    """Import TensorFlow and list its devices without the notes that it writes to standard error.

    They are for its developers, come in red in notebooks, and cannot be switched off otherwise.

    Args:
        repeatable: on a machine without a GPU, make operations give the same bits each time, which costs little there;
            for the whole process.

    Example:
        >>> start_quietly()
    """
    # 3: repeatable operations make tf.data write an error that is none, once for each data set.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if repeatable else "2")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
        if repeatable and not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def get_strategy(strategy: Any = "auto") -> Any:
    """Give the strategy that a name stands for.

    Args:
        strategy: `"default"`: one device; `"mirrored"`: all GPUs of this machine; `"multiworker"`: the
            workers that `TF_CONFIG` names; `"tpu"`: the TPU of this machine or of `TPU_NAME`; `"auto"`
            (also None): a TPU where there is one, else several GPUs, else one device. A strategy is given
            back as it is.

    Returns:
        A `tf.distribute.Strategy`; models are made inside its `scope()`.

    Raises:
        InputError: unknown name, no such device, or several workers, with which Keras 3's `fit` fails.

    Example:
        >>> get_strategy("default").num_replicas_in_sync
        1
    """
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    name = "auto" if strategy is None else str(strategy)
    if name not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    if name == "auto":
        name = _best(tf)
    if name == "mirrored":
        return _mirrored()
    if name == "multiworker":
        return _multiworker(tf)
    if name == "tpu":
        return _tpu(tf)
    return tf.distribute.get_strategy()


def _best(tf: Any) -> str:
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


def _multiworker(tf: Any) -> Any:
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        workers = len(cluster.get("worker", [])) + len(cluster.get("chief", []))
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"TF_CONFIG is not JSON that names the workers: {error}.") from None
    if workers > 1:
        # https://github.com/keras-team/keras/issues/20585, open: better refused than failing in mid-air.
        raise InputError(
            f"Keras 3 cannot `fit` on several workers yet; TF_CONFIG names {workers}. "
            "Use one machine with --strategy mirrored."
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow cannot start the worker that TF_CONFIG names: {str(error).splitlines()[0]}. Its strategy "
            "must be made before anything else is computed: call get_strategy('multiworker') first, and hand what "
            "it gives to the builders."
        ) from None


def scope_of(model: Any) -> Any:
    """Give the scope of the strategy that a model was made under, to compile it again in.

    Args:
        model: a Keras model.

    Returns:
        A context manager.

    Example:
        >>> import keras
        >>> with scope_of(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])):
        ...     pass
    """
    import tensorflow as tf

    return (getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()).scope()


def allow_uneven_batches(model: Any) -> None:
    """Let `fit` and `evaluate` on several replicas take batches that do not divide by their number.

    Keras 3 builds a model's metrics from the mean of the first batch over the replicas, which fails where
    their parts differ in size (https://github.com/keras-team/keras/issues/20585 has more of its kind). Here
    they are built from made-up data of the model's own shape. With one replica nothing is changed.

    Args:
        model: a compiled model.

    Example:
        >>> import keras
        >>> allow_uneven_batches(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    """
    import numpy as np

    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    made_up = (np.zeros((1, *model.input_shape[1:]), "float32"), np.zeros(1, "int64"))

    def build_from_made_up(iterator: Any = None, data_batch: Any = None) -> None:
        with strategy.scope():
            model._symbolic_build(data_batch=made_up)

    model._maybe_symbolic_build = build_from_made_up
