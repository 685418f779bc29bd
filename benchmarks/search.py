"""Time the evaluation of a retriever by exact search against the former commit and beir.

    python -m benchmarks.search [--small] [--passages 1000000] [--queries 7000] [--world FOLDER]

768 dimensions in float16, 1,000 passages a query, 2 GB. The sides are whole stages `evaluate`, which
read queries, qrels and vectors and write the run and its metrics: of the former commit, and ours, as it
is on this processor and with products in float32; and beir's `DenseRetrievalExactSearch`, which is given
all vectors in memory and only searches. FOLDER keeps the world for the next time; --small has 100,000
passages and 1,000 queries.

Exits with 1 unless the stages write the same run, and ours is at least 3 times as fast as beir, and 4
times as fast as the former where the processor multiplies bfloat16, else 1.7 times, as with float32.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.search_world import make_world
from benchmarks.side_by_side import HERE, Side, former_tree, ratios, take_turns
from expandr_core.retrieval.products import quickest_floats

SIDE = HERE / "benchmarks" / "search_side.py"
FORMER, BEIR = "the former commit", "beir"
OURS = {"": "ours", "float32": "ours with float32"}


def main() -> int:
    """Make the world, run all sides, and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--passages", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--world", type=Path)
    arguments = parser.parse_args()
    sizes = (100_000, 1_000) if arguments.small else (1_000_000, 7_000)
    native = quickest_floats("cpu") == "bfloat16"
    with tempfile.TemporaryDirectory() as folder, former_tree() as tree:
        out = Path(folder)
        world = arguments.world or out / "world"
        make_world(world, arguments.passages or sizes[0], arguments.queries or sizes[1])
        sides = {FORMER: Side(SIDE, ("evaluate", str(world), str(out / "former")), tree)}
        for precision, name in OURS.items():
            own = ("evaluate", str(world), str(out / name), precision)
            sides[name] = Side(SIDE, own)
        sides[BEIR] = Side(SIDE, (BEIR, str(world), str(out)))
        results = take_turns(sides, arguments.rounds)
    good = True
    for precision, name in OURS.items():
        found = ratios(results, name)
        good &= found[FORMER] >= (1.7 if precision or not native else 4)
        good &= bool(precision) or found[BEIR] >= 3
    stages = [name for name in results if name != BEIR]
    digests = {result["digest"] for name in stages for result in results[name]}
    print(f"same run: {len(digests) == 1}")
    return int(not (good and len(digests) == 1))


if __name__ == "__main__":
    sys.exit(main())
