"""Which processes train together, and which of them this one is: by `TF_CONFIG`, or by Slurm."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from transfer.common.errors import InputError


def names_several(strategy: Any) -> bool:
    """Say whether a name will stand for several workers, before anything slow."""
    return strategy in (None, "auto", "multiworker") and len(read_cluster()[0]) > 1


def read_cluster() -> tuple[tuple[str, ...], int]:
    """Read which workers there are, and which of them this process is, from `TF_CONFIG` or else from
    Slurm."""
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
    wrong = [address for address in found if not address.rpartition(":")[2].isdigit() or ":" not in address]
    if wrong:
        raise InputError(
            f"Expected addresses in TF_CONFIG of the form host:port. Received: {', '.join(wrong)}."
        )
    return found, known.index(own) if own in known else 0


_TF_CONFIG = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def as_workers(addresses: Sequence[str], index: int) -> str:
    """Give a `TF_CONFIG` in which all are workers; without one that is called so, the first is the
    chief."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def _ask_slurm() -> None:
    """Write the workers of a Slurm step into `TF_CONFIG`, by TensorFlow's own resolver."""
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
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


def wait_for(addresses: Sequence[str], seconds: float) -> None:
    """Wait until others listen, as TensorFlow's chief does without end."""
    deadline = time.monotonic() + seconds
    missing = list(addresses)
    while missing:
        missing = [address for address in missing if not listens(address)]
        if missing and time.monotonic() > deadline:
            raise InputError(
                f"Workers did not come within {seconds:.0f} seconds: {', '.join(missing)}. Is the same command running "
                "there, and can it be reached from here?"
            )
        if missing:
            time.sleep(min(0.2, seconds))


def listens(address: str) -> bool:
    """Say whether somebody listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
