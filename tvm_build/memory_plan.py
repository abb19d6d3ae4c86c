"""Which tensors share a buffer.

Tensors whose lives do not overlap may share memory. A buffer is as large as its largest tensor; tensors are never
split over buffers or laid at offsets within one, because the plan's kernels take whole memory objects. `check_plan`
proves a plan from the launches alone, whatever made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from structadmm.errors import InvariantError


@dataclass(frozen=True)
class Life:
    """A tensor of `size` bytes that must keep its content from launch `first` to launch `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        """Whether both are alive at some launch."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Buffer sizes, and the buffer of each tensor."""

    buffers: tuple[int, ...]
    buffer_of: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self.buffers)


def lives(
    sizes: Mapping[str, int],
    accesses: Sequence[Iterable[str]],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
) -> tuple[Life, ...]:
    """How long each tensor must keep its content.

    Args:
        sizes: bytes by tensor.
        accesses: for each launch, the tensors that it reads or writes.
        inputs: filled by the caller before the first launch, and kept to the end: a plan can then be run again
            without filling them again.
        outputs: read by the caller after the last launch.
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
    return tuple(Life(name, sizes[name], first[name], last[name]) for name in first)


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
    """Put each tensor into the free buffer that fits best: no growth if possible, then least waste."""
    sizes: list[int] = []
    held: list[list[Life]] = []
    buffer_of: dict[str, int] = {}
    for life in order:
        free = [i for i, residents in enumerate(held) if not any(life.overlaps(other) for other in residents)]
        if free:
            best = min(free, key=lambda i: (max(0, life.size - sizes[i]), sizes[i], i))
            sizes[best] = max(sizes[best], life.size)
            held[best].append(life)
        else:
            best = len(sizes)
            sizes.append(life.size)
            held.append([life])
        buffer_of[life.name] = best
    return MemoryPlan(tuple(sizes), buffer_of)


def check_plan(plan: MemoryPlan, alive: Sequence[Life]) -> None:
    """Prove that no two tensors share memory while both are alive, and that each fits.

    Raises:
        InvariantError: they do, or one does not, or a tensor has no buffer.
    """
    for life in alive:
        buffer = plan.buffer_of.get(life.name)
        if buffer is None or not 0 <= buffer < len(plan.buffers):
            raise InvariantError(f"tensor {life.name} has no buffer")
        if life.size > plan.buffers[buffer]:
            raise InvariantError(
                f"tensor {life.name} needs {life.size} bytes, buffer {buffer} has {plan.buffers[buffer]}"
            )
    for i, life in enumerate(alive):
        for other in alive[:i]:
            if plan.buffer_of[life.name] == plan.buffer_of[other.name] and life.overlaps(other):
                raise InvariantError(f"tensors {life.name} and {other.name} share memory while both are alive")
