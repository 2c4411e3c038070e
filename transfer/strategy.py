"""Names of devices to `tf.distribute` strategies, what several replicas need to train exactly, and the only place that
makes or mends any of it.

Whatever the devices, a batch is one batch: `batch_size` counts the pictures of all replicas together, and learning
rates are those of one device, unscaled. So the number of devices changes how long training takes, and nothing else.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer.errors import InputError, unknown
from transfer.workers import Crew, Share, crew, join

STRATEGIES = ("auto", "default", "mirrored", "multiworker", "tpu")

PATIENCE = 300.0
"""Seconds to wait for other workers: machines of a cluster start one after the other."""

HEARTBEAT = 10
"""Seconds without a sign of life after which a worker is gone."""


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


def get_strategy(strategy: Any = "auto", *, patience: float = PATIENCE) -> Any:
    """Give the strategy that a name stands for.

    Args:
        strategy: `"default"`: one device; `"mirrored"`: all GPUs of this machine; `"multiworker"`: the processes that
            `TF_CONFIG` names, or those of a Slurm step; `"tpu"`: the TPU of this machine or of `TPU_NAME`; `"auto"`
            (also None): several workers where `TF_CONFIG` names them, a TPU where there is one, else several GPUs,
            else one device. A strategy is given back as it is.
        patience: seconds to wait for other workers.

    Returns:
        A `tf.distribute.Strategy`; models are made inside its `scope()`. With several workers, all have to go through
        the same program: `fit`, `evaluate` and `extract` are theirs together (see `workers`).

    Raises:
        InputError: unknown name, no such device, or workers that are not there.

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
        return _multiworker(patience)
    if name == "tpu":
        return _tpu(tf)
    return tf.distribute.get_strategy()


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


@functools.cache
def _multiworker(patience: float) -> Any:
    """Make the one strategy that a process can have with others, and meet them."""
    import tensorflow as tf

    addresses, index = read_cluster()
    try:
        if len(addresses) > 1:
            _meet_within(patience, len(addresses))
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
    if len(addresses) > 1:
        tf.get_logger().setLevel("ERROR")  # each exchange would be said to retrace
        join(Crew(index, addresses, functools.partial(_all_gather, strategy)))
    return strategy


def names_several(strategy: Any) -> bool:
    """Say whether a name will stand for several workers, before anything slow.

    Args:
        strategy: as for `get_strategy`.

    Returns:
        Whether it will.

    Example:
        >>> names_several("default")
        False
    """
    return strategy in (None, "auto", "multiworker") and len(read_cluster()[0]) > 1


def read_cluster() -> tuple[tuple[str, ...], int]:
    """Read which workers there are, and which of them this process is, from `TF_CONFIG` or else from Slurm.

    Returns:
        The addresses, and the place of this process's own among them; none and 0 where nothing names any.

    Raises:
        InputError: `TF_CONFIG` is not JSON that names workers and one of them as this process.

    Example:
        >>> read_cluster() if "TF_CONFIG" not in os.environ and "SLURM_STEP_NUM_TASKS" not in os.environ else ((), 0)
        ((), 0)
    """
    if "TF_CONFIG" not in os.environ:
        _ask_slurm()
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        addresses = {kind: [str(a) for a in cluster.get(kind, [])] for kind in ("chief", "worker")}
        known = [(kind, number) for kind, group in addresses.items() for number in range(len(group))]
        own = (task.get("type"), int(task.get("index", 0))) if task else None
        lists = all(isinstance(cluster.get(kind, []), list) for kind in addresses)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"TF_CONFIG is not JSON that names the workers: {error}. Expected {_TF_CONFIG}. Received: {text[:200]!r}."
        ) from None
    if not lists:
        raise InputError(
            f"TF_CONFIG is not JSON that names the workers. Expected {_TF_CONFIG}. Received: {text[:200]!r}."
        )
    if len(known) > 1 and own not in known:
        shown = "none" if own is None else f"{own[0]} {own[1]}"
        valid = ", ".join(f"{kind} {number}" for kind, number in known)
        raise InputError(f"Expected a task in TF_CONFIG that is one of {valid}. Received: {shown}.")
    found = tuple(addresses["chief"] + addresses["worker"])
    return found, known.index(own) if own in known else 0


