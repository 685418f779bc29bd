"""Keys for artifacts that tests make by hand."""

import hashlib
import re


def full(name: str) -> str:
    """Return the key that a short name stands for: expand-1 gets twenty digits of its own."""
    if re.fullmatch(r"[a-z0-9_]+-[0-9a-f]{20}", name):
        return name
    stage, _, rest = name.partition("-")
    return f"{stage}-{hashlib.sha256(rest.encode()).hexdigest()[:20]}"
