"""A tensor-parallel plan is refused with the reason, not run into."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Build = Callable[[str], Path]

SCRIPT = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto")
except Exception as error:
    print("REFUSED", error)
"""


def test_two_ranks(compressed: Build) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(compressed("llama"))],
            env=os.environ
            | {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=120)
        assert "tensor parallelism cannot shard compressed weights" in out
