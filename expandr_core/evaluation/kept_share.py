"""How much of one system's gain another system keeps, with an interval from a bootstrap by cluster."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from expandr_core.evaluation.significance import query_differences

LEVEL = 0.95  # of the interval
_RESAMPLES = 9999


class KeptShare(NamedTuple):
    """The share of a gain, that of `whole` over `before`, that `part` keeps.

    Attributes:
        gain: of the whole, mean over clusters.
        kept: (part - before) / (whole - before); None if there is no gain.
        low: the interval's lower end; None if the gain is too uncertain for one.
        high: its upper end.
        clusters: number of independent observations.
        note: why there is no share, or no interval; else empty.
    """

    gain: float
    kept: float | None
    low: float | None
    high: float | None
    clusters: int
    note: str


def kept_share(
    before: pa.Table, whole: pa.Table, part: pa.Table, metric: str, seed: int
) -> KeptShare:
    """Return the share of a gain that is kept; clusters are resampled whole, all systems together.

    Args:
        before: query_id, cluster and the metric, one row a query.
        whole: the same for the system with the gain.
        part: the same for the system that keeps some of it.
        metric: the column to compare.
        seed: of the bootstrap.

    Raises:
        DataError: if the systems were not measured on the same queries.

    Of gains of 0.4 and 0.2, half of each is kept:

    >>> tables = [pa.table({"query_id": ["a", "b"], "cluster": ["a", "b"], "m": scores})
    ...           for scores in ([0.1, 0.3], [0.5, 0.5], [0.3, 0.4])]
    >>> kept_share(*tables, "m", seed=0)._replace(gain=0.3)
    KeptShare(gain=0.3, kept=0.5, low=0.5, high=0.5, clusters=2, note='')
    >>> kept_share(tables[1], tables[0], tables[2], "m", seed=0).note
    'there is no gain'
    """
    _, cluster_of = np.unique(before.sort_by("query_id")["cluster"].to_numpy(), return_inverse=True)
    sizes = np.bincount(cluster_of)
    gains, kept = (  # (clusters,) each
        np.bincount(cluster_of, query_differences(before, after, metric)["difference"]) / sizes
        for after in (whole, part)
    )
    gain = float(gains.mean())
    if gain <= 0:
        return KeptShare(gain, None, None, None, len(sizes), "there is no gain")
    share = round(float(kept.mean() / gain), 12)

    generator = np.random.default_rng(seed)
    ratios = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        drawn = generator.integers(len(sizes), size=len(sizes))
        resampled = gains[drawn].mean()
        ratios[number] = kept[drawn].mean() / resampled if resampled > 0 else np.nan
    if np.isnan(ratios).mean() > (1 - LEVEL) / 2:
        note = "the gain is too uncertain for an interval"
        return KeptShare(gain, share, None, None, len(sizes), note)
    tail = 100 * (1 - LEVEL) / 2
    low, high = (round(float(each), 12) for each in np.nanpercentile(ratios, [tail, 100 - tail]))
    return KeptShare(gain, share, low, high, len(sizes), "")
