"""Whose flags are whose, with streams and captures that only pretend to be."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tersor.format.errors import KernelError
from tersor.kernels import launcher
from tersor.kernels.tile import flags as module
from tersor.kernels.tile.flags import SLOT, Pool, flags

GPU = torch.device("cuda", 0)


class Streams:
    """What torch and the driver say of the current stream, and give."""

    def __init__(self) -> None:
        self.current, self.capture = 0, 0
        self.given: list[int] = []  # bytes

    def current_stream(self, _: object = None) -> Any:
        return SimpleNamespace(cuda_stream=self.current)

    def zeroed(self, nbytes: int, index: int) -> int:
        self.given.append(nbytes)
        return (index + 1) << 40 | sum(self.given[:-1])


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Stand-ins, and pools of addresses."""
    own = Streams()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", own.current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: own.capture != 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(module, "capture_of", lambda _: own.capture)
    monkeypatch.setattr(module, "zeroed", own.zeroed)
    pools = {index: Pool(index) for index in range(2)}
    monkeypatch.setattr(module, "pool", pools.__getitem__)
    return own


def address(device: torch.device = GPU) -> int:
    got = flags(8, device).value
    assert isinstance(got, int)
    return got


def test_a_stream_has_its_own_flags_and_keeps_them(streams: Streams) -> None:
    seen = {}
    for streams.current in (0, 7, 9):
        seen[streams.current] = address()
    assert len(set(seen.values())) == 3
    for streams.current in (9, 0, 7):
        assert address() == seen[streams.current]
    assert address(torch.device("cuda")) == address()
    assert address(torch.device("cuda", 1)) not in seen.values()


def test_slots_do_not_overlap(streams: Streams) -> None:
    begins = []
    for streams.current in range(100):
        begins.append(address())
    begins.sort()
    assert all(b - a >= 4 * SLOT for a, b in pairwise(begins))


def test_a_capture_has_flags_of_its_own_for_each_of_its_streams(streams: Streams) -> None:
    eager, seen = address(), set()
    for streams.capture in (1, 2):
        for streams.current in (0, 7):
            seen.add(address())
            assert address() in seen
    assert len(seen) == 4
    assert eager not in seen
    streams.capture, streams.current = 0, 0
    assert address() == eager


def test_the_driver_is_asked_for_many_at_a_time_also_in_captures(streams: Streams) -> None:
    seen = [address()]
    for streams.capture in range(1, 2 * module._CHUNK):
        seen.append(address())
    assert len(set(seen)) == 2 * module._CHUNK
    assert streams.given == [module._CHUNK * SLOT * 4] * 2
    streams.capture = 2 * module._CHUNK
    address()
    assert len(streams.given) == 3


def test_every_thread_has_flags_for_the_stream_per_thread(streams: Streams) -> None:
    streams.current = 2
    seen = [address()]
    thread = threading.Thread(target=lambda: seen.append(address()))
    thread.start()
    thread.join()
    assert len(set(seen)) == 2


def test_threads_that_launch_at_once_never_share_but_on_one_stream(streams: Streams) -> None:
    pool, begin = module.pool(0), threading.Barrier(8)
    got: list[tuple[int, int]] = []

    def launch(number: int) -> None:
        begin.wait()
        for i in range(200):
            stream = i if number % 2 else i * 8 + 10_000 + number
            got.append((stream, pool.slot((stream, 0, 0))))

    threads = [threading.Thread(target=launch, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1600
    of_stream = dict(got)
    assert all(of_stream[stream] == slot for stream, slot in got)
    assert len(set(of_stream.values())) == len(of_stream) == 1000


def test_a_grid_without_enough_flags_is_refused(streams: Streams) -> None:
    with pytest.raises(KernelError, match=f"needs {SLOT + 1} flags"):
        flags(SLOT + 1, GPU)


class Status:
    CU_STREAM_CAPTURE_STATUS_NONE, CU_STREAM_CAPTURE_STATUS_ACTIVE, CU_STREAM_CAPTURE_STATUS_INVALIDATED = (
        range(3)
    )


@pytest.mark.parametrize("suffix", ["", "_v3"])
def test_captures_are_asked_for_by_either_name(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    answers = {0: (0, 0), 7: (1, 42), 8: (2, 0)}
    driver = SimpleNamespace(
        CUstreamCaptureStatus=Status,
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        cuGetErrorName=lambda _: (0, b"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"),
        cuStreamGetCaptureInfo=lambda _: (1,),  # the older form: refuses
    )
    ask = {
        f"cuStreamGetCaptureInfo{suffix}": lambda s: (0, *answers[s], "graph", []) if s in answers else (9,)
    }
    vars(driver).update(ask)
    monkeypatch.setattr(launcher, "_driver", lambda: driver)
    assert launcher.capture_of(0) == 0
    assert launcher.capture_of(7) == 42
    with pytest.raises(KernelError, match="begin anew"):
        launcher.capture_of(8)
    with pytest.raises(KernelError, match="CAPTURE_IMPLICIT"):
        launcher.capture_of(9)
