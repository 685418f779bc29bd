"""Time the stage that mines hard negatives against the former commit and bare matrix products.

    python -m benchmarks.mining [--small] [--passages 1000000] [--queries 20000] [--world FOLDER]
    python -m benchmarks.mining --scaling      # three times the passages, beside the passages
    python -m benchmarks.mining --library      # beside sentence-transformers, on 200,000 passages

768 dimensions in float16, 30 hits a query, 2 GB. The sides are whole stages, which read examples,
corpus and vectors and write negatives.parquet, and the products of all queries and passages alone.
FOLDER keeps the world (2 GB for a million passages) for the next time; --small has 100,000 passages and
2,048 queries.

Exits with 1 unless the former and our stage write the same bytes, ours is at least 3 times as fast
where the processor multiplies bfloat16 (else at most 1.15 times as slow as bare float32 products), and
takes at most 3 GB; unless three times the passages take at most 3.3 times as long; and unless ours is
at least twice as fast as `mine_hard_negatives(use_faiss=True)`, which must be given all vectors in
memory.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.search_side import MEMORY_GB
from benchmarks.search_world import make_world
from benchmarks.side_by_side import HERE, Side, former_tree, ratios, take_turns
from expandr_core.retrieval.products import quickest_floats

SIDE = HERE / "benchmarks" / "search_side.py"
OURS, FORMER = "ours", "the former commit"


def sides_of(world: Path, out: Path) -> dict[str, Side]:
    """Return our stage, and bare products."""
    return {
        OURS: Side(SIDE, ("mine", str(world), str(out / "ours"))),
        "bare float32 products": Side(SIDE, ("products", str(world), str(out), "float32")),
        "bare bfloat16 products": Side(SIDE, ("products", str(world), str(out), "bfloat16")),
    }


def beside_the_former(world: Path, out: Path, rounds: int) -> bool:
    """Compare with the former commit and bare products; tell whether all is as wanted."""
    with former_tree() as tree:
        former = Side(SIDE, ("mine", str(world), str(out / "former")), tree)
        sides = sides_of(world, out)
        if quickest_floats("cpu") != "bfloat16":
            del sides["bare bfloat16 products"]
        results = take_turns({FORMER: former} | sides, rounds)
    found = ratios(results, OURS)
    digests = {result["digest"] for name in (OURS, FORMER) for result in results[name]}
    peak = max(result["peak_gb"] for result in results[OURS])
    print(f"same bytes: {len(digests) == 1}; our peak {peak:.2f} GB")
    if quickest_floats("cpu") == "bfloat16":
        quick = found[FORMER] >= 3
    else:
        quick = found["bare float32 products"] >= 1 / 1.15
    return quick and len(digests) == 1 and peak <= MEMORY_GB + 1


def scaling(world: Path, out: Path, passages: int, queries: int, rounds: int) -> bool:
    """Compare with three times the passages."""
    larger = world.with_name(f"{world.name}-3")
    make_world(larger, 3 * passages, queries)
    sides = {
        OURS: Side(SIDE, ("mine", str(world), str(out / "ours"))),
        "three times the passages": Side(SIDE, ("mine", str(larger), str(out / "larger"))),
    }
    return ratios(take_turns(sides, rounds), OURS)["three times the passages"] <= 3.3


def beside_the_library(world: Path, out: Path, rounds: int) -> bool:
    """Compare with sentence-transformers, which is given the vectors."""
    library = "sentence-transformers"
    sides = {
        OURS: Side(SIDE, ("mine", str(world), str(out / "ours"))),
        library: Side(SIDE, (library, str(world), str(out))),
    }
    return ratios(take_turns(sides, rounds), OURS)[library] >= 2


def main() -> int:
    """Make the world and run what is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--library", action="store_true")
    parser.add_argument("--passages", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--world", type=Path)
    arguments = parser.parse_args()
    sizes = (100_000, 2_048) if arguments.small else (1_000_000, 20_000)
    if arguments.library and not arguments.small:
        sizes = 200_000, 20_000
    passages, queries = arguments.passages or sizes[0], arguments.queries or sizes[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        world = arguments.world or out / "world"
        make_world(world, passages, queries)
        if arguments.scaling:
            return int(not scaling(world, out, passages, queries, arguments.rounds))
        if arguments.library:
            return int(not beside_the_library(world, out, arguments.rounds))
        return int(not beside_the_former(world, out, arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
