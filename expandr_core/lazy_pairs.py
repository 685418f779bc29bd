"""How many shards of queries to write candidates for, until enough preference pairs are accepted.

The first step is the fewest shards that could hold the pairs; each next one follows from the share that
has been accepted so far. Since a query's shard is a hash of its id, all shards are alike.
"""

import math


def first_step(pairs: int, queries: int, shards: int) -> int:
    """Return the fewest shards that could hold the pairs, if every query were accepted.

    >>> first_step(pairs=30_000, queries=100_000, shards=512)  # 195 queries in a shard
    154
    """
    return min(shards, math.ceil(pairs * shards / queries))


def next_step(pairs: int, accepted: int, done: int, shards: int) -> int:
    """Return how many shards will hold the pairs, by what the first ones brought.

    A Poisson count varies by its square root; twice that is added to what is missing, so that a step
    that falls short is rare. If nothing was accepted so far, the shards are doubled.

    Args:
        pairs: how many are wanted.
        accepted: how many the first shards brought, fewer than wanted.
        done: number of these shards.
        shards: number of all shards.

    >>> next_step(pairs=30_000, accepted=24_000, done=154, shards=512)  # (6,000 + 155) / 155.8
    194
    >>> next_step(pairs=30_000, accepted=0, done=154, shards=512)
    308
    """
    if not accepted:
        return min(shards, 2 * done)
    missing = pairs - accepted
    more = (missing + 2 * math.sqrt(missing)) / (accepted / done)
    return min(shards, done + math.ceil(more))
