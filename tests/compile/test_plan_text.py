from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structadmm.errors import InvariantError, UserError
from tvm_build.launch_plan import (
    PART_ALIGNMENT,
    Argument,
    Buffer,
    Constant,
    ConstantImage2d,
    Endpoint,
    FloatArgument,
    Image1dBuffer,
    Image2d,
    Image2dArray,
    IntArgument,
    Launch,
    LaunchPlan,
    MemoryArgument,
    Part,
    Program,
    SampleInput,
    SampleOutput,
    valid_name,
)
from tvm_build.plan_text import read_plan, write_plan

names = st.from_regex(r"[A-Za-z0-9_.:/+-]{1,40}", fullmatch=True)
sizes = st.integers(1, 2**31)
offsets = st.integers(0, 1000).map(lambda k: k * 128)
formats = st.sampled_from(["rgba_float", "rgba_half"])
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
memories = st.one_of(
    st.builds(Buffer, sizes),
    st.builds(Constant, sizes, offsets),
    st.builds(Image2d, sizes, sizes, formats),
    st.builds(Image2dArray, sizes, sizes, sizes, formats),
    st.builds(ConstantImage2d, sizes, sizes, formats, offsets),
)


@st.composite
def plans(draw: st.DrawFn) -> LaunchPlan:
    first = Buffer(draw(st.integers(4096, 10**6)))
    parts = [Part(0, PART_ALIGNMENT * k, draw(st.integers(64, PART_ALIGNMENT))) for k in range(draw(st.integers(0, 8)))]
    viewed = [k for k in range(1, len(parts) + 1) if draw(st.booleans())]
    views = [Image1dBuffer(k, draw(st.integers(1, parts[k - 1].size // 16)), draw(formats)) for k in viewed]
    memory = (first, *parts, *views, *draw(st.lists(memories, max_size=6)))
    # A buffer and a part of it are no arguments of one launch, nor are a part and an image of it.
    arguments = [k for k in range(1 if parts else 0, len(memory)) if k not in viewed]
    shapes = st.lists(st.integers(1, 2), min_size=1, max_size=4).map(tuple)
    ends = st.integers(0, len(parts))
    endpoint = st.builds(Endpoint, ends, st.sampled_from(["float32", "float16", "int32"]), shapes, names)
    inputs = tuple(draw(st.lists(endpoint, min_size=1, max_size=3)))
    outputs = tuple(draw(st.lists(endpoint, min_size=1, max_size=3)))
    options = st.lists(st.sampled_from(["-cl-mad-enable", "-DX=1", "-cl-std=CL1.2"]), max_size=3).map(tuple)
    programs = tuple(draw(st.lists(st.builds(Program, st.integers(0, 10**6), sizes, options), min_size=1, max_size=3)))
    argument: st.SearchStrategy[Argument] = st.one_of(
        st.builds(MemoryArgument, st.sampled_from(arguments)),
        st.builds(IntArgument, st.integers(-(2**31), 2**31 - 1)),
        st.builds(FloatArgument, floats32),
    )
    launches = []
    for _ in range(draw(st.integers(1, 5))):
        dims = draw(st.integers(1, 3))
        local = draw(st.lists(st.integers(1, 64), min_size=dims, max_size=dims))
        groups = draw(st.lists(st.integers(1, 64), min_size=dims, max_size=dims))
        driver_chooses = draw(st.booleans())
        launches.append(
            Launch(
                program=draw(st.integers(0, len(programs) - 1)),
                kernel=draw(names),
                global_size=tuple(n * g for n, g in zip(local, groups, strict=True)),
                local_size=(0,) * dims if driver_chooses else tuple(local),
                flops=draw(st.integers(0, 10**12)),
                bytes=draw(st.integers(0, 10**12)),
                layer=draw(names),
                arguments=tuple(draw(st.lists(argument, max_size=6))),
            )
        )
    return LaunchPlan(
        target=draw(names),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        memory=memory,
        inputs=inputs,
        outputs=outputs,
        sample_inputs=tuple(SampleInput(k, f"input_{k}.npy") for k in range(len(inputs))),
        sample_outputs=tuple(SampleOutput(k, f"output_{k}.npy", draw(st.floats(0, 1e3))) for k in range(len(outputs))),
        programs=programs,
        launches=tuple(launches),
    )


def small_plan() -> LaunchPlan:
    return LaunchPlan(
        target="adreno-640",
        dtype="float32",
        memory=(
            Buffer(16),
            Constant(16, 128),
            Buffer(2048),
            Part(2, 512, 640),
            Part(2, 1536, 512),
            Part(2, 1024, 512),
            Image1dBuffer(3, 40, "rgba_float"),
        ),
        inputs=(Endpoint(0, "float32", (1, 4), "x"),),
        outputs=(Endpoint(0, "float32", (4,), "y"),),
        sample_inputs=(SampleInput(0, "input_0.npy"),),
        sample_outputs=(SampleOutput(0, "output_0.npy", 1e-4),),
        programs=(Program(0, 100, ("-cl-mad-enable",)),),
        launches=(
            Launch(0, "relu", (64, 2), (32, 1), 8, 48, "layer1.0.relu", (MemoryArgument(0), IntArgument(-3))),
            Launch(0, "add", (64,), (0,), 8, 48, "sum", (MemoryArgument(3), MemoryArgument(4), MemoryArgument(3))),
            Launch(0, "texels", (64,), (0,), 8, 48, "read", (MemoryArgument(6), MemoryArgument(4))),
        ),
    )


@settings(deadline=None, max_examples=100, derandomize=True)
@given(plans())
def test_a_plan_reads_back_as_it_was_written(plan: LaunchPlan) -> None:
    assert read_plan(write_plan(plan)) == plan


def test_the_text_is_what_the_format_describes() -> None:
    assert write_plan(small_plan()) == (
        "structadmm-plan 3\n"
        "target adreno-640\n"
        "dtype float32\n"
        "buffer 0 16\n"
        "constant 1 16 128\n"
        "buffer 2 2048\n"
        "part 3 2 512 640\n"
        "part 4 2 1536 512\n"
        "part 5 2 1024 512\n"
        "image1d_buffer 6 3 40 rgba_float\n"
        "input 0 float32 2 1 4 x\n"
        "output 0 float32 1 4 y\n"
        "sample input 0 input_0.npy\n"
        "sample output 0 output_0.npy 0.0001\n"
        "program 0 0 100 -cl-mad-enable\n"
        "launch 0 relu 2 64 2 32 1 8 48 layer1.0.relu 2 m0 i-3\n"
        "launch 0 add 1 64 0 8 48 sum 3 m3 m4 m3\n"
        "launch 0 texels 1 64 0 8 48 read 2 m6 m4\n"
        "end\n"
    )


def test_a_plan_of_the_first_version_is_read() -> None:
    lines = write_plan(small_plan()).splitlines(keepends=True)
    newer = ("part", "image1d_buffer", "launch 0 add", "launch 0 texels")
    text = "".join(line for line in lines if not line.startswith(newer))
    plan = replace(small_plan(), memory=small_plan().memory[:3], launches=small_plan().launches[:1])
    assert read_plan(text.replace("structadmm-plan 3", "structadmm-plan 1")) == plan


def test_comments_and_empty_lines_are_ignored() -> None:
    text = write_plan(small_plan()).replace("buffer 0", "# activations\n\nbuffer 0")
    assert read_plan(text) == small_plan()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(plans(), st.data())
def test_damaged_text_is_refused_or_still_a_valid_plan(plan: LaunchPlan, data: st.DataObject) -> None:
    text = write_plan(plan)
    at = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["cut", "replace", "insert", "drop line"]))
    if kind == "cut":
        text = text[:at]
    elif kind == "drop line":
        lines = text.splitlines(keepends=True)
        del lines[at % len(lines)]
        text = "".join(lines)
    else:
        text = text[:at] + data.draw(st.sampled_from("0 9-m\nx#é")) + text[at + (kind == "replace") :]
    try:
        read_plan(text).check()
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("structadmm-plan 3", "structadmm-plan 4", "format version 4, this program reads up to 3"),
        ("structadmm-plan 3", "structadmm-plan 1", "line 7: `part` came with format version 2, the plan's is 1"),
        (
            "structadmm-plan 3",
            "structadmm-plan 2",
            "line 10: `image1d_buffer` came with format version 3, the plan's is 2",
        ),
        ("image1d_buffer 6 3 40", "image1d_buffer 6 3 41", "memory object 6: more texels than memory object 3 has"),
        ("image1d_buffer 6 3 40", "image1d_buffer 6 3 0", "memory object 6: image"),
        ("image1d_buffer 6 3 40", "image1d_buffer 6 6 40", "memory object 6: image of memory object 6"),
        ("image1d_buffer 6 3 40", "image1d_buffer 6 3", "line 10: expected a format among rgba_float, rgba_half"),
        ("buffer 0 16", "image2d 0 1 1 rgba_float", "its memory is too small"),
        ("m6 m4", "m6 m3", "m3 and m6 share bytes"),
        ("m6 m4", "m6 m2", "m2 and m6 share bytes"),
        ("m6 m4", "m6 m5", "m5 and m6 share bytes"),
        ("structadmm-plan 3", "something", "expected `structadmm-plan VERSION` first"),
        ("part 3 2 512 640", "part 3 2 512", "line 7: expected 3 numbers after the ID, got 2"),
        ("part 3 2 512 640", "part 3 2 500 640", "memory object 3: offset 500"),
        ("part 3 2 512 640", "part 3 2 512 0", "memory object 3 is empty"),
        ("part 3 2 512 640", "part 3 2 512 1537", "memory object 3: ends beyond memory object 2"),
        ("part 3 2 512 640", "part 3 3 512 640", "memory object 3: part of memory object 3"),
        ("part 3 2 512 640", "part 3 1 512 640", "part of memory object 1, which is no buffer"),
        ("part 4 2 1536 512", "part 4 3 0 512", "part of memory object 3, which is no buffer"),
        ("m3 m4 m3", "m3 m5 m3", "m3 and m5 share bytes"),
        ("m3 m4 m3", "m2 m4 m3", "m2 and m3 share bytes"),
        ("end\n", "", "last line must be `end`"),
        ("buffer 0 16", "buffer 1 16", "line 4: expected memory ID 0"),
        ("buffer 0 16", "buffer 0 15", "memory is too small"),
        ("m0", "m7", "memory object 7"),
        ("i-3", "i2147483648", "integer 2147483648"),
        ("64 2 32 1", "64 2 33 1", "is no multiple of local size"),
        ("launch 0", "launch 1", "program 1"),
        ("2 m0 i-3", "3 m0 i-3", "line 16: expected 3 arguments, got 2"),
        ("constant 1 16 128", "constant 1 16 100", "offset 100"),
        ("target adreno-640\n", "", "target name"),
        ("end\n", "end\nend\n", "nothing may follow `end`"),
        ("dtype float32\n", "dtype float32\ntarget adreno-640\n", "comes too late"),
        ("program 0 0 100", "program 0 -1 100", "expected an unsigned number"),
        ("input_0.npy\n", "../input_0.npy\n", "sample file"),
    ],
)
def test_each_damage_has_its_own_line(old: str, new: str, message: str) -> None:
    text = write_plan(small_plan())
    assert text.count(old) >= 1
    with pytest.raises(UserError) as caught:
        read_plan(text.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_breaks_a_rule_is_never_written() -> None:
    plan = small_plan()
    broken = LaunchPlan(**{**plan.__dict__, "launches": ()})
    with pytest.raises(InvariantError, match="needs inputs, outputs and launches"):
        write_plan(broken)


def test_names_lose_what_a_plan_cannot_hold() -> None:
    assert valid_name("layer 1/conv*é") == "layer_1/conv__"
    assert valid_name("") == "_"
