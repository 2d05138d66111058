"""Compiled kernels on torch's current stream.

A `Kernel` is loaded once per device, at its first launch (so warm a model up before capturing a CUDA
graph, as torch asks for anyway), and launched through the driver: no synchronisation, no allocation,
nothing that a capture would refuse.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch

from tersor.format.errors import KernelError, MissingDependency
from tersor.kernels.compiler import Program, machine_code

Argument = torch.Tensor | float | ctypes.Structure | ctypes.c_void_p | None

HOPPER = 9  # compute capability from which on a kernel may begin before its predecessor ends, and there are clusters
BLOCK_SHARED = 1 << 10  # bytes of shared memory that the driver takes for each block
UNASKED_SHARED = 48 * 1024  # bytes of shared memory a block may have without asking


@cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependency("the GPU kernels need cuda-bindings: pip install cuda-bindings") from error
    return driver


def _check(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a driver call, or KernelError with the driver's name for what went wrong."""
    error, *values = result
    driver = _driver()
    if error != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(error)
        raise KernelError(
            f"{doing}: {name.decode() if name else error}; `tersor doctor` checks the installation"
        )
    return values[0] if values else None


@cache
def architecture(device: torch.device) -> str:
    """The architecture to compile for on this device, as in "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise KernelError(f"{device} is sm_{major}{minor}; the kernels need sm_80 or newer")
    return f"sm_{major}{minor}"


@dataclass(frozen=True)
class Launch:
    """Blocks and threads of one launch, and dynamic shared memory in bytes.

    `overlap`: the kernel may begin while its predecessor ends, because it says itself, by
    `previous_done()`, from where on it needs its predecessor's results (sm_90 and newer).
    """

    blocks: tuple[int, int]
    threads: int
    shared: int = 0
    overlap: bool = False


@dataclass
class Kernel:
    """A program that can be launched.

    Arguments are tensors (their address), other addresses, ints (32 bits), floats, structures.
    """

    program: Program
    shared: int = 0  # the most dynamic shared memory any launch asks for
    dense: bool = False  # blocks of a cluster may share a multiprocessor; so an H200 holds more of them
    _loaded: dict[int, Any] = field(default_factory=dict, repr=False)
    _types: tuple[Any, ...] = ()  # of the arguments, the same at every launch

    def __call__(self, launch: Launch, device: torch.device, *arguments: Argument) -> None:
        """Launch on torch's current stream of `device`."""
        current = torch.cuda.current_device()
        index = current if device.index is None else device.index
        if index == current:  # nearly always; switching there and back takes as long as a launch
            self._launch(launch, index, arguments)
        else:
            with torch.cuda.device(index):
                self._launch(launch, index, arguments)

    def clusters(self, launch: Launch, device: torch.device) -> int:
        """How many clusters like `launch` the device holds at a time.

        That is fewer than its multiprocessors have room for where they do not come out even in neighbourhoods.
        """
        driver = _driver()
        index = torch.cuda.current_device() if device.index is None else device.index
        config, attribute = _shaped(launch), driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attribute.value.clusterDim
        size.x, size.y, size.z = *launch.blocks, 1
        config.attrs, config.numAttrs = [attribute], 1
        with torch.cuda.device(index):
            result = driver.cuOccupancyMaxActiveClusters(self._function(index), config)
        return int(_check(result, f"asking for room for {self.program.entry}"))

    def _function(self, index: int) -> Any:
        function = self._loaded.get(index)
        if function is None:
            function = self._loaded[index] = self._load(torch.device("cuda", index))
        return function

    def _launch(self, launch: Launch, index: int, arguments: tuple[Argument, ...]) -> None:
        function = self._function(index)
        values = _values(arguments, index, self.program.entry)
        self._types = types = self._types or tuple(map(_type, arguments))
        config = _config(launch, index, torch.cuda.current_stream(index).cuda_stream)
        result = _driver().cuLaunchKernelEx(config, function, (values, types), 0)
        if result[0]:
            _check(result, f"launching {self.program.entry}")

    def _load(self, device: torch.device) -> Any:
        driver, entry = _driver(), self.program.entry
        torch.cuda.current_stream(device)  # torch makes its context current
        cubin = machine_code(self.program, architecture(device))
        module = _check(driver.cuModuleLoadData(cubin), f"loading {entry}")
        function = _check(driver.cuModuleGetFunction(module, entry.encode()), f"finding {entry}")
        if self.shared > UNASKED_SHARED:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(driver.cuFuncSetAttribute(function, attribute, self.shared), f"shared memory of {entry}")
        if self.dense:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
            policy = driver.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING
            _check(driver.cuFuncSetAttribute(function, attribute, int(policy)), f"clusters of {entry}")
        return function


def _shaped(launch: Launch) -> Any:
    """The driver's form of a launch, but for stream and attributes."""
    config = _driver().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = *launch.blocks, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
    config.sharedMemBytes = launch.shared
    return config


