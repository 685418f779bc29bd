"""The datasets with a name: BEIR's 15, and 13 of them in NanoBEIR's small samples.

"In-domain" refers to the paper's training mix (the public part of E5's data), which contains queries of
MS MARCO, NQ, HotpotQA and FEVER. Climate-FEVER has its own queries and judgements but searches FEVER's
corpus: it counts as out-of-domain, and reports say so beside the mean.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expandr_core.errors import DataError
from expandr_core.options.data import IdenticalIds

Benchmark = Literal["BEIR", "NanoBEIR", "other"]
Domain = Literal["in-domain", "out-of-domain", "other"]
ARCHIVES = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
NANO_HUB = "hub:sentence-transformers/NanoBEIR-en"
FORUMS = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)
IN_DOMAIN = {"msmarco", "nq", "hotpotqa", "fever"}
SHARED_CORPUS = {"climate-fever": "fever"}  # out-of-domain queries, in-domain passages

# from BEIR's README
_MD5 = {
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "quora": "18fb154900ba42a600f84b839c173167",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
}
# splits of one dataset on the hub
_NANO_SPLITS = {
    "msmarco": "NanoMSMARCO",
    "nfcorpus": "NanoNFCorpus",
    "nq": "NanoNQ",
    "hotpotqa": "NanoHotpotQA",
    "fiqa": "NanoFiQA2018",
    "arguana": "NanoArguAna",
    "webis-touche2020": "NanoTouche2020",
    "quora": "NanoQuoraRetrieval",
    "dbpedia-entity": "NanoDBPedia",
    "scidocs": "NanoSCIDOCS",
    "fever": "NanoFEVER",
    "climate-fever": "NanoClimateFEVER",
    "scifact": "NanoSciFact",
}


class Dataset(NamedTuple):
    """A dataset to measure on.

    Attributes:
        name: as reports show it.
        benchmark: whose mean it belongs to.
        domain: whether the paper's training mix has queries of it; "other" if unknown.
        split: whose queries are scored; for NanoBEIR the split on the hub.
        location: URL of an archive, a folder, an s3:// URL, or "hub:" and a dataset on the hub.
        md5: of the archive.
        subsets: measured separately; their unweighted mean is the dataset's result.
    """

    name: str
    benchmark: Benchmark
    domain: Domain
    split: str
    location: str
    md5: str = ""
    subsets: tuple[str, ...] = ()

    @property
    def identical_ids(self) -> IdenticalIds:
        """How the benchmark's library treats a passage with the query's id.

        beir drops it from the results; for NanoBEIR, sentence-transformers and mteb keep it.
        """
        return "keep" if self.benchmark == "NanoBEIR" else "ignore"


def _domain(name: str) -> Domain:
    return "in-domain" if name in IN_DOMAIN else "out-of-domain"


BEIR = {
    name: Dataset(
        name=name,
        benchmark="BEIR",
        domain=_domain(name),
        split="dev" if name == "msmarco" else "test",
        location=f"{ARCHIVES}/{name}.zip",
        md5=md5,
        subsets=FORUMS if name == "cqadupstack" else (),
    )
    for name, md5 in _MD5.items()
}
NANO_BEIR = {
    f"nano-{name}": Dataset(f"nano-{name}", "NanoBEIR", _domain(name), split, NANO_HUB)
    for name, split in _NANO_SPLITS.items()
}
BENCHMARKS: dict[Benchmark, dict[str, Dataset]] = {"BEIR": BEIR, "NanoBEIR": NANO_BEIR}
_GROUPS = {"beir": BEIR, "nano-beir": NANO_BEIR}


def find_datasets(references: Sequence[str]) -> list[Dataset]:
    """Look datasets up, in the order given, without repeats.

    Args:
        references: a name of the catalog; "beir" or "nano-beir" for a whole benchmark; a folder or
            s3:// URL with a slash in it; or NAME=LOCATION to read a dataset or benchmark of the catalog
            from elsewhere, or to name another dataset. A "=" after a slash is part of the path.

    Raises:
        DataError: for an unknown name, or one name for two locations.

    >>> [dataset.name for dataset in find_datasets(["scifact", "data/letters/", "cases=data/law"])]
    ['scifact', 'letters', 'cases']
    >>> [len(find_datasets([group])) for group in ("beir", "nano-beir")]
    [15, 13]
    >>> find_datasets(["beir=/data/beir"])[0].location
    '/data/beir/msmarco'
    """
    found: dict[str, Dataset] = {}
    for reference in references:
        for dataset in _datasets_of(reference.strip()):
            other = found.setdefault(dataset.name, dataset)
            if other != dataset:
                raise DataError(
                    f"two datasets are called {dataset.name!r}, in {other.location} and in "
                    f"{dataset.location}; rename one of them: NAME=LOCATION"
                )
    if not found:
        raise DataError("no dataset; name some, such as scifact, nano-beir, or a folder")
    return list(found.values())


def _datasets_of(reference: str) -> list[Dataset]:
    name, equals, location = reference.partition("=")
    if not equals or "/" in name:
        if reference in _GROUPS:
            return list(_GROUPS[reference].values())
        if not _is_location(reference):
            return [_known(reference)]
        name, location = reference.rstrip("/").rpartition("/")[2], reference
    location = location.rstrip("/")
    if not name or not location:
        raise DataError(f"dataset {reference!r}: write NAME, LOCATION or NAME=LOCATION")
    if name in _GROUPS:
        return [_elsewhere(each, location, group=True) for each in _GROUPS[name].values()]
    if name in BEIR or name in NANO_BEIR:
        return [_elsewhere(_known(name), location, group=False)]
    if is_archive(location):
        raise DataError(
            f"{location}: only downloads of BEIR's archives can be verified; download this one "
            "yourself, unpack it, and name the folder"
        )
    return [Dataset(name, "other", "other", "test", location)]


def taken_for_known(references: Sequence[str]) -> list[str]:
    """Say which folders are read as datasets of the catalog only because they are called so.

    >>> taken_for_known(["scifact", "own=my/scifact", "scifact=my/own", "my/law/", "my/scifact/"])
    ["my/scifact is read as BEIR's scifact, as it is called so; if it is another, write NAME=my/scifact"]
    """
    return [
        f"{dataset.location} is read as {dataset.benchmark}'s {dataset.name}, as it is called so; if it "
        f"is another, write NAME={dataset.location}"
        for reference in references
        if _is_location(reference) and "=" not in reference.partition("/")[0]
        for dataset in find_datasets([reference])
        if dataset.benchmark != "other"
    ]


def _is_location(reference: str) -> bool:
    return "/" in reference or reference in (".", "..")


def dev_of(reference: str) -> Dataset:
    """Return the dev queries of a folder in BEIR layout as a dataset.

    Raises:
        DataError: if it is no folder.

    >>> found = dev_of("data/letters/")
    >>> found.name, found.split, found.location
    ('letters-dev', 'dev', 'data/letters')
    """
    found = find_datasets([reference])
    if len(found) > 1 or found[0].subsets or "/" not in found[0].location or found[0].md5:
        raise DataError(
            f"{reference}: dev queries are read from one folder in BEIR layout with qrels/dev.tsv; name "
            "such a folder"
        )
    [dataset] = found
    return Dataset(f"{dataset.name}-dev", "other", "other", "dev", dataset.location)


def is_archive(location: str) -> bool:
    """Tell whether a location is the URL of an archive."""
    return location.startswith(("http://", "https://"))


def _known(name: str) -> Dataset:
    known = BEIR | NANO_BEIR
    if name not in known:
        raise DataError(
            f"unknown dataset {name!r}; the names are {', '.join(known)}, the groups beir and "
            "nano-beir; a folder needs a slash: ./FOLDER"
        )
    return known[name]


def _elsewhere(dataset: Dataset, location: str, group: bool) -> Dataset:
    """Read a dataset of the catalog from elsewhere; BEIR's have folders, NanoBEIR's share one."""
    if group and dataset.benchmark == "BEIR":
        location += f"/{dataset.name}" + (".zip" if is_archive(location) else "")
    return dataset._replace(location=location, md5=dataset.md5 if is_archive(location) else "")