_TF_CONFIG = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def _ask_slurm() -> None:
    """Write the workers of a Slurm step into `TF_CONFIG`, by TensorFlow's own resolver. Slurm itself gives each task
    its GPUs (`--gpus-per-task`)."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    import tensorflow as tf

    try:
        many = 2**16  # TensorFlow would hand out GPUs, of which it counts those of NVIDIA
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=many, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = slurm.cluster_spec().as_dict()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"Slurm's variables do not name the workers: {error}. Set TF_CONFIG instead."
        ) from None
    task = {"type": slurm.task_type, "index": slurm.task_id}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})


def _meet_within(seconds: float, count: int) -> None:
    """Set how long TensorFlow waits for workers, and how soon it misses one: an hour, and never, by itself."""
    from tensorflow.python.distribute import collective_all_reduce_strategy as strategies
    from tensorflow.python.eager import context

    addresses = json.loads(os.environ["TF_CONFIG"])["cluster"]
    job = strategies.coordination_config_pb2.CoordinatedJob
    jobs = [
        job(name=kind, num_tasks=len(addresses[kind])) for kind in ("chief", "worker") if addresses.get(kind)
    ]
    first = "chief" if addresses.get("chief") else "worker"
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{first}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(1000 * seconds),
        heartbeat_timeout_in_ms=1000 * HEARTBEAT,
        shutdown_barrier_timeout_in_ms=1000 * HEARTBEAT,
        coordinated_jobs=jobs,
    )


def _all_gather(strategy: Any, own: np.ndarray) -> np.ndarray:
    """Join arrays of all workers; of each, its first replica speaks."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync // crew().count

    def value(context: Any) -> Any:
        return tf.constant(own if context.replica_id_in_sync_group % replicas == 0 else own[:0])

    values = strategy.experimental_distribute_values_from_function(value)
    return np.asarray(strategy.gather(values, axis=0))


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


def share_of(model: Any) -> Share | None:
    """Say which part of each batch this process reads for a model.

    Args:
        model: a Keras model.

    Returns:
        The part; None where the model has one replica, which reads all.

    Example:
        >>> import keras
        >>> share_of(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])) is None
        True
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return None
    replicas = strategy.num_replicas_in_sync // crew().count
    return Share(crew().index * replicas, replicas, strategy.num_replicas_in_sync)


def distributed(model: Any, dataset: Any, class_weights: Mapping[int, float] | None = None) -> Any:
    """Give a model's replicas the batches that this process reads for them.

    Args:
        model: a Keras model.
        dataset: a `tf.data.Dataset` of pictures and labels that was made with `share_of(model)`.
        class_weights: how much the pictures of each class count, which Keras cannot apply here.

    Returns:
        What Keras' `fit` takes.

    Example:
        >>> import keras
        >>> distributed(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), "the same")
        'the same'
    """
    share = share_of(model)
    if share is None:
        return dataset
    import tensorflow as tf

    if class_weights:
        weights = tf.constant([class_weights[label] for label in sorted(class_weights)], tf.float32)

        def weigh(images: Any, labels: Any) -> Any:
            numbers = tf.argmax(labels, axis=1) if len(labels.shape) > 1 else labels
            return images, labels, tf.gather(weights, numbers)

        dataset = dataset.map(weigh)
    found = model.distribute_strategy.distribute_datasets_from_function(lambda context: dataset)
    found._cardinality //= share.replicas  # TensorFlow counts batches, Keras steps
    return found


def make_exact(model: Any) -> None:
    """Let `fit` on several replicas do what it does on one, to rounding. With one replica nothing is changed.

    Three things of Keras 3 are mended, each on this model alone (https://github.com/keras-team/keras/issues/20585):

    - it builds a model's metrics from the mean of the first batch over the replicas, which fails where their parts
      differ in size: here from made-up data;
    - it averages losses of replicas as if their parts were equal, so that a picture counts more where there are fewer:
      here each part counts by its size;
    - with several workers it joins what a step logs along an axis that scalars do not have.

    Args:
        model: a compiled model.

    Example:
        >>> import keras
        >>> make_exact(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    import keras
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    made_up = (np.zeros((1, *model.input_shape[1:]), "float32"), np.zeros(1, "int64"))

    def build_from_made_up(iterator: Any = None, data_batch: Any = None) -> None:
        with strategy.scope():
            model._symbolic_build(data_batch=made_up)

    def rows(logs: dict[str, Any]) -> dict[str, Any]:
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()} if crew().count > 1 else logs

    def train_step(data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        size = tf.cast(tf.shape(y)[0], "float32")
        whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=True)
            own = loss * tf.cast(size * replicas / whole, loss.dtype)
            scaled = model.optimizer.scale_loss(own)
        model._loss_tracker.update_state(loss * replicas, sample_weight=size)
        weights = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        return rows(model.compute_metrics(x, y, predicted, sample_weight=weight))

    test_step = type(model).test_step.__get__(model)
    model._maybe_symbolic_build = build_from_made_up
    model.train_step, model.test_step = train_step, lambda data: rows(test_step(data))
