"""The workers that train together and the number of this process among them, from `TF_CONFIG` or from Slurm."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence

from transfer.common.errors import InputError

STRATEGIES = ("auto", "default", "mirrored", "multiworker", "tpu")
"""Names of strategies.

`default` is one device, `mirrored` all GPUs of this machine, `multiworker` the processes of `TF_CONFIG` or of a Slurm
step, and `tpu` the TPU of this machine or of `TPU_NAME`. `auto` takes several workers if `TF_CONFIG` lists them, else a
TPU if there is one, else several GPUs, else one device.
"""


def requests_several_workers(strategy: object) -> bool:
    """Return whether a strategy's name means several workers here; import no slow library."""
    return strategy in (None, "auto", "multiworker") and len(read_cluster()[0]) > 1


def read_cluster() -> tuple[tuple[str, ...], int]:
    """Return the workers' addresses, and the index of this process, from `TF_CONFIG` or else from Slurm."""
    if "TF_CONFIG" not in os.environ:
        _read_slurm()
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        groups = {kind: cluster.get(kind, []) for kind in ("chief", "worker")}
        if not all(isinstance(group, list) for group in groups.values()):
            raise TypeError("the addresses are not a list")
        known = [(kind, number) for kind, group in groups.items() for number in range(len(group))]
        own = (task.get("type"), int(task.get("index", 0))) if task else None
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"Expected JSON with the addresses of the workers in TF_CONFIG, such as {_TF_CONFIG}. "
            f"Received: {text[:200]!r} ({error})."
        ) from None
    if len(known) > 1 and own not in known:
        shown = "none" if own is None else f"{own[0]} {own[1]}"
        valid = ", ".join(f"{kind} {number}" for kind, number in known)
        raise InputError(f"Expected a task in TF_CONFIG that is one of {valid}. Received: {shown}.")
    addresses = tuple(str(address) for group in groups.values() for address in group)
    wrong = [a for a in addresses if not a.rpartition(":")[2].isdigit() or ":" not in a]
    if wrong:
        raise InputError(
            f"Expected addresses in TF_CONFIG of the form host:port. Received: {', '.join(wrong)}."
        )
    return addresses, known.index(own) if own in known else 0


_TF_CONFIG = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def tf_config_of(addresses: Sequence[str], index: int) -> str:
    """Return a `TF_CONFIG` that lists all processes as workers, so that the first one is the chief."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def _read_slurm() -> None:
    """Write the workers of a Slurm step into `TF_CONFIG`."""
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return
    import tensorflow as tf

    try:
        # TensorFlow would assign GPUs, but detects only those of NVIDIA: a large number of GPUs turns this off.
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = slurm.cluster_spec().as_dict()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"Expected Slurm's variables to describe the workers. Received: {error}. Set TF_CONFIG instead."
        ) from None
    task = {"type": slurm.task_type, "index": slurm.task_id}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})


def wait_for_workers(addresses: Sequence[str], seconds: float) -> None:
    """Wait until all addresses are listening, which TensorFlow's chief does without a limit."""
    deadline, missing = time.monotonic() + seconds, list(addresses)
    while missing := [address for address in missing if not is_listening(address)]:
        if time.monotonic() > deadline:
            raise InputError(
                f"No answer from {len(missing)} workers within {seconds:.0f} seconds: {', '.join(missing)}. Check that "
                "the same command runs there, and that this machine can connect to them."
            )
        time.sleep(min(0.2, seconds))


def is_listening(address: str) -> bool:
    """Return whether a process is listening at an address host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
