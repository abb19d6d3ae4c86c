"""Which computers may talk to the phone: RSA keys, and a person who taps "Allow" or does not."""

from __future__ import annotations

import base64
import binascii
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

TOKEN_BYTES = 20
_MODULUS_BYTES = 256
# AOSP libcrypto_utils/android_pubkey.cpp: words, -1/n[0] mod 2^32, modulus, R^2 mod n, exponent; all little-endian.
_ANDROID_KEY = struct.Struct(f"<2I{_MODULUS_BYTES}s{_MODULUS_BYTES}sI")


def parse_public_key(text: bytes) -> rsa.RSAPublicKey:
    """Decode `BASE64 [USER@HOST]`, as a host sends it and as adb_keys holds it.

    Raises:
        ValueError: it is not an RSA-2048 key in Android's form.
    """
    fields = text.rstrip(b"\0\r\n").split(b" ", 1)
    try:
        words, _, modulus, _, exponent = _ANDROID_KEY.unpack(base64.b64decode(fields[0], validate=True))
    except (binascii.Error, struct.error) as error:
        raise ValueError(f"not an Android public key: {error}") from None
    if words * 4 != _MODULUS_BYTES:
        raise ValueError(f"modulus of {words} words, expected {_MODULUS_BYTES // 4}")
    return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()


class Authorisation:
    """The phone's list of allowed keys, and the person in front of it.

    Args:
        keys_file: one Android public key a line; created when a key is allowed for good.
        answer: what the person does when an unknown key asks: called with the key's text, True means "Allow".
            A refused host gets no reply, as from a real phone whose dialogue stays open.
    """

    def __init__(self, keys_file: Path, answer: Callable[[bytes], bool]) -> None:
        self._keys_file = keys_file
        self._answer = answer
        self._lock = threading.Lock()

    def allowed_keys(self) -> list[rsa.RSAPublicKey]:
        """Keys that may connect without asking."""
        if not self._keys_file.exists():
            return []
        return [parse_public_key(line) for line in self._keys_file.read_bytes().splitlines() if line.strip()]

    def signed_by_allowed_key(self, token: bytes, signature: bytes) -> bool:
        """Whether `signature` is PKCS #1 v1.5 over `token`, which takes the place of a SHA-1 digest."""
        with self._lock:
            for key in self.allowed_keys():
                try:
                    key.verify(signature, token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))
                except InvalidSignature:
                    continue
                return True
        return False

    def allow(self, text: bytes) -> None:
        """Remember a key, as "Always allow from this computer" does."""
        parse_public_key(text)
        with self._lock:
            self._keys_file.parent.mkdir(parents=True, exist_ok=True)
            with self._keys_file.open("ab") as stream:
                stream.write(text.rstrip(b"\0\r\n") + b"\n")

    def forget_all(self) -> None:
        """Revoke USB debugging authorisations."""
        with self._lock:
            self._keys_file.unlink(missing_ok=True)

    def ask(self, text: bytes) -> bool:
        """Show the dialogue; a key that is allowed is remembered."""
        parse_public_key(text)
        if not self._answer(text):
            return False
        self.allow(text)
        return True
