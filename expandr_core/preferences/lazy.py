"""How many shards of queries to write candidates for, until enough preference pairs are accepted.

The first step is the fewest shards that could hold the pairs; each next one follows from the share of
the queries that has been accepted so far. Since a query's shard is a hash of its id, all are alike.
"""

import math
from bisect import bisect_left
from itertools import accumulate


def shards_with(queries: float, sizes: list[int]) -> int:
    """Return the fewest shards that have so many queries; all, if they have fewer.

    Of so many queries as pairs are wanted, it is the first step: no fewer shards can hold the pairs.

    >>> shards_with(22, [10, 12, 9]), shards_with(22.5, [10, 12, 9]), shards_with(50, [10, 12, 9])
    (2, 3, 3)
    """
    return min(len(sizes), bisect_left(list(accumulate(sizes)), queries) + 1)


def next_step(pairs: int, accepted: int, done: int, sizes: list[int]) -> int:
    """Return how many shards will hold the pairs, by what the first ones brought.

    A Poisson count varies by its square root; twice that is added to what is missing, so that a step
    that falls short is rare. If nothing was accepted so far, the queries are doubled.

    Args:
        pairs: how many are wanted.
        accepted: how many the first shards brought, fewer than wanted.
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
