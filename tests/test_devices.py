"""Which of several CUDA devices a process sees; one rule for the service, studies and jobs."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from artifacts import devices
from serving.scoring import processes


@pytest.mark.parametrize(
    ("visible", "count", "seen"),
    [
        (None, 3, ["0", "1", "2", "0"]),
        ("5,7,GPU-8a", 3, ["5", "7", "GPU-8a", "5"]),
        ("4", 1, [None, None]),
        (None, 0, [None, None]),
    ],
)
def test_processes_share_the_devices_in_turns(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, seen: list[str | None]
) -> None:
    monkeypatch.setattr(devices, "cuda_device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [devices.one_cuda_device(number) for number in range(len(seen))]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in found] == seen


@pytest.mark.parametrize(("device", "expected"), [("cuda", "1"), ("cpu", None)])
def test_a_scoring_process_sees_its_own_device(
    monkeypatch: pytest.MonkeyPatch, device: devices.Device, expected: str | None
) -> None:
    given: list[dict[str, str]] = []

    def popen(*_: Any, env: dict[str, str], **__: Any) -> None:
        given.append(env)

    for module in (devices, processes):
        monkeypatch.setattr(module, "cuda_device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    processes.start(1, device).connection.close()
    assert given[0].get("CUDA_VISIBLE_DEVICES") == expected
    assert processes.workers_on("cuda") == 2
