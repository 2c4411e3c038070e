"""Several workers on this machine, each in its own process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(index: int, ports: list[int], *, threads: int | None = None, **more: str) -> dict[str, str]:
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    found = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TQDM_DISABLE": "1", **more}
    if len(ports) > 1:
        found["TF_CONFIG"] = config
    if threads:
        found |= {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    return found


def start(arguments: list[str], index: int, ports: list[int], folder: Path, **options) -> subprocess.Popen:
    """Start a worker that writes its output to a file."""
    with (folder / f"worker-{index}.log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(index, ports, **options),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )


def run(arguments: list[str], count: int, folder: Path, *, timeout: float = 300, **options) -> list[str]:
    """Run a command on `count` workers at the same time, and return the output of each."""
    ports = free_ports(count)
    processes = [start(arguments, index, ports, folder, **options) for index in range(count)]
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [(folder / f"worker-{index}.log").read_text() for index in range(count)]
    assert not any(codes), "\n".join(outputs)
    return outputs
