"""Several devices with Keras on JAX: a counterpart of `tf.distribute` strategies that uses `keras.distribution`."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.cluster import wait_for_workers
from transfer.distributed.process_group import ProcessGroup, current_group, set_group

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class JaxDevices:
    """Devices that hold copies of a model and train them on parts of each batch; JAX sums over the devices."""

    distribution: keras.distribution.DataParallel | None = None
    num_replicas_in_sync: int = 1

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which models are made and trained on these devices."""
        return contextlib.nullcontext() if self.distribution is None else self.distribution.scope()


@functools.cache
def devices(
    name: str, addresses: tuple[str, ...] = (), index: int = 0, patience: float = 300.0
) -> JaxDevices:
    """Return the devices of a strategy's name; `patience` is in seconds."""
    import jax
    import keras

    if name == "multiworker" and len(addresses) < 2:
        raise InputError("Expected several workers in TF_CONFIG or in a Slurm step. Received: none.")
    if len(addresses) > 1 and current_group().count == 1:
        _connect(addresses, index, patience)
    found = keras.distribution.list_devices()
    if name == "tpu" and not found[0].startswith("tpu"):
        raise InputError(f"No TPU was found: JAX has {', '.join(found)}. Use strategy 'auto'.")
    accelerated = not found[0].startswith("cpu")
    if name == "default" or (name == "auto" and len(addresses) < 2 and not accelerated) or len(found) == 1:
        return JaxDevices()
    if jax.process_count() == 1:
        found = found[: jax.local_device_count()]
    return JaxDevices(keras.distribution.DataParallel(devices=found, auto_shard_dataset=False), len(found))


def _connect(addresses: tuple[str, ...], index: int, patience: float) -> None:
    import keras

    wait_for_workers(addresses[:1] if index else (), patience)
    try:
        # Keras passes the first address to JAX as that of the coordinator.
        keras.distribution.initialize(",".join(addresses), len(addresses), index)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"JAX cannot connect the {len(addresses)} processes {', '.join(addresses)}: {str(error).splitlines()[0]}. "
            "Start the same program on each machine, and call get_strategy before any other computation."
        ) from None
    set_group(ProcessGroup(index, addresses, _all_gather))


def _all_gather(rows: np.ndarray) -> np.ndarray:
    """Join the rows of all processes along axis 0."""
    from jax.experimental.multihost_utils import process_allgather

    counts = np.asarray(process_allgather(np.array([len(rows)], "int32"))).ravel()
    padded = np.zeros((int(counts.max()), *rows.shape[1:]), rows.dtype)  # JAX needs arrays of one length
    padded[: len(rows)] = rows
    joined = np.asarray(process_allgather(padded))
    return np.concatenate([part[:count] for part, count in zip(joined, counts, strict=True)])
