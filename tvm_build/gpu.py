"""What the compiler knows about each GPU it compiles for: the figures behind every *predicted* number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from structadmm.errors import UserError

Memory = Literal["auto", "buffer", "image"]


@dataclass(frozen=True)
class Gpu:
    """One compilation target.

    Attributes:
        name: as `--target` spells it.
        kind: "adreno", or "cpu" for OpenCL drivers that run on the host's cores.
        gflops_fp32: peak float32 GFLOP/s, a multiply-add counted as two.
        gflops_fp16: peak half GFLOP/s; equal to fp32 where half arithmetic is no faster.
        dram_gb_s: sustained bandwidth of memory.
        l2_gb_s: bandwidth of buffers that hit the last-level cache of the GPU.
        texture_gb_s: bandwidth of image reads that hit the texture cache.
        l2_bytes: size of that last-level cache.
        cores: shader processors (work-groups run at the same time).
        wave: work-items that execute in lockstep.
        vec4_registers: 128-bit registers a work-item may use while `latency_waves` waves stay resident.
        latency_waves: waves a core needs to hide memory latency.
        local_bytes: local memory of a work-group.
        max_work_group: work-items of a work-group that every kernel may have.
        image_max: texels of an image's width and height that every driver of this GPU takes.
        image_buffer_max: texels of an image of a buffer.
        constant_bytes: constants of a kernel up to this size are held beside the arithmetic, and cost no load.
        memory: where C4 tensors and weights may lie: "auto" for images and constant memory where they pay, "buffer" for
            buffers alone, "image" for images wherever they fit, or else buffers that are read as images.
        launch_us: time between two dependent launches on an in-order queue.
        efficiency: share of the peak that good convolution kernels reach; fitted, or taken from the literature.
        uncertainty: factor within which a prediction is believed: a predicted time t means [t / u, t * u].
        source: where the figures come from.
    """

    name: str
    kind: str
    gflops_fp32: float
    gflops_fp16: float
    dram_gb_s: float
    l2_gb_s: float
    texture_gb_s: float
    l2_bytes: int
    cores: int
    wave: int
    vec4_registers: int
    latency_waves: int
    local_bytes: int
    max_work_group: int
    image_max: int
    image_buffer_max: int
    constant_bytes: int
    launch_us: float
    efficiency: float
    uncertainty: float
    source: str
    memory: Memory = "auto"

    def between_us(self, launches: int) -> float:
        """What lies between the launches of one layer, which measurements of single kernels leave out."""
        return (launches - 1) * self.launch_us


def _adreno(
    model: int, *, fp32: float, fp16: float, dram: float, cores: int, l2_kb: int, clock_mhz: int, source: str
) -> Gpu:
    """An Adreno of the A5xx to A8xx families.

    Cache bandwidths scale with clock and cores from the Adreno 640, the only part with published measurements (L2 88
    GB/s and texture L1 192 GB/s at 585 MHz and 2 cores). Register files are 96 to 144 vec4 for 128 work-items,
    depending on who is asked; 24 leaves four waves with the smaller one. Six waves to hide latency and a fifth of the
    peak are inferred from what other engines reach. Launch overhead is not documented: 20 us is what people report for
    live enqueues. Images are up to 16384 texels wide and high on all of them, images of buffers up to 2**27 texels
    long by every `clinfo` that people posted, from the Adreno 505 to the 750. Their small file of constants (4 KB on
    A6xx, 8 KB from A7xx) is used to seven eighths, as other engines do: the driver keeps the kernel's arguments there.
    """
    scale = clock_mhz / 585 * cores / 2
    return Gpu(
        name=f"adreno-{model}",
        kind="adreno",
        gflops_fp32=fp32,
        gflops_fp16=fp16,
        dram_gb_s=dram,
        l2_gb_s=88 * scale,
        texture_gb_s=192 * scale,
        l2_bytes=l2_kb * 1024,
        cores=cores,
        wave=64 if model < 600 else 128,
        vec4_registers=24,
        latency_waves=6,
        local_bytes=32 * 1024,
        max_work_group=256,
        image_max=16384,
        image_buffer_max=1 << 27,
        constant_bytes=0 if model < 600 else 3584 if model < 700 else 7168,
        launch_us=20.0,
        efficiency=0.2,
        uncertainty=3.0,
        source=source,
    )


_DATASHEET = "datasheet peak, caches scaled from the Adreno 640"
_GUESS = "interpolated between its neighbours, no published measurement"

_GPUS = (
    _adreno(540, fp32=567, fp16=567, dram=29.9, cores=2, l2_kb=1024, clock_mhz=710, source=_DATASHEET),
    _adreno(
        630,
        fp32=468,
        fp16=690,
        dram=29.0,
        cores=2,
        l2_kb=1024,
        clock_mhz=710,
        source="measured peaks, bandwidth of the SoC",
    ),
    _adreno(
        640,
        fp32=814,
        fp16=1797,
        dram=30.0,
        cores=2,
        l2_kb=128,
        clock_mhz=585,
        source="measured fp32 and bandwidths, datasheet fp16",
    ),
    _adreno(650, fp32=1200, fp16=2400, dram=44.0, cores=3, l2_kb=128, clock_mhz=587, source=_GUESS),
    _adreno(660, fp32=1382, fp16=2765, dram=51.0, cores=3, l2_kb=128, clock_mhz=900, source=_DATASHEET),
    _adreno(730, fp32=2000, fp16=4000, dram=51.0, cores=4, l2_kb=256, clock_mhz=900, source=_DATASHEET),
    _adreno(740, fp32=2500, fp16=5000, dram=67.0, cores=6, l2_kb=256, clock_mhz=680, source=_GUESS),
    _adreno(750, fp32=3070, fp16=6140, dram=76.8, cores=6, l2_kb=256, clock_mhz=1000, source=_DATASHEET),
    _adreno(830, fp32=3400, fp16=6800, dram=76.8, cores=6, l2_kb=256, clock_mhz=1100, source=_GUESS),
    # Stands for OpenCL drivers on ordinary CPUs. Two cores with 512-bit units, fitted on Intel's runtime and PoCL.
    Gpu(
        name="opencl-cpu",
        kind="cpu",
        gflops_fp32=200.0,
        gflops_fp16=200.0,
        dram_gb_s=40.0,
        l2_gb_s=150.0,
        texture_gb_s=1.0,
        l2_bytes=1024 * 1024,
        cores=2,
        wave=1,
        vec4_registers=120,
        latency_waves=1,
        local_bytes=32 * 1024,
        max_work_group=256,
        image_max=8192,
        image_buffer_max=1 << 24,
        constant_bytes=0,
        launch_us=4.0,
        efficiency=0.5,
        uncertainty=2.0,
        source="fitted on this project's test machine (host figures)",
    ),
)

GPUS = {gpu.name: gpu for gpu in _GPUS}
GPU_NAMES = ", ".join(GPUS)


def gpu_by_name(name: str) -> Gpu:
    """The target called `name`.

    Raises:
        UserError: there is no such target.
    """
    if name not in GPUS:
        raise UserError(f"expected a target among {', '.join(GPUS)}, got {name!r}: choose one of these with --target")
    return GPUS[name]


def with_memory(gpu: Gpu, memory: str) -> Gpu:
    """`gpu` with another choice of where tensors may lie.

    Raises:
        UserError: there is no such choice.
    """
    if memory not in get_args(Memory):
        raise UserError(
            f"expected memory {', '.join(get_args(Memory))}, got {memory!r}: choose one of these with --memory"
        )
    return replace(gpu, memory=memory)  # type: ignore[arg-type]  # checked above
