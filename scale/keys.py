"""Keys that name the replica which holds a conversation, so that any replica can find it. Called by `scale.replica`."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken


class Keys:
    """Makes and reads keys. `secret`: the same in all replicas, and known to nobody else.

    A key is encrypted and signed: a client learns no address from it, and cannot make a replica connect to another host.
    """

    def __init__(self, secret: bytes):
        self._cipher = Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret).digest()))

    def make(self, address: str) -> str:
        """A new key for a conversation of the replica at `address`. No two keys are equal."""
        return self._cipher.encrypt(address.encode()).decode()

    def address(self, key: str) -> str | None:
        """The address in a key; None if we did not make the key."""
        try:
            return self._cipher.decrypt(key.encode()).decode()
        except (InvalidToken, ValueError):
            return None
