from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structadmm.errors import InvariantError
from tvm_build.memory_plan import ImageRow, Life, MemoryPlan, check_plan, largest_live_bytes, lives, plan_memory

ROWS = (ImageRow(8, "rgba_float"), ImageRow(8, "rgba_half"), ImageRow(5, "rgba_half"))


@st.composite
def random_lives(draw: st.DrawFn) -> tuple[Life, ...]:
    count = draw(st.integers(1, 25))
    result = []
    for index in range(count):
        first = draw(st.integers(0, 30))
        row = draw(st.sampled_from([None, None, *ROWS]))
        size = draw(st.integers(1, 5000)) if row is None else row.size * draw(st.integers(1, 20))
        result.append(Life(f"t{index}", size, first, first + draw(st.integers(0, 8)), row))
    return tuple(result)


def contents_survive(plan: MemoryPlan, alive: Sequence[Life]) -> bool:
    """Play the plan: every launch writes the tensors born there all over their bytes; nobody may find them changed."""
    memory = [["nothing"] * size for size in plan.buffers]
    for time in range(max(life.last for life in alive) + 1):
        for life in alive:
            if life.first == time:
                memory[plan.buffer_of[life.name]][: life.size] = [life.name] * life.size
        for life in alive:
            if life.first <= time <= life.last:
                held = memory[plan.buffer_of[life.name]][: life.size]
                if held != [life.name] * life.size:
                    return False
    return True


@settings(deadline=None, max_examples=60, derandomize=True)
@given(random_lives())
def test_no_tensor_is_overwritten_while_it_is_alive(alive: tuple[Life, ...]) -> None:
    plan = plan_memory(alive)
    assert contents_survive(plan, alive)
    assert largest_live_bytes(alive) <= plan.total_bytes <= sum(life.size for life in alive)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(random_lives(), st.integers(0, 2**32))
def test_the_checker_agrees_with_playing_any_assignment(alive: tuple[Life, ...], seed: int) -> None:
    generator = random.Random(seed)
    buffers = generator.randint(1, len(alive))
    # Buffers alone: where images differ, the checker is stricter than contents are.
    alive = tuple(replace(life, row=None) for life in alive)
    plan = MemoryPlan((5000,) * buffers, {life.name: generator.randrange(buffers) for life in alive})
    try:
        check_plan(plan, alive)
        accepted = True
    except InvariantError:
        accepted = False
    assert accepted == contents_survive(plan, alive)


def test_the_checker_refuses_a_buffer_that_is_too_small() -> None:
    with pytest.raises(InvariantError, match="needs 8 bytes, buffer 0 has 7"):
        check_plan(MemoryPlan((7,), {"a": 0}), (Life("a", 8, 0, 1),))


def test_the_checker_refuses_a_tensor_without_a_buffer() -> None:
    with pytest.raises(InvariantError, match="tensor a has no buffer"):
        check_plan(MemoryPlan((7,), {}), (Life("a", 4, 0, 1),))


def test_a_chain_of_equal_tensors_needs_two_buffers() -> None:
    accesses = [(f"t{i}", f"t{i + 1}") for i in range(10)]
    alive = lives({f"t{i}": 100 for i in range(11)}, accesses)
    assert plan_memory(alive).buffers == (100, 100)


def test_a_launch_never_reads_and_writes_one_buffer() -> None:
    alive = lives({"a": 4, "b": 4}, [("a",), ("a", "b")])
    plan = plan_memory(alive)
    assert plan.buffer_of["a"] != plan.buffer_of["b"]


def test_inputs_and_outputs_keep_their_memory_to_the_end() -> None:
    sizes = {"x": 64, "a": 64, "b": 64, "y": 64}
    alive = lives(sizes, [("x", "y"), ("y", "a"), ("a", "b")], inputs=["x"], outputs=["y"])
    plan = plan_memory(alive)
    assert len({plan.buffer_of["x"], plan.buffer_of["y"], plan.buffer_of["a"]}) == 3
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
    alive = (
        Life("a", 6 * wide.size, 0, 1, wide),
        Life("b", 4 * narrow.size, 2, 3, narrow),
        Life("c", 9 * wide.size, 4, 5, wide),
        Life("d", 4, 6, 7),
    )
    plan = plan_memory(alive)
    assert plan.buffer_of["a"] == plan.buffer_of["c"]
    assert len({plan.buffer_of[name] for name in "abd"}) == 3
    assert plan.rows == {plan.buffer_of["a"]: wide, plan.buffer_of["b"]: narrow}
    assert plan.buffers[plan.buffer_of["a"]] == 9 * wide.size


def test_the_checker_refuses_an_image_whose_rows_are_not_the_tensors() -> None:
    row = ROWS[0]
    life = Life("t", 3 * row.size, 0, 1, row)
    check_plan(MemoryPlan((4 * row.size,), {"t": 0}, {0: row}), [life])
    for rows in ({}, {0: ROWS[1]}):
        with pytest.raises(InvariantError, match="lies in rows of"):
            check_plan(MemoryPlan((4 * row.size,), {"t": 0}, rows), [life])
    with pytest.raises(InvariantError, match="must be whole rows of 128 bytes"):
        check_plan(MemoryPlan((3 * row.size + 1,), {"t": 0}, {0: row}), [life])
