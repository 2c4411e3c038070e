"""The names of devices, the `tf.distribute` strategies that they stand for, and exact training on several replicas.

`batch_size` counts the images of all replicas together, and learning rates are those of one device, unscaled. The
number of devices therefore changes only how long training takes, up to rounding and the random numbers of layers such
as Dropout.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from transfer.common import keras_private
from transfer.common.errors import InputError, one_line, unknown
from transfer.common.keras_setup import BACKENDS, backend, check_keras
from transfer.common.streams import discarded
from transfer.distributed.batch_order import BatchPart
from transfer.distributed.cluster import (
    STRATEGIES,
    read_cluster,
    requests_several_workers,
    tf_config_of,
    wait_for_workers,
)
from transfer.distributed.process_group import ProcessGroup, current_group, set_group

if TYPE_CHECKING:
    import keras

PATIENCE = 300.0
"""Seconds to wait for other workers: the machines of a cluster start one after the other."""

_HARMLESS = (
    r"`build\(\)` was called on layer",
    r"Layer '\w+' \(of type WindowAttention\) was passed an input with a mask",
)
"""Warnings of Keras about layers of KerasHub, which work nevertheless."""

HEARTBEAT = 10
"""Seconds without a heartbeat after which a worker counts as lost."""

log = logging.getLogger(__name__)


@runtime_checkable
class Strategy(Protocol):
    """A `tf.distribute.Strategy`, or its counterpart on JAX."""

    @property
    def num_replicas_in_sync(self) -> int:
        """The number of devices that train copies of a model together."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which models are made for these devices."""


def start_quietly(*, repeatable: bool = False) -> None:
    """Import TensorFlow and list its devices without its log messages on standard error."""
    # With deterministic operations, tf.data logs a false error for each data set: level 3 hides it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if repeatable else "2")
    check_keras()
    # TensorFlow imports JAX for one function of its Lite converter, which no command uses.
    hidden = ["jax"] if on_tensorflow() else []
    with discarded(2), keras_private.lean_imports(*hidden):
        if on_tensorflow():
            _start_tensorflow(repeatable=repeatable)
        import keras  # noqa: F401
    for text in _HARMLESS:
        warnings.filterwarnings("ignore", text)
    gc.freeze()  # these libraries stay loaded: exclude their objects from garbage collection
    _use_float32()


def _start_tensorflow(*, repeatable: bool) -> None:
    try:
        import tensorflow as tf
    except Exception as error:  # a broken installation may raise anything
        raise InputError(
            f"TensorFlow cannot be imported: {one_line(error)}. Install it again: "
            f"{BACKENDS['tensorflow']} --force-reinstall"
        ) from error
    tf.config.list_physical_devices()
    # Deterministic operations cost little on a CPU.
    if repeatable and not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def _use_float32() -> None:
    """Compute in float32: training fails in float16, and float64 is slow and no more accurate."""
    import keras

    if keras.config.floatx() != "float32":
        log.warning(
            "keras.json sets floatx to %s. Computing in float32; see --precision.", keras.config.floatx()
        )
        keras.config.set_floatx("float32")


def get_strategy(strategy: str | Strategy | None = "auto", *, patience: float = PATIENCE) -> Strategy:
    """Return the strategy of a name in `STRATEGIES`; a strategy is returned as it is."""
    if isinstance(strategy, Strategy):
        return strategy
    name = "auto" if strategy is None else str(strategy)
    if name not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    if not on_tensorflow():
        return _jax_devices(name, patience)
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
    """Return whether Keras runs on TensorFlow."""
    return backend() == "tensorflow"


def _jax_devices(name: str, patience: float) -> Strategy:
    if backend() != "jax":
        raise InputError(f"Expected Keras on TensorFlow or JAX. Received: {backend()!r}.")
    from transfer.distributed import jax_devices

    addresses, index = read_cluster() if name in ("auto", "multiworker") else ((), 0)
    return jax_devices.devices(name, addresses, index, patience)


def _best(tf: Any) -> str:
    """Return the name of the strategy that `auto` stands for on this machine."""
    if requests_several_workers("auto"):
        return "multiworker"
    if "TPU_NAME" in os.environ or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "default"


@functools.cache
def _mirrored() -> Strategy:
    """Return the one mirrored strategy of this process."""
    import tensorflow as tf

    # A second strategy would fail: TensorFlow mixes up the messages of the two ("Shape mismatch in the collective
    # instance").
    return tf.distribute.MirroredStrategy()


def _tpu(tf: Any) -> Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise InputError(
            f"No TPU was found ({str(error).splitlines()[0]}). Use strategy 'auto', or in Colab choose a TPU "
            "runtime; TensorFlow has TPU wheels up to version 2.20."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _multiworker(patience: float) -> Strategy:
    """Connect to the other workers and return the strategy; a process does so once."""
    if current_group().count > 1:
        return current_group().strategy
    import tensorflow as tf

    addresses, index = read_cluster()
    if len(addresses) < 2:  # with one worker, a multi-worker strategy trains a sixth slower
        return (
            _mirrored() if len(tf.config.list_physical_devices("GPU")) > 1 else tf.distribute.get_strategy()
        )
    os.environ["TF_CONFIG"] = tf_config_of(addresses, index)
    keras_private.set_worker_timeouts(len(addresses), start=patience, heartbeat=HEARTBEAT)
    wait_for_workers(addresses[1:] if index == 0 else (), patience)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow cannot start this worker of TF_CONFIG: {str(error).splitlines()[0]}. Its strategy must be "
            "made before any other computation: call get_strategy('multiworker') first, and pass its result to the "
            "builders."
        ) from None
    except tf.errors.OpError as error:
        raise InputError(
            f"Some of the {len(addresses)} workers did not connect within {patience:.0f} seconds: "
            f"{', '.join(addresses)}. Check that the same command runs on each, and that they can connect to each "
            f"other. ({error.message.splitlines()[0]})"
        ) from None
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns of retracing at each exchange
    set_group(ProcessGroup(index, addresses, functools.partial(_all_gather, strategy), strategy))
    return strategy


