"""Two processes, started by accelerate as a user starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "scripts" / "accelerate"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(config, command, *, port=None, node=None, **environment):
    """Two processes on one machine, or, with a `node`, one of two machines with one process each."""
    machines = ["--num_machines", "2", "--machine_rank", str(node)] if node is not None else []
    place = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port or free_port())]
    # accelerate looks for a GPU before it starts a process on each
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*start, "--num_processes", "2", *machines, *place, *command],
        env={**known, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, seconds=120):
    """The output of a process that ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-4000:]
    return output
