"""Several devices with Keras on JAX: what stands there for a `tf.distribute` strategy, over `keras.distribution`."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.distributed.cluster import wait_for
from transfer.distributed.process_group import ProcessGroup, current_group, join


@dataclass(frozen=True)
class JaxDevices:
    """Devices that train copies of a model on parts of each batch; JAX itself sees to sums over them."""

    # Of Keras.
    distribution: Any = None
    num_replicas_in_sync: int = 1

    def scope(self) -> Any:
        """Inside, models are made and trained for these devices."""
        return contextlib.nullcontext() if self.distribution is None else self.distribution.scope()


@functools.cache
def devices(
    name: str, addresses: tuple[str, ...] = (), index: int = 0, patience: float = 300.0
) -> JaxDevices:
    """Give the devices that a name stands for."""
    import jax
    import keras

    if name == "multiworker" and len(addresses) < 2:
        raise InputError("Expected a TF_CONFIG, or a Slurm step, that names several workers. There is none.")
    if len(addresses) > 1 and current_group().count == 1:
        _meet(addresses, index, patience)
    found = keras.distribution.list_devices()
    if name == "tpu" and not found[0].startswith("tpu"):
        raise InputError(f"No TPU was found: JAX has {', '.join(found)}. Use strategy 'auto'.")
    accelerated = not found[0].startswith("cpu")
    if name == "default" or (name == "auto" and len(addresses) < 2 and not accelerated) or len(found) == 1:
        return JaxDevices()
    if jax.process_count() == 1:
        found = found[: jax.local_device_count()]
    return JaxDevices(keras.distribution.DataParallel(devices=found, auto_shard_dataset=False), len(found))


def _meet(addresses: tuple[str, ...], index: int, patience: float) -> None:
    import keras

    wait_for(addresses[:1] if index else (), patience)
    try:
        # Keras hands the first of them to JAX, through which all meet.
        keras.distribution.initialize(",".join(addresses), len(addresses), index)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"JAX could not bring {len(addresses)} processes together, {', '.join(addresses)}: "
            f"{str(error).splitlines()[0]}. Ask for them before anything else is computed, and on each machine."
        ) from None
    join(ProcessGroup(index, addresses, _all_gather))


def _all_gather(own: np.ndarray) -> np.ndarray:
    """Join arrays of all processes; JAX wants them of one length."""
    from jax.experimental.multihost_utils import process_allgather

    counts = np.asarray(process_allgather(np.array([len(own)], "int32"))).ravel()
    filled = np.zeros((int(counts.max()), *own.shape[1:]), own.dtype)
    filled[: len(own)] = own
    joined = np.asarray(process_allgather(filled))
    return np.concatenate([part[:count] for part, count in zip(joined, counts, strict=True)])
