"""What answers: a backend by its name, and a device, asked for or CUDA where there is one.

Never a silent fallback.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Literal, get_args

from artifacts.errors import DeviceError

BackendName = Literal["onnx", "torchscript", "export", "eager"]
BACKENDS: tuple[str, ...] = get_args(BackendName)
Device = Literal["cpu", "cuda"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(DeviceChoice)


def resolve_device(device: str) -> Device:
    """ "cpu" or "cuda" for what was asked: "auto" is CUDA where the driver shows a device.

    Raises DeviceError when "cuda" was asked for and there is none.
    """
    if device not in DEVICES:
        raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, found {device!r}")
    if device == "cpu":
        return "cpu"
    if cuda_device_count() > 0:
        return "cuda"
    if device == "cuda":
        raise DeviceError(
            "device cuda was asked for, and the CUDA driver shows none; take device cpu or auto"
        )
    return "cpu"


@functools.cache
def cuda_device_count() -> int:
    """The CUDA devices this process may use, asked of the driver itself (torch is not needed).

    See cuInit and cuDeviceGetCount in the CUDA driver API; it honours CUDA_VISIBLE_DEVICES.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def one_cuda_device(number: int) -> dict[str, str]:
    """The environment in which a process sees one device of those that this one may use.

    number: of the process, from 0; they share the devices in turns. Empty where there is one
    device, or none.
    """
    count = cuda_device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = visible.split(",") if visible else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": numbers[number % count]}
