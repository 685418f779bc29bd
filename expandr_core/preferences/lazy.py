"""How many shards need candidates until enough preference pairs are accepted.

The first step takes the fewest shards that could hold the pairs; later steps extrapolate from the share
of queries accepted so far. A query's shard is a hash of its id, so all shards are alike.
"""

import math
from bisect import bisect_left
from itertools import accumulate


def shards_with(queries: float, sizes: list[int]) -> int:
    """Return the fewest shards with this many queries, or all if even they have fewer.

    With as many queries as requested pairs, it is the first step: fewer shards cannot hold the pairs.

    >>> shards_with(22, [10, 12, 9]), shards_with(22.5, [10, 12, 9]), shards_with(50, [10, 12, 9])
    (2, 3, 3)
    """
    return min(len(sizes), bisect_left(list(accumulate(sizes)), queries) + 1)


def next_step(pairs: int, accepted: int, done: int, sizes: list[int]) -> int:
    """Return how many shards should hold the pairs, given the yield of the first ones.

    A Poisson count varies by its square root; twice that is added to the missing pairs, so that steps
    rarely fall short. If nothing has been accepted, the queries are doubled.

    Args:
        pairs: how many are requested.
        accepted: pairs from the first shards, fewer than requested.
        done: number of these shards, not all.
        sizes: queries in each shard.

    >>> sizes = [100] * 32
    >>> next_step(pairs=1200, accepted=800, done=16, sizes=sizes)  # 1600 + (400 + 40) / 0.5
    25
    >>> next_step(pairs=1200, accepted=0, done=8, sizes=sizes)
    16
    """
    queries = sum(sizes[:done])
    missing = pairs - accepted
    more = (missing + 2 * math.sqrt(missing)) * queries / accepted if accepted else queries
    return max(done + 1, shards_with(queries + more, sizes))
