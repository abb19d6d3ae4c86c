from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structadmm.errors import InvariantError
from tvm_build.assemble import activation_memory
from tvm_build.launch_plan import PART_ALIGNMENT, Buffer, Constant, Image1dBuffer, Image2d, Memory, Part
from tvm_build.memory_check import check_memory
from tvm_build.memory_plan import ImageRow, largest_live_bytes, least_bytes, lives, plan_memory

ROWS = (ImageRow(8, "rgba_float"), ImageRow(8, "rgba_half"), ImageRow(5, "rgba_half"))


@dataclass(frozen=True)
class Case:
    """Launches that touch tensors."""

    sizes: Mapping[str, int]
    accesses: Sequence[tuple[str, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: Mapping[str, ImageRow]

    def check(self, memory: Sequence[Memory], object_of: Mapping[str, int]) -> None:
        check_memory(memory, object_of, self.sizes, self.accesses, self.inputs, self.outputs, self.rows)


@st.composite
def cases(draw: st.DrawFn, *, images: bool = True) -> Case:
    count = draw(st.integers(1, 25))
    sizes, rows = {}, {}
    for name in (f"t{k}" for k in range(count)):
        row = draw(st.sampled_from([None, None, *ROWS])) if images else None
        # From far below the alignment of parts to several times as much.
        sizes[name] = draw(st.integers(1, 5000)) if row is None else row.size * draw(st.integers(1, 20))
        if row is not None:
            rows[name] = row
    names = st.lists(st.sampled_from(list(sizes)), min_size=1, max_size=4, unique=True).map(tuple)
    accesses = draw(st.lists(names, min_size=1, max_size=20))
    buffers = [name for name in sizes if name not in rows]
    ends = st.lists(st.sampled_from(buffers), max_size=2, unique=True).map(tuple) if buffers else st.just(())
    return Case(sizes, accesses, draw(ends), draw(ends), rows)


def contents_survive(memory: Sequence[Memory], object_of: Mapping[str, int], case: Case) -> bool:
    """Play the launches byte by byte: a tensor is written when it is first touched, and must be whole ever after."""
    held = [["nothing"] * item.size for item in memory]
    written = set()
    for names in (case.inputs, *case.accesses, (*case.inputs, *case.outputs)):
        spans = {}
        for name in names:
            item, number, start = memory[object_of[name]], object_of[name], 0
            if isinstance(item, Part):
                number, start = item.buffer, item.offset
            spans[name] = held[number], slice(start, start + case.sizes[name])
            if name not in written:
                spans[name][0][spans[name][1]] = [name] * case.sizes[name]
                written.add(name)
        if any(cells[span] != [name] * case.sizes[name] for name, (cells, span) in spans.items()):
            return False
    return True


@settings(deadline=None, max_examples=150, derandomize=True)
@given(cases())
def test_no_tensor_is_overwritten_while_it_is_alive(case: Case) -> None:
    alive = lives(case.sizes, case.accesses, case.inputs, case.outputs, case.rows)
    plan = plan_memory(alive)
    memory, object_of = activation_memory(plan, case.sizes)
    assert contents_survive(memory, object_of, case)
    case.check(memory, object_of)
    together = [sum(life.size for life in alive if life.first <= at.first <= life.last) for at in alive]
    assert largest_live_bytes(alive) == max(together)
    assert max(together) <= least_bytes(alive) <= plan.total_bytes <= sum(life.size for life in alive)
    assert all(place.offset % PART_ALIGNMENT == 0 for place in plan.places.values())
    for life in alive:
        assert plan.places[life.name].offset + life.size <= plan.objects[plan.places[life.name].object]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(cases(images=False), st.integers(0, 2**32))
def test_the_checker_agrees_with_playing_any_assignment(case: Case, seed: int) -> None:
    generator = random.Random(seed)
    # Buffers alone: where images differ, the checker is stricter than contents are.
    buffers = generator.randint(1, 4)
    memory: list[Memory] = [Buffer(20_000)] * buffers
    object_of = {}
    for name, size in case.sizes.items():
        if generator.random() < 0.2:
            object_of[name] = generator.randrange(buffers)
            continue
        offset = generator.randrange(0, 20_000 - size, generator.choice([PART_ALIGNMENT, 8]))
        object_of[name] = len(memory)
        memory.append(Part(generator.randrange(buffers), offset, size))
    try:
        case.check(memory, object_of)
        accepted = True
    except InvariantError:
        accepted = False
    assert accepted == contents_survive(memory, object_of, case)


@pytest.mark.parametrize(
    ("memory", "number", "message"),
    [
        ([Buffer(7)], 0, "needs 8 bytes, memory object 0 has 7"),
        ([Buffer(16), Part(0, 0, 7)], 1, "needs 8 bytes, memory object 1 has 7"),
        ([Buffer(16), Part(0, 9, 8)], 1, "does not lie in"),
        ([Constant(8, 0), Part(0, 0, 8)], 1, "does not lie in"),
        ([Constant(8, 0)], 0, "lies in a buffer"),
        ([Buffer(16)], 1, "tensor a has no memory"),
        ([Buffer(16)], -1, "tensor a has no memory"),
    ],
)
def test_the_checker_refuses_memory_that_does_not_hold_the_tensor(
    memory: list[Memory], number: int, message: str
) -> None:
    with pytest.raises(InvariantError, match=message):
        check_memory(memory, {"a": number}, {"a": 8}, [("a",)])


def test_the_checker_refuses_a_tensor_without_memory() -> None:
    with pytest.raises(InvariantError, match="tensor a has no memory"):
        check_memory([Buffer(8)], {}, {"a": 8}, [("a",)])


def test_the_checker_sees_one_shared_byte() -> None:
    memory = [Buffer(64), Part(0, 0, 17), Part(0, 16, 16)]
    sizes = {"a": 17, "b": 16}
    with pytest.raises(InvariantError, match="tensors a and b share memory while both are alive, at launch 1"):
        check_memory(memory, {"a": 1, "b": 2}, sizes, [("a",), ("a", "b")])
    check_memory(memory, {"a": 1, "b": 2}, sizes, [("a",), ("b",)])
    check_memory(memory, {"a": 1, "b": 2}, {**sizes, "a": 16}, [("a",), ("a", "b")])


def test_the_checker_keeps_inputs_and_outputs_to_the_end() -> None:
    sizes, object_of = {"x": 4, "y": 4}, {"x": 0, "y": 0}
    check_memory([Buffer(4)], object_of, sizes, [("x",), ("y",)])
    for ends in ({"inputs": ["x"]}, {"outputs": ["x"]}):
        with pytest.raises(InvariantError, match="tensors x and y share memory while both are alive, at the end"):
            check_memory([Buffer(4)], object_of, sizes, [("x",), ("y",)], **ends)


def test_tensors_lie_between_others_where_whole_buffers_would_waste_memory() -> None:
    # The two small ones need the room of one large one, when that is gone.
    kib = 1024
    sizes = {"large": 8 * kib, "kept": kib, "left": 4 * kib, "right": 4 * kib}
    alive = lives(sizes, [("large", "kept"), ("kept", "left", "right")])
    plan = plan_memory(alive)
    assert plan.objects == (9 * kib,)
    assert sorted(place.offset for place in plan.places.values()) in ([0, 0, 4 * kib, 8 * kib], [0, kib, kib, 5 * kib])


def test_what_is_smaller_than_the_alignment_is_not_rounded_up_to_it() -> None:
    alive = lives({"a": 12, "b": 20, "c": 8}, [("a", "b"), ("b", "c")])
    assert plan_memory(alive).total_bytes == 32


def test_a_chain_of_equal_tensors_needs_two_buffers() -> None:
    accesses = [(f"t{i}", f"t{i + 1}") for i in range(10)]
    alive = lives({f"t{i}": 100 for i in range(11)}, accesses)
    assert plan_memory(alive).objects == (100, 100)


def test_a_launch_never_reads_and_writes_one_buffer() -> None:
    alive = lives({"a": 4, "b": 4}, [("a",), ("a", "b")])
    plan = plan_memory(alive)
    assert plan.places["a"] != plan.places["b"]


def test_inputs_and_outputs_keep_their_memory_to_the_end() -> None:
    sizes = {"x": 64, "a": 64, "b": 64, "y": 64}
    alive = lives(sizes, [("x", "y"), ("y", "a"), ("a", "b")], inputs=["x"], outputs=["y"])
    plan = plan_memory(alive)
    assert len({plan.places["x"], plan.places["y"], plan.places["a"]}) == 3
    assert next(life for life in alive if life.name == "x").first == -1


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=3, max_size=30))
def test_residual_chains_stay_within_a_third_of_the_largest_live_set(sizes: list[int]) -> None:
    # Every tensor is read by its successor and by the one after, as in a residual network; sizes shrink with depth.
    sizes = sorted(sizes, reverse=True)
    accesses = [tuple(f"t{k}" for k in (i - 2, i - 1, i) if k >= 0) for i in range(len(sizes))]
    alive = lives({f"t{i}": size * 1024 for i, size in enumerate(sizes)}, accesses)
    assert plan_memory(alive).total_bytes <= 1.3 * largest_live_bytes(alive)


