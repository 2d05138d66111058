"""What only a process of its own shows: interrupts, pipes, terminals, and the installed command."""

from __future__ import annotations

import importlib.util
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
# A fifth of a second for each tensor: time for a signal, however busy the machine is. It is heard even where whoever
# runs the tests ignores it, as shells have their background jobs do.
SLOW = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from tersor.pipeline import shard_writer as writer; line = writer._journal_line;"
    "writer._journal_line = lambda *of: (time.sleep(0.2), line(*of))[1];" + PROGRAM[2],
]


def test_interrupted_is_130_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-C while compressing: one line, status 130; the same command again ends it."""
    plain = write_model(tmp_path / "m", [{f"w{i}": gaussian((1024, 2048), seed=i) for i in range(16)}])
    command = ["compress", str(plain), str(tmp_path / "out"), "--json"]
    running = subprocess.Popen([*SLOW, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    again = subprocess.run([*PROGRAM, *command], check=True, capture_output=True, text=True)
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


SEVERAL = """
import contextlib, io, json, sys
from tersor.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tersor", *arguments, "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    print(json.dumps([status, out.getvalue()]))
"""


def test_doctor_demo_and_run(tmp_path: Path) -> None:
    """In one process, since Transformers takes seconds to import."""
    kept = str(tmp_path / "kept")
    prompt = ["The river rises in", "-n", "5"]
    commands = [
        ["doctor"],
        ["demo", "--keep", kept],
        ["run", f"{kept}/compressed", *prompt],
        ["run", f"{kept}/restored", *prompt],
        ["run", f"{kept}/compressed/model.safetensors", *prompt],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    statuses, documents = zip(*(json.loads(line) for line in ran.stdout.splitlines()), strict=True)
    doctor, demo, ours, plain, refused = (json.loads(document) for document in documents)
    checks = {c["name"]: c["status"] for c in doctor["checks"]}
    assert checks["codec"] == "ok"
    assert "broken" not in checks.values()
    assert demo["same_file_after_decompress"] is True
    assert demo["verified"]["ok"] is True
    if importlib.util.find_spec("transformers") is None:
        assert demo["same_tokens"] is None
        assert statuses == (0, 0, 6, 6, 6)
        return
    assert statuses == (0, 0, 0, 0, 2)
    assert demo["same_tokens"] is True
    assert ours["tokens"] == plain["tokens"]
    assert len(ours["tokens"]) == 5
    assert ours["weight_bytes"] < 0.75 * plain["weight_bytes"]
    assert "single file" in refused["error"]["message"]
