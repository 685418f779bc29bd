"""The formats that a dataset can have, and which one a folder has.

A format is a module with

    claims(location)         whether a folder or URL looks like this format
    find(location, split)    its raw files, or a DataError that names the missing one
    read(reader, files, split, strict, cluster_by)
                             a `Collection` of these files

To add one, write the module and name it in FORMATS, before `beir`, which claims whatever is left.
"""

from typing import Any

from expandr_core.data.formats import beir, nanobeir

FORMATS = (nanobeir, beir)


def format_of(location: str) -> Any:
    """Return the format that claims a folder or URL.

    >>> format_of("/data/scifact").__name__
    'expandr_core.data.formats.beir'
    """
    return next(each for each in FORMATS if each.claims(location))