@lru_cache(maxsize=4096)
def _config(launch: Launch, device: int, stream: int) -> Any:
    """The driver's form of a launch on a stream; never changed, because threads share it."""
    driver, config = _driver(), _shaped(launch)
    config.hStream = stream
    if launch.overlap and torch.cuda.get_device_capability(device)[0] >= HOPPER:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
    return config


def _values(arguments: tuple[Argument, ...], device: int, entry: str) -> tuple[Any, ...]:
    """What the driver is given. A tensor elsewhere than on `device` would be an illegal address there."""
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            if argument.get_device() != device:
                raise KernelError(
                    f"{entry} runs on cuda:{device}, but was given a tensor on {argument.device}"
                )
            values.append(argument.data_ptr())
        elif argument is None:
            values.append(0)
        elif isinstance(argument, ctypes.c_void_p):
            values.append(argument.value)
        else:
            values.append(argument)
    return tuple(values)


def _type(argument: Argument) -> Any:
    """As the driver is told; structures tell it themselves."""
    if isinstance(argument, int):
        return ctypes.c_int
    if isinstance(argument, float):
        return ctypes.c_float
    return None if isinstance(argument, ctypes.Structure) else ctypes.c_void_p


def capture_of(stream: int) -> int:
    """The number, unique in this process, of the capture into a CUDA graph that the stream is in; else 0."""
    driver = _driver()
    # Bindings of CUDA 12 have by the name with a suffix what those of CUDA 13 have by the plain one, and by the plain
    # one an older form, which refuses streams whose last launch may overlap with the next.
    ask = getattr(driver, "cuStreamGetCaptureInfo_v3", None) or driver.cuStreamGetCaptureInfo
    error, *values = ask(stream)
    status = _check((error, *values[:1]), "asking a stream whether it is being captured")
    if status == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
        return 0
    if status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE:
        raise KernelError("the stream's capture into a CUDA graph has failed; end it and begin anew")
    return int(values[1])


def zeroed(nbytes: int, index: int) -> int:
    """The address of so much memory on the device of this index, zero, that the driver gives for good.

    torch's allocator does not know of it. Other streams may use it at once; it may be asked for during a capture.
    """
    driver = _driver()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    with torch.cuda.device(index):
        torch.cuda.current_stream(index)  # torch makes its context current
        before = _check(driver.cuThreadExchangeStreamCaptureMode(relaxed), "asking to allocate in a capture")
        try:
            address = _check(driver.cuMemAlloc(nbytes), f"allocating {nbytes} bytes on cuda:{index}")
            flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            stream = _check(driver.cuStreamCreate(flag), "making a stream")
            _check(driver.cuMemsetD8Async(address, 0, nbytes, stream), "clearing memory")
            _check(driver.cuStreamSynchronize(stream), "clearing memory")
            _check(driver.cuStreamDestroy(stream), "ending a stream")
        finally:
            driver.cuThreadExchangeStreamCaptureMode(before)
    return int(address)


class TensorMap(ctypes.Structure):
    """A matrix in GPU memory as bulk copies are told of it (sm_90): mbarrier.cuh's struct of the same name."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


def tensor_map(x: torch.Tensor, rows: int, cols: int) -> TensorMap:
    """Parts of `rows` (256 at most) x `cols` (64) of a bfloat16 matrix, swizzled as the tensor cores read them.

    `x` begins at a multiple of 16 bytes, its rows are dense, do not overlap and begin at multiples of 16 bytes.
    """
    pitch = x.stride(0) if x.shape[0] > 1 else -(-x.shape[1] // 8) * 8
    return _tensor_map(x.data_ptr(), *x.shape, 2 * pitch, rows, cols)


@lru_cache(maxsize=4096)  # the same few places come again and again
def _tensor_map(address: int, height: int, width: int, pitch: int, rows: int, cols: int) -> TensorMap:
    driver = _driver()
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    result = driver.cuTensorMapEncodeTiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, address,
        [u64(width), u64(height)], [u64(pitch)], [u32(cols), u32(rows)], [u32(1), u32(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    made = _check(result, f"describing a matrix of {height} x {width}, rows {pitch} bytes apart")
    return TensorMap.from_buffer_copy(ctypes.string_at(made.getPtr(), ctypes.sizeof(TensorMap)))


@cache
def shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block may have on the device: 99 KB on small GPUs, 227 KB on large ones."""
    driver = _driver()
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    index = device.index if device.index is not None else torch.cuda.current_device()
    return int(
        _check(driver.cuDeviceGetAttribute(attribute, index), f"asking {device} for its shared memory")
    )


@cache
def has_clusters(device: torch.device) -> bool:
    """Whether blocks may form clusters there."""
    return torch.cuda.get_device_capability(device)[0] >= HOPPER


@cache
def has_warpgroups(device: torch.device) -> bool:
    """Whether four warps may multiply together there (wgmma): on sm_90 alone, on no later GPU."""
    return architecture(device) == "sm_90"


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
