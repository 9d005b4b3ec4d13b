"""A run in two processes of two devices each, for real: they talk by gloo."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from train_cases import SMALL

from train.engine.processes import RESUMABLE
from train.main import main

STEPS = 30
EVERY = ["--steps", str(STEPS), "--val-every", "10", "--checkpoint-every", "10"]


def command(model: Path, folder: Path) -> list[str]:
    return ["pretrain", *SMALL, *EVERY, "--init", str(model), "--workdir", str(folder)]


def start(process: int, port: int, arguments: list[str]) -> subprocess.Popen:
    who = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
        "JAX_NUM_CPU_DEVICES": "2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "train.main", *arguments],
        env=os.environ | who,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_processes_train_like_one_stop_together_and_hand_over_to_one(
    smoke_mae: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    port = free_port()
    pair = [start(i, port, command(smoke_mae, shared)) for i in range(2)]
    while not metrics(shared) and all(process.poll() is None for process in pair):
        time.sleep(0.1)
    pair[1].send_signal(signal.SIGTERM)  # only one is asked
    printed = [process.communicate()[1] for process in pair]
    assert [process.returncode for process in pair] == [RESUMABLE] * 2, printed
    assert "on 4 cpu, process 0 of 2" in printed[0]
    last = metrics(shared)[-1]["step"]
    assert 0 < last < STEPS
    assert all(f"stopped after step {last} of {STEPS}" in text for text in printed)

    main(command(smoke_mae, shared))  # one process, one device
    main(command(smoke_mae, alone))
    for ours, other in zip(metrics(shared), metrics(alone), strict=True):
        assert (ours["step"], ours["split"]) == (other["step"], other["split"])
        assert math.isclose(ours["loss"], other["loss"], rel_tol=1e-4)
