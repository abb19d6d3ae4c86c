"""An ONNX file whose larger weights lie in files beside it, none of them above a size that a repository takes."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from structadmm.errors import UserError
from structadmm.files import write_bytes

_SMALL = 1024  # bytes: stays in the ONNX file


def write_in_parts(model: onnx.ModelProto, path: Path, limit: int) -> list[Path]:
    """Write `model`, with all data inside, to `path`; what does not fit goes to `STEM.weights-K.bin` in its folder.

    Args:
        model: changed: it names the files afterwards.
        path: of the ONNX file.
        limit: bytes that every file stays below.

    Returns:
        The files beside it, none if the ONNX file holds everything.

    Raises:
        UserError: a single weight is too large.
    """
    parts: list[bytearray] = []
    if model.ByteSize() >= limit:
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            if size < _SMALL:
                continue
            if size >= limit:
                raise UserError(f"weight {tensor.name!r} takes {size} bytes, a file takes less than {limit}: prune it")
            if not parts or len(parts[-1]) + size >= limit:
                parts.append(bytearray())
            set_external_data(tensor, f"{path.stem}.weights-{len(parts) - 1}.bin", len(parts[-1]), size)
            parts[-1] += tensor.raw_data
            tensor.ClearField("raw_data")
    beside = [path.with_name(f"{path.stem}.weights-{number}.bin") for number in range(len(parts))]
    for file, part in zip(beside, parts, strict=True):
        write_bytes(file, bytes(part))
    write_bytes(path, model.SerializeToString())
    return beside
