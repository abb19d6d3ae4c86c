from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.rpc.archive import MAX_ARCHIVE_BYTES, pack_bundle, unpack_bundle
from structadmm.errors import UserError
from tests.hand_made_bundle import scale_add_files, write_files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "net.clbundle", scale_add_files())


def archive_of(*files: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that comes twice
        for name, content in files:
            archive.writestr(name, content)
    return data.getvalue()


def test_a_bundle_arrives_as_it_was(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    unpack_bundle(pack_bundle(bundle), tmp_path / "there")
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == files


@pytest.mark.parametrize(
    "data",
    [
        archive_of(("ok.txt", b"x"), ("../escape", b"x")),
        archive_of(("ok.txt", b"x"), ("/tmp/escape", b"x")),
        archive_of(("ok.txt", b"x"), ("directory/file", b"x")),
        archive_of(("ok.txt", b"x"), ("..", b"x")),
        archive_of(("ok.txt", b"x"), (".hidden", b"x")),
        archive_of(("ok.txt", b"x"), ("a\\b", b"x")),
        archive_of(("ok.txt", b"x"), ("two\nlines", b"x")),
        archive_of(("same", b"x"), ("same", b"y")),
        archive_of(("bomb", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED),
        archive_of(*[(f"file{k}", b"") for k in range(65)]),
        archive_of(),
        archive_of(("ok.txt", b"x"))[:-10],
        b"",
        b"PK\x03\x04" + bytes(100),
        bytes(MAX_ARCHIVE_BYTES + 1),
    ],
    ids=range(15),
)
def test_an_archive_that_is_not_small_and_flat_leaves_nothing_anywhere(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError) as caught:
        unpack_bundle(data, tmp_path / "inner")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner"]


def test_a_file_that_claims_to_be_larger_than_the_archive_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(archive_of(("a.bin", b"1234")))
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, entry + 20, 1 << 30, 1 << 30)
    with pytest.raises(UserError, match="claim more"):
        unpack_bundle(bytes(data), tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_a_damaged_archive_is_refused_in_one_line_or_read(bundle: Path, at: int, noise: bytes) -> None:
    data = pack_bundle(bundle)
    damaged = data[: at % len(data)] + noise + data[at % len(data) + len(noise) :]
    directory = bundle.parent / "out"
    directory.mkdir(exist_ok=True)
    try:
        unpack_bundle(damaged, directory)
    except UserError as error:
        assert "\n" not in str(error)
    assert all(path.parent == directory for path in directory.rglob("*"))


def test_what_is_no_bundle_is_not_sent(bundle: Path) -> None:
    with pytest.raises(UserError, match="not a bundle directory"):
        pack_bundle(bundle / "plan.txt")
    (bundle / "directory").mkdir()
    with pytest.raises(UserError, match="not a flat directory"):
        pack_bundle(bundle)


def test_what_no_server_would_take_is_not_sent(bundle: Path) -> None:
    with (bundle / "weights.bin").open("wb") as weights:
        weights.truncate(MAX_ARCHIVE_BYTES)
    with pytest.raises(UserError, match=r"larger than 64 MiB.* --device instead of --tracker"):
        pack_bundle(bundle)
