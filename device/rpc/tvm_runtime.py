"""TVM's runtime without its compiler and without torch: what a process that only speaks its RPC protocol needs."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

from structadmm.errors import UserError


def load_tvm_runtime() -> Any:
    """The module `tvm_ffi` with the RPC functions of TVM's runtime library registered.

    `import tvm` would take seconds and hundreds of megabytes for each of the small processes that hold one session.
    """
    if "tvm_ffi" not in sys.modules and "torch" not in sys.modules:
        # tvm_ffi imports torch, where it is installed, for tensors that nobody sends here.
        sys.modules["torch"] = None  # type: ignore[assignment]  # the documented way to have an import fail
    try:
        import tvm_ffi
        from tvm_ffi.libinfo import load_lib_ctypes

        load_lib_ctypes("apache-tvm", "tvm_runtime", "RTLD_GLOBAL")
    except (ImportError, OSError, RuntimeError, importlib.metadata.PackageNotFoundError) as error:
        raise UserError(
            f"TVM's runtime does not load ({error}): reinstall apache-tvm, as pyproject.toml pins it"
        ) from None
    return tvm_ffi
