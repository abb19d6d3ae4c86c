"""The RSA key by which phones recognise this computer: found, or made once and kept private."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from structadmm.errors import UserError


def key_path() -> Path:
    """Where the private key lies.

    `STRUCTADMM_ADBKEY` names one; else adb's own `~/.android/adbkey`, so that phones which already trust this computer
    keep doing so; else one of ours in the user's configuration directory.
    """
    chosen = os.environ.get("STRUCTADMM_ADBKEY")
    if chosen:
        return Path(chosen)
    google = Path.home() / ".android" / "adbkey"
    if google.exists():
        return google
    return Path(platformdirs.user_config_dir("structadmm")) / "adbkey"


def load_signer(path: Path | None = None) -> Any:
    """The key as `adb_shell` takes it (`CryptographySigner`), made first where there is none.

    Raises:
        UserError: the file is not a private RSA key of 2048 bits, cannot be read, or is readable by others.
    """
    from adb_shell.auth.sign_cryptography import CryptographySigner

    path = path or key_path()
    try:
        if not path.exists():
            _create(path)
        _refuse_shared(path)
        public = _public_path(path)
        if not public.exists():
            _write_new(public, _encode_public(path), mode=0o644)
        signer = CryptographySigner(str(path))
    except OSError as error:
        raise UserError(f"cannot use the adb key {path}: {error.strerror}; fix it or set STRUCTADMM_ADBKEY") from None
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not an adb key ({reason}): remove it, and a new one is made") from None
    if getattr(signer.rsa_key, "key_size", None) != 2048:
        raise UserError(f"{path} is not an RSA key of 2048 bits: remove it, and a new one is made")
    return signer


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _refuse_shared(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"{path} can be read by others (mode {mode:o}): run chmod 600 {path}")


def _create(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_new(path, pem, mode=0o600)


def _encode_public(path: Path) -> bytes:
    import base64

    from adb_shell.auth.keygen import encode_pubkey, get_user_info

    return base64.b64encode(encode_pubkey(str(path))) + str(get_user_info()).encode() + b"\n"


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Create `path` whole and with its final mode; where another process was faster, its file stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp's mode is 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
