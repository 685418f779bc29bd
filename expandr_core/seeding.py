"""Seeds per item, so that order, batching, sharding and retries do not matter."""

import hashlib


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from printable parts, such as the stage, the run's seed and an id.

    >>> derive_seed("expand", 0, "q1") == derive_seed("expand", 0, "q1")
    True
    >>> derive_seed("expand", 0, "q1") == derive_seed("expand", 0, "q2")
    False
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def unit_interval(*parts: object) -> float:
    """Derive a number in [0, 1) from printable parts."""
    return derive_seed(*parts) / 2**63
