#!/usr/bin/env bash
# Guess: correcting a few p-values takes microseconds by Holm's method, as by Bonferroni's.
# Seen (statsmodels 0.15.0): `multipletests(..., method="holm")` runs a full collection of Python's garbage at every
# call. The time grows with all objects of the process, such as those of imported libraries: here, beside torch,
# thousands of times that of the method "bonferroni", which does not collect.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check statsmodels==0.15.0 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import gc
import time

import torch._inductor.lowering  # what torch imports when it compiles
from statsmodels.stats.multitest import multipletests

collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "start" else None)


def measure(method: str) -> tuple[float, int]:
    """Return the milliseconds of a call, and how many full collections it runs."""
    collections.clear()
    started = time.perf_counter()
    for _ in range(10):
        multipletests([0.01, 0.02, 0.03], method=method)
    return (time.perf_counter() - started) * 100, collections.count(2) // 10


for _ in range(2):  # the first calls prepare
    seen = {method: measure(method) for method in ("bonferroni", "holm")}
for method, (milliseconds, full) in seen.items():
    print(f"{method}: {milliseconds:.3f} ms a call, {full} full collections of garbage")
assert seen["holm"][1] == 1 and seen["bonferroni"][1] == 0, "the behaviour has changed"
PYTHON
