"""How much memory a stage may take."""

from pathlib import Path

import psutil

_UNLIMITED = 1 << 60  # what a control group without a limit says, about


def search_memory(limit_gb: float) -> float:
    """Return the memory for exact search in GB: the limit, or if it is 0 a quarter of the machine's.

    >>> search_memory(0.5)
    0.5
    """
    return limit_gb or machine_memory() / 4e9


def machine_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's.

    Args:
        groups: where Linux shows control groups, of version 2 or 1.
    """
    limits = [psutil.virtual_memory().total]
    own = Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = groups / controllers, "memory.limit_in_bytes" if controllers else "memory.max"
        # a container may see its own group as the root, or under its name on the machine
        folder = root / group.lstrip("/")
        for each in [folder, *folder.parents]:
            if each.is_relative_to(root) and (each / name).exists():
                limit = (each / name).read_text().strip()
                limits += [int(limit)] if limit.isdigit() and int(limit) < _UNLIMITED else []
    return min(limits)
