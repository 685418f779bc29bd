"""How much memory the machine, or the container, has."""

from pathlib import Path

import psutil
import pytest

from expandr_core.runtime.memory import machine_memory, search_memory


def test_a_search_without_a_limit_takes_a_quarter_of_the_memory():
    assert search_memory(0) == machine_memory() / 4e9 <= psutil.virtual_memory().total / 4e9


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="needs Linux's control groups")
@pytest.mark.parametrize(("said", "expected"), [("123456\n", 123456), ("max\n", None)])
def test_a_container_s_limit_counts(tmp_path, said, expected):
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        if controllers in ("", "memory"):
            (tmp_path / controllers).mkdir(exist_ok=True)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            (tmp_path / controllers / name).write_text(said)
    assert machine_memory(tmp_path) == expected or expected is None
    assert machine_memory(tmp_path / "none") == psutil.virtual_memory().total
