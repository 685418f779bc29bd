"""Tell Swift's servers that there is one disk with one copy of everything.

    python -m infra.local.rings FOLDER KIND PORT [KIND PORT ...] < NAME_OF_THE_DISK

This is a separate program because importing Swift brings in eventlet and changes `logging`, which can
hang a process that has threads.
"""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder


def write_ring(folder: Path, kind: str, port: int, name: str) -> None:
    """Write the ring file of one kind of server."""
    builder = RingBuilder(part_power=6, replicas=1, min_part_hours=1)
    disk = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "weight": 1.0}
    builder.add_dev(disk | {"device": name})
    builder.rebalance(seed=0)
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


if __name__ == "__main__":
    disk = sys.stdin.read().strip()
    for kind, port in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        write_ring(Path(sys.argv[1]), kind, int(port), disk)
