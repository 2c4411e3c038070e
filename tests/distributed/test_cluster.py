"""Workers read from TF_CONFIG and Slurm, and the errors of wrong values."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest

from transfer.common.errors import InputError
from transfer.distributed.cluster import (
    is_listening,
    read_cluster,
    requests_several_workers,
    wait_for_workers,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")  # monkeypatch then restores it after the test
    monkeypatch.delenv("TF_CONFIG")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def config(kind: str = "worker", index: int = 0, **cluster) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_without_configuration_there_is_one_process():
    assert read_cluster() == ((), 0)
    assert not requests_several_workers("auto")


def test_workers_are_numbered_in_order_and_a_chief_comes_first(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(index=1, worker=["a:1", "b:2"]))
    assert read_cluster() == (("a:1", "b:2"), 1)
    monkeypatch.setenv("TF_CONFIG", config(index=0, worker=["a:1"], chief=["c:3"]))
    assert read_cluster() == (("c:3", "a:1"), 1)
    assert (
        requests_several_workers("auto")
        and requests_several_workers(None)
        and not requests_several_workers("mirrored")
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '"worker"',
        '{"cluster": 3}',
        '{"cluster": {"worker": 3}}',
        '{"cluster": {"worker": "a"}}',
    ],
)
def test_an_invalid_tf_config_is_refused_with_a_valid_example(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(
        InputError, match=r"Expected JSON with the addresses of the workers in TF_CONFIG.*host0:2222"
    ):
        read_cluster()


@pytest.mark.parametrize("task", [("worker", 2), ("chief", 0), ("evaluator", 0)])
def test_a_task_that_is_not_in_the_cluster_is_refused(task, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(*task, worker=["a:1", "b:2"]))
    with pytest.raises(InputError, match="one of worker 0, worker 1. Received: " + task[0]):
        read_cluster()


@pytest.mark.parametrize("address", ["a", "a:", "a:b", "a:1:x"])
def test_an_address_without_a_port_is_refused(address, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(worker=[address, "b:2"]))
    with pytest.raises(InputError, match=f"of the form host:port. Received: {address}"):
        read_cluster()


def test_a_cluster_without_a_task_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:2"]}}))
    with pytest.raises(InputError, match="Received: none"):
        read_cluster()


def test_the_tasks_of_a_slurm_step_are_the_workers(monkeypatch):
    step = {"PROCID": "2", "STEP_NUM_TASKS": "3", "STEP_NODELIST": "n[01-02]", "STEP_TASKS_PER_NODE": "2,1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert read_cluster() == (("n01:8888", "n01:8889", "n02:8888"), 2)
    assert json.loads(os.environ["TF_CONFIG"])["task"] == {"type": "worker", "index": 2}


def test_an_incomplete_slurm_step_is_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="Set TF_CONFIG instead"):
        read_cluster()


def test_missing_workers_are_reported_after_the_waiting_time():
    with socket.create_server(("localhost", 0)) as server:
        here = f"localhost:{server.getsockname()[1]}"
        assert is_listening(here)
        wait_for_workers([here], 1.0)
        begun = time.monotonic()
        with pytest.raises(
            InputError, match=r"No answer from 1 workers? within 0 seconds: localhost:1. Check"
        ):
            wait_for_workers([here, "localhost:1"], 0.3)
        assert 0.3 <= time.monotonic() - begun < 5
