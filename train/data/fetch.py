"""Files of public data sets: found, or downloaded and proven to be the published ones."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from structadmm.errors import UserError
from structadmm.files import atomic_path

_TIMEOUT_S = 60


def md5_file(path: Path) -> str:
    """Hex MD5 of a file: the sum that these data sets are published with. It identifies, it does not authenticate."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_md5(path: Path, expected: str) -> None:
    """Refuse a file whose MD5 is not `expected`.

    Raises:
        UserError: it differs.
    """
    actual = md5_file(path)
    if actual != expected:
        raise UserError(
            f"{path} has MD5 {actual}, the published file has {expected}: delete it to download it again, "
            "or set verify = false if these are your own images"
        )


def download(url: str, path: Path, expected_md5: str) -> None:
    """Fetch `url` into `path`, which appears only when complete and verified.

    Raises:
        UserError: the server cannot be reached, or what it sends is not the published file.
    """
    with atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, temporary.open("wb") as stream:
                while block := response.read(1 << 20):
                    stream.write(block)
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"{path.name} is not in {path.parent} and cannot be downloaded from {url} ({error}): "
                "put the file there by hand, or set data.root to where it is"
            ) from error
        actual = md5_file(temporary)
        if actual != expected_md5:
            raise UserError(f"{url} sent a file with MD5 {actual}, expected {expected_md5}: try again, or a mirror")
