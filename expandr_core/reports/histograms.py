"""Histograms of several groups of values in the same bins."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 24


def histograms(groups: Mapping[str, NDArray]) -> dict[str, Any]:
    """Count the values of each group in bins of equal width, from the least value of all to the largest.

    Returns:
        `edges`, and of each group `n`, `counts`, `mean`, `median`. Groups without values are left out.

    >>> found = histograms({"a": np.array([0.0, 24.0]), "b": np.array([])})
    >>> found["edges"][:3], found["groups"][0]["counts"][0], len(found["groups"])
    ([0.0, 1.0, 2.0], 1, 1)
    """
    known = {name: values for name, values in groups.items() if len(values)}
    if not known:
        return {"edges": [], "groups": []}
    low = min(float(values.min()) for values in known.values())
    high = max(float(values.max()) for values in known.values())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return {
        "edges": edges.tolist(),
        "groups": [
            {
                "name": name,
                "n": len(values),
                "counts": np.histogram(values, edges)[0].tolist(),
                "mean": float(values.mean()),
                "median": float(np.median(values)),
            }
            for name, values in known.items()
        ],
    }
