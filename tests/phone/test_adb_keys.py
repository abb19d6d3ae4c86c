from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from device.adb_keys import key_path, load_signer
from device.adb_target import fingerprint
from structadmm.errors import UserError
from tests.emulated_phone.authorisation import parse_public_key


def test_a_new_key_is_private_and_its_public_half_is_androids(tmp_path: Path) -> None:
    path = tmp_path / "config" / "adbkey"
    signer = load_signer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    public = parse_public_key(signer.GetPublicKey())
    assert public.public_numbers() == private.public_key().public_numbers()  # type: ignore[union-attr]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["adbkey", "adbkey.pub"]


def test_a_key_is_made_once_and_then_kept(tmp_path: Path) -> None:
    load_signer(tmp_path / "adbkey")
    before = (tmp_path / "adbkey").read_bytes()
    load_signer(tmp_path / "adbkey")
    assert (tmp_path / "adbkey").read_bytes() == before


def test_a_missing_public_half_is_written_from_the_private_one(key: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adbkey"
    copy.write_bytes(key.read_bytes())
    copy.chmod(0o600)
    assert fingerprint(load_signer(copy)) == fingerprint(load_signer(key))


def test_a_key_that_others_can_read_is_refused(key: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adbkey"
    copy.write_bytes(key.read_bytes())
    copy.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_signer(copy)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adbkey"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match="is not an adb key") as caught:
        load_signer(path)
    assert "\n" not in str(caught.value)


def test_adbs_own_key_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("STRUCTADMM_ADBKEY", raising=False)
    assert key_path() == tmp_path / "config" / "structadmm" / "adbkey"
    (tmp_path / ".android").mkdir()
    (tmp_path / ".android" / "adbkey").write_text("key")
    assert key_path() == tmp_path / ".android" / "adbkey"
    monkeypatch.setenv("STRUCTADMM_ADBKEY", str(tmp_path / "mine"))
    assert key_path() == tmp_path / "mine"


def test_the_fingerprint_is_the_md5_that_the_phones_dialogue_shows(key: Path) -> None:
    import hashlib

    raw = base64.b64decode(key.with_name("adbkey.pub").read_text().split()[0])
    shown = fingerprint(load_signer(key))
    assert shown.replace(":", "").lower() == hashlib.md5(raw).hexdigest()
    assert len(shown) == 47
