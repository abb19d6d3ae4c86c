"""Which tensors share a memory object.

Tensors whose lives do not overlap may share memory: a buffer, or an image of one width and format, which takes tensors
with fewer rows than it has. Not shorter rows: what lies beside a row must read as zero, not as what another tensor left
there. Below the last row no kernel reads.

A buffer is as large as its largest tensor; tensors are never
split over buffers or laid at offsets within one, because the plan's kernels take whole memory objects. `check_plan`
proves a plan from the launches alone, whatever made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from structadmm.errors import InvariantError
from tvm_build.launch_plan import IMAGE_FORMATS, ImageFormat


@dataclass(frozen=True)
class ImageRow:
    """One row of a tensor in an image. Tensors may share an image if their rows are equal."""

    width: int
    format: ImageFormat

    @property
    def size(self) -> int:
        """Bytes."""
        return self.width * IMAGE_FORMATS[self.format]


@dataclass(frozen=True)
class Life:
    """A tensor of `size` bytes that must keep its content from launch `first` to launch `last`, both included.

    It lies in a buffer, or, if it has a `row`, in an image.
    """

    name: str
    size: int
    first: int
    last: int
    row: ImageRow | None = None

    def overlaps(self, other: Life) -> bool:
        """Whether both are alive at some launch."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of memory objects, and the object of each tensor.

    Attributes:
        buffers: bytes of each object, images included.
        buffer_of: the object's number by tensor.
        rows: what a row of an image is, by object's number; all others are buffers.
    """

    buffers: tuple[int, ...]
    buffer_of: Mapping[str, int]
    rows: Mapping[int, ImageRow] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(self.buffers)


def lives(
    sizes: Mapping[str, int],
    accesses: Sequence[Iterable[str]],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    rows: Mapping[str, ImageRow] | None = None,
) -> tuple[Life, ...]:
    """How long each tensor must keep its content.

    Args:
        sizes: bytes by tensor.
        accesses: for each launch, the tensors that it reads or writes.
        inputs: filled by the caller before the first launch, and kept to the end: a plan can then be run again
            without filling them again.
        outputs: read by the caller after the last launch.
        rows: of the tensors that lie in images.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, names in enumerate(accesses):
        for name in names:
            first.setdefault(name, index)
            last[name] = index
    for name in inputs:
        first[name], last[name] = -1, len(accesses)
    for name in outputs:
        first.setdefault(name, len(accesses))
        last[name] = len(accesses)
    rows = rows or {}
    return tuple(Life(name, sizes[name], first[name], last[name], rows.get(name)) for name in first)


def largest_live_bytes(alive: Sequence[Life]) -> int:
    """The most bytes that are alive at one launch: no plan can do with less."""
    return max((sum(life.size for life in alive if life.first <= at.first <= life.last) for at in alive), default=0)


def plan_memory(alive: Sequence[Life]) -> MemoryPlan:
    """Assign buffers greedily, largest tensor first and, separately, in order of time; keep the smaller result.

    Largest first wastes least where sizes differ much (a buffer's size is fixed by its first tensor); time order wins
    in long chains of growing tensors.
    """
    by_size = _first_fit(sorted(alive, key=lambda life: (-life.size, life.first, life.name)))
    by_time = _first_fit(sorted(alive, key=lambda life: (life.first, -life.size, life.name)))
    plan = min(by_size, by_time, key=lambda plan: plan.total_bytes)
    check_plan(plan, alive)
    return plan


def _first_fit(order: Sequence[Life]) -> MemoryPlan:
    """Put each tensor into the free object of its kind that fits best: no growth if possible, then least waste."""
    sizes: list[int] = []
    held: list[list[Life]] = []
    buffer_of: dict[str, int] = {}
    for life in order:
        free = [
            i
            for i, residents in enumerate(held)
            if residents[0].row == life.row and not any(life.overlaps(other) for other in residents)
        ]
        if free:
            best = min(free, key=lambda i: (max(0, life.size - sizes[i]), sizes[i], i))
            sizes[best] = max(sizes[best], life.size)
            held[best].append(life)
        else:
            best = len(sizes)
            sizes.append(life.size)
            held.append([life])
        buffer_of[life.name] = best
    rows = {i: residents[0].row for i, residents in enumerate(held) if residents[0].row is not None}
    return MemoryPlan(tuple(sizes), buffer_of, rows)


def check_plan(plan: MemoryPlan, alive: Sequence[Life]) -> None:
    """Prove that no two tensors share memory while both are alive, and that each fits, its rows included.

    Raises:
        InvariantError: they do, or one does not, or a tensor has no memory or that of the wrong kind.
    """
    for life in alive:
        buffer = plan.buffer_of.get(life.name)
        if buffer is None or not 0 <= buffer < len(plan.buffers):
            raise InvariantError(f"tensor {life.name} has no buffer")
        if life.size > plan.buffers[buffer]:
            raise InvariantError(
                f"tensor {life.name} needs {life.size} bytes, buffer {buffer} has {plan.buffers[buffer]}"
            )
        row = plan.rows.get(buffer)
        if life.row != row:
            raise InvariantError(f"tensor {life.name} lies in rows of {life.row}, memory object {buffer} has {row}")
        if row is not None and (life.size % row.size or plan.buffers[buffer] % row.size):
            raise InvariantError(f"tensor {life.name} and image {buffer} must be whole rows of {row.size} bytes")
    for i, life in enumerate(alive):
        for other in alive[:i]:
            if plan.buffer_of[life.name] == plan.buffer_of[other.name] and life.overlaps(other):
                raise InvariantError(f"tensors {life.name} and {other.name} share memory while both are alive")
