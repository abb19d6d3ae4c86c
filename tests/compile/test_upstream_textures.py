"""What is put right in TVM's texture kernels."""

from __future__ import annotations

import pytest

from structadmm.errors import InvariantError
from tvm_build.upstream_textures import repaired, written_images

PREAMBLE = """#ifdef __OPENCL_VERSION__
#if __OPENCL_VERSION__ == CL_VERSION_2_0 || __OPENCL_VERSION__ == CL_VERSION_3_0
#define READ_IMAGEF(image, sampler, coord) read_imagef(image, sampler, coord)
#else
#define READ_IMAGEF(image, sampler, coord) read_imagef(image, coord)
#endif
#endif
"""
KERNEL = """__kernel void k(__read_only image2d_array_t x_ptr, __write_only image2d_array_t y_ptr) {
  for (int l_s = 0; l_s < 4; ++l_s) {
    float4 v_ = as_float4(READ_IMAGEF(x_ptr, image_sampler, ((int4)(1, 2, 3, 0))));
    float4 v__1 = ((float*)&v_)[l_s];
    write_imagef(y_ptr, (int4)(5, 0, 0, 0), as_float4(v__1));
    write_imagef(y_ptr, (int4)(6, 0, 0, 0), as_float4(v__1));
  }
  write_imagef(y_ptr, (int4)(7, 0, 0, 0), as_float4(v__2));
}
"""


def test_images_of_an_array_lie_below_each_other_and_are_read_through_a_sampler() -> None:
    source = repaired(PREAMBLE + KERNEL, {"x_ptr": 16, "y_ptr": 1})
    assert "image2d_array_t" not in source
    assert "#define rows_x_ptr(at) ((int2)((at).x, (at).z * 16 + (at).y))" in source
    assert "#define READ_IMAGEF(image, sampler, at) read_imagef(image, sampler, rows_##image(at))" in source
    assert "read_imagef(image, coord)" not in source
    # Kernels of other images follow in the same program.
    assert source.rstrip().endswith("#undef rows_x_ptr\n#undef rows_y_ptr\n#undef READ_IMAGEF")
    assert written_images(source) == written_images(KERNEL) == ["y_ptr"]


def test_a_texel_is_written_once_with_a_number_of_its_own_in_each_lane() -> None:
    source = repaired(PREAMBLE + KERNEL, {"x_ptr": 16, "y_ptr": 1})
    assert "  float texel_0[4];\n  float texel_1[4];\n  for (int l_s" in source
    for number, x in ((0, 5), (1, 6)):
        assert f"    texel_{number}[l_s] = (v__1).s0;\n" in source
        written = f"write_imagef(y_ptr, rows_y_ptr((int4)({x}, 0, 0, 0)), vload4(0, texel_{number}))"
        assert f"    if (l_s == 3) {written};\n" in source
    assert "  write_imagef(y_ptr, rows_y_ptr((int4)(7, 0, 0, 0)), v__2);\n" in source
    assert "as_float4(v__1)" not in source


def test_a_kernel_without_images_stays_as_it_is() -> None:
    assert repaired("__kernel void k() {\n}\n", {}) == "__kernel void k() {\n}\n"


def test_lanes_that_go_to_several_texels_are_refused() -> None:
    with pytest.raises(InvariantError, match="expected four lanes of one texel"):
        repaired(KERNEL.replace("(int4)(5,", "(int4)(l_s,"), {"x_ptr": 1, "y_ptr": 1})
