"""What only a process of its own shows: interrupts, pipes, terminals, and the installed command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crafting import gaussian, write_model

PROGRAM = [sys.executable, "-c", "from tersor.cli import main; main()"]


def test_interrupted_is_130_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-C while compressing: one line, status 130; the same command again ends it."""
    plain = write_model(tmp_path / "m", [{f"w{i}": gaussian((1024, 2048), seed=i) for i in range(16)}])
    command = [*PROGRAM, "compress", str(plain), str(tmp_path / "out"), "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out.partial" / "model.safetensors.journal"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 800) and time.monotonic() < until:
        time.sleep(0.001)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "run the same command again" in json.loads(out)["error"]["message"]
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["resumed_tensors"] > 0


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """`tersor inspect ... | head -1` ends quietly."""
    from tersor.pipeline.compress import compress

    many = {f"layer.{i}.weight": gaussian((64, 64), seed=i) for i in range(300)}
    made = compress(write_model(tmp_path / "m", [many]), tmp_path / "c").path
    line = f'"{sys.executable}" -c "from tersor.cli import main; main()" inspect "{made}" | head -1'
    ran = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True)
    assert "tensor" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_progress_goes_to_the_terminal_and_not_to_stdout(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    plain = write_model(tmp_path / "m", [{"w": gaussian((512, 512))}])
    leader, follower = pty.openpty()
    command = [*PROGRAM, "compress", str(plain), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, text=True) as running:
        out, _ = running.communicate()
    os.close(follower)
    shown = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert b"compressing" in shown
    assert "compressing" not in out
    assert "\x1b" not in out
    assert "coded" in out


def test_doctor_and_demo(tmp_path: Path) -> None:
    """Both end with status 0 here, and their JSON says so."""
    doctor = subprocess.run([*PROGRAM, "doctor", "--json"], check=False, capture_output=True, text=True)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    checks = {c["name"]: c["status"] for c in json.loads(doctor.stdout)["checks"]}
    assert checks["codec"] == "ok"
    assert "broken" not in checks.values()
    demo = subprocess.run(
        [*PROGRAM, "demo", "--json", "--keep", str(tmp_path / "kept")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert demo.returncode == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert result["same_file_after_decompress"] is True
    assert result["same_tokens"] in (True, None)
    assert result["verified"]["ok"] is True
    assert (tmp_path / "kept" / "compressed" / "config.json").exists()
