"""Passwords at rest: scrypt (RFC 7914), with salt and cost beside the hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from typing import Final

from postgrad.errors import DataError

COST: Final = (2**15, 8, 3)
"""n, r, p: 32 MiB, one of the settings of equal strength in OWASP's Password Storage Cheat Sheet."""
MIN_CHARACTERS: Final = 12
MAX_CHARACTERS: Final = 256
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32


def hash_password(password: str, *, name: str) -> str:
    """What is stored of a new password.

    Raises:
        DataError: too short, too long, or the account's name.
    """
    if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS:
        raise DataError(f"a password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; a short sentence will do")
    if password.casefold() == name.casefold():
        raise DataError("the password is the name; choose another password")
    salt = secrets.token_bytes(_SALT_BYTES)
    return _stored(salt, _scrypt(password, salt, *COST))


def verify(password: str, stored: str) -> bool:
    """Whether this is the password; where nothing is stored, as long is spent on finding that it is not."""
    n, r, p, salt, expected = (stored or _stored(bytes(_SALT_BYTES), bytes(_HASH_BYTES))).split("$")[1:]
    actual = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(actual, bytes.fromhex(expected)) and stored != ""


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # The same characters typed on another system may come as other code points.
    secret = unicodedata.normalize("NFKC", password[: MAX_CHARACTERS + 1]).encode()
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 2), dklen=_HASH_BYTES)


def _stored(salt: bytes, digest: bytes) -> str:
    return "$".join(("scrypt", *map(str, COST), salt.hex(), digest.hex()))