def _all_gather(strategy: Any, rows: np.ndarray) -> np.ndarray:
    """Join the rows of all workers along axis 0."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync // current_group().count

    def value(context: Any) -> Any:  # the first replica of each worker sends its rows
        return tf.constant(rows if context.replica_id_in_sync_group % replicas == 0 else rows[:0])

    values = strategy.experimental_distribute_values_from_function(value)
    return np.asarray(strategy.gather(values, axis=0))


# Keras records the strategy of a model on TensorFlow, but not on JAX. An entry is removed with its model.
_JAX_DEVICES: WeakKeyDictionary[keras.Model, Strategy] = WeakKeyDictionary()


def record_devices(model: keras.Model, devices: Strategy) -> keras.Model:
    """Remember the devices that a model was made for."""
    if not on_tensorflow():
        _JAX_DEVICES[model] = devices
    return model


def share_devices(model: keras.Model, other: keras.Model) -> keras.Model:
    """Remember that a model was made for the devices of another one."""
    if other in _JAX_DEVICES:
        _JAX_DEVICES[model] = _JAX_DEVICES[other]
    return model


def _strategy_of(model: keras.Model) -> Strategy | None:
    return _JAX_DEVICES.get(model) or getattr(model, "distribute_strategy", None)


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the scope of the strategy that a model was made under, to compile it again."""
    strategy = _strategy_of(model)
    if strategy is not None:
        return strategy.scope()
    if not on_tensorflow():
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.distribute.get_strategy().scope()


def replicas_of(model: keras.Model) -> int:
    """Return the number of devices that train copies of a model together."""
    strategy = _strategy_of(model)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def needs_synchronized_batchnorm(model: keras.Model) -> bool:
    """Return whether BatchNormalization must be synchronized by a flag; on JAX it sees the whole batch."""
    return on_tensorflow() and replicas_of(model) > 1


def training_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the context for `fit`: on JAX, Keras reads the devices when training starts."""
    return contextlib.nullcontext() if on_tensorflow() else scope_of(model)


def batch_part_of(model: keras.Model) -> BatchPart | None:
    """Return the part of each batch that this process reads for a model; None is the whole batch."""
    group = current_group()
    if (
        not on_tensorflow()
    ):  # JAX divides a part among devices itself and recompiles for each size: padding avoids that
        return BatchPart(group.index, 1, group.count, padded=True)
    total = replicas_of(model)
    own = total // group.count
    return None if total == 1 else BatchPart(group.index * own, own, total)


def distribute_dataset(
    model: keras.Model, dataset: Any, class_weights: Mapping[int, float] | None = None
) -> Any:
    """Return a data set that feeds this process's part of each batch to a model's replicas."""
    batch_part = batch_part_of(model)
    if batch_part is None:
        return dataset
    by_label = np.array([weight for _, weight in sorted((class_weights or {}).items())], "float32")
    if not on_tensorflow():
        return dataset.weighted(by_label) if class_weights else dataset
    import tensorflow as tf

    def weigh(images: Any, labels: Any) -> Any:
        numbers = tf.argmax(labels, axis=1) if len(labels.shape) > 1 else labels
        return images, labels, tf.gather(tf.constant(by_label), numbers)

    if class_weights:
        dataset = dataset.map(weigh)
    strategy: Any = _strategy_of(model)
    distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
    keras_private.divide_cardinality(
        distributed, batch_part.replicas
    )  # TensorFlow counts batches, Keras steps
    return distributed


def make_steps_exact(model: keras.Model, *, soft_labels: bool = False) -> None:
    """Make `fit` compute the same on several replicas as on one, up to rounding."""
    strategy, replicas = _strategy_of(model), replicas_of(model)
    if strategy is None or replicas == 1 or not on_tensorflow():
        return
    import keras
    import tensorflow as tf

    # This corrects three errors of Keras (https://github.com/keras-team/keras/issues/20585):
    # 1. It builds metrics from the mean of the first batch over the replicas, which fails if their parts differ in
    #    size.
    labels = np.zeros(model.output_shape[1:], "float32")[None] if soft_labels else np.zeros(1, "int64")
    example = (np.zeros((1, *model.input_shape[1:]), "float32"), labels)
    keras_private.replace_symbolic_build(model, example, strategy.scope)

    # 2. With several workers it joins the logs of a step along an axis, which scalars do not have.
    def as_rows(logs: dict[str, Any]) -> dict[str, Any]:
        several = current_group().count > 1
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()} if several else logs

    # 3. It averages the losses of replicas as if their parts had one size. Here each part counts by its size.
    def train_step(data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        size = tf.cast(tf.shape(y)[0], "float32")
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=True)
            own = loss * tf.cast(size * replicas / total, loss.dtype)
            scaled = model.optimizer.scale_loss(own)
        keras_private.update_loss(model, loss * replicas, size)
        weights = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        return as_rows(model.compute_metrics(x, y, predicted, sample_weight=weight))

    test_step = type(model).test_step.__get__(model)
    model.train_step, model.test_step = train_step, lambda data: as_rows(test_step(data))