def test_images_are_shared_by_tensors_of_equal_rows_only() -> None:
    wide, narrow = ROWS[1], ROWS[2]
    sizes = {"a": 6 * wide.size, "b": 4 * narrow.size, "c": 9 * wide.size, "d": 4}
    alive = lives(sizes, [("a",), ("b",), ("c",), ("d",)], rows={"a": wide, "b": narrow, "c": wide})
    plan = plan_memory(alive)
    assert plan.places["a"] == plan.places["c"]
    assert len({plan.places[name].object for name in "abd"}) == 3
    assert plan.rows == {plan.places["a"].object: wide, plan.places["b"].object: narrow}
    assert plan.objects[plan.places["a"].object] == 9 * wide.size


def test_the_checker_refuses_an_image_of_other_bytes_than_the_tensors() -> None:
    memory = [Buffer(2048), Part(0, 0, 512), Part(0, 512, 512), Constant(512, 0)]
    for image in (
        Image1dBuffer(2, 32, "rgba_float"),  # another part
        Image1dBuffer(0, 32, "rgba_float"),  # the buffer that it is a part of
        Image1dBuffer(1, 31, "rgba_float"),  # less
        Image1dBuffer(3, 32, "rgba_float"),
        Part(0, 0, 512),
    ):
        with pytest.raises(InvariantError, match=r"tensor t of 512 bytes in memory object 1 is read through .*"):
            check_memory([*memory, image], {"t": 1}, {"t": 512}, [("t",)], read_as_image=[("t", 4)])
    for right in (Image1dBuffer(1, 32, "rgba_float"), Image1dBuffer(1, 64, "rgba_half")):
        check_memory([*memory, right], {"t": 1}, {"t": 512}, [("t",)], read_as_image=[("t", 4)])


def test_the_checker_refuses_an_image_whose_rows_are_not_the_tensors() -> None:
    row = ROWS[0]
    sizes, rows = {"t": 3 * row.size}, {"t": row}
    check_memory([Image2d(8, 4, "rgba_float")], {"t": 0}, sizes, [("t",)], rows=rows)
    for memory in (Image2d(8, 8, "rgba_half"), Image2d(9, 4, "rgba_float"), Buffer(4096)):
        with pytest.raises(InvariantError, match="lies in rows of"):
            check_memory([memory], {"t": 0}, sizes, [("t",)], rows=rows)
    with pytest.raises(InvariantError, match="no whole number of rows of 128 bytes"):
        check_memory([Image2d(8, 4, "rgba_float")], {"t": 0}, {"t": 129}, [("t",)], rows=rows)
    with pytest.raises(InvariantError, match="tensor u lies in a buffer"):
        check_memory([Image2d(8, 4, "rgba_float")], {"u": 0}, {"u": 4}, [("u",)])
