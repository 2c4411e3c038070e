"""Who trains together: what TF_CONFIG and Slurm say, and what is wrong with it."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest

from transfer.common.errors import InputError
from transfer.distributed.cluster import listens, names_several, read_cluster, wait_for


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")  # so that what is written there is taken back
    monkeypatch.delenv("TF_CONFIG")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def config(kind: str = "worker", index: int = 0, **cluster) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_without_a_word_this_process_is_alone():
    assert read_cluster() == ((), 0)
    assert not names_several("auto")


def test_workers_are_numbered_in_order_and_a_chief_comes_first(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(index=1, worker=["a:1", "b:2"]))
    assert read_cluster() == (("a:1", "b:2"), 1)
    monkeypatch.setenv("TF_CONFIG", config(index=0, worker=["a:1"], chief=["c:3"]))
    assert read_cluster() == (("c:3", "a:1"), 1)
    assert names_several("auto") and names_several(None) and not names_several("mirrored")


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
def test_a_tf_config_that_names_no_workers_is_refused_and_shown_how_it_should_be(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(
        InputError, match=r"TF_CONFIG is not JSON that names the workers.*Expected.*host0:2222"
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


def test_a_slurm_step_that_says_too_little_is_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="Set TF_CONFIG instead"):
        read_cluster()


def test_others_are_waited_for_so_long_and_named():
    with socket.create_server(("localhost", 0)) as server:
        here = f"localhost:{server.getsockname()[1]}"
        assert listens(here)
        wait_for([here], 1.0)
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"did not come within 0 seconds: localhost:1. Is"):
            wait_for([here, "localhost:1"], 0.3)
        assert 0.3 <= time.monotonic() - begun < 5
