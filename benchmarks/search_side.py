"""One side of benchmarks/mining.py or benchmarks/search.py: a stage, bare products, or another library.

    python benchmarks/search_side.py WHAT WORLD OUT [PRECISION]

WHAT is a stage, "mine" or "evaluate", of the tree in PYTHONPATH, which may be the former commit's;
"products"; "sentence-transformers" or "beir". The process prints its seconds, and a digest of what it
wrote. PRECISION is that of bare products, or the one that our stage proposes passages in.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

DEPTHS = {"mine": 30, "evaluate": 1000}
MEMORY_GB = 2.0
PASSAGES, QUERIES = 4096, 1024  # of bare products at once


class Job:
    """What the stages ask of a job, at either commit."""

    def __init__(self, options: Any, world: Path, out: Path):
        """Read from a world, write to a folder."""
        self.options, self.world, self.out = options, world, out
        self.inputs = {
            "retriever": world / "model",
            "corpus": world / "corpus.parquet",
            "examples": world / "retriever.parquet",
            "queries": world / "queries.parquet",
            "qrels": world / "qrels.parquet",
        }
        self.spec = SimpleNamespace(inputs=self.inputs, runtime={"device": "cpu"})
        self.counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def all_shards(self, role: str) -> Iterator[list[Path]]:
        """Return the shards of the corpus."""
        assert role == "embeddings"
        yield sorted((self.world / "shards").iterdir())

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report to nobody."""


def run_stage(what: str, world: Path, out: Path, precision: str) -> Callable[[], str]:
    """Prepare a stage; return what runs it and says what it wrote."""
    try:
        options = our_options(what, precision)
    except ImportError:  # the former commit
        options = former_options(what)
    import importlib

    stage = importlib.import_module(f"expandr_core.stages.{what}")
    job = Job(options, world, out)

    def run() -> str:
        stage.run(job)
        name = "negatives.parquet" if what == "mine" else "run.parquet"
        return hashlib.sha256((out / name).read_bytes()).hexdigest()[:16]

    return run


def our_options(what: str, precision: str) -> Any:
    """Return the stage's options at this commit."""
    from expandr_core.options.evaluation import RankingOptions
    from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
    from expandr_core.options.training import MiningOptions
    from expandr_core.retrieval import exact
    from expandr_core.stages import evaluate, mine

    if precision:
        exact.quickest_proposer = lambda device: precision  # pyrefly: ignore[bad-assignment]
    shared = {
        "encoding": EncodingOptions(),
        "fusion": FusionOptions(expansion_weight=0),
        "index": IndexOptions(search_memory_gb=MEMORY_GB),
    }
    depth = DEPTHS[what]
    if what == "mine":
        return mine.OPTIONS(mining=MiningOptions(depth=depth), **shared)
    return evaluate.OPTIONS(ranking=RankingOptions(depth=depth), **shared)


def former_options(what: str) -> Any:
    """Return the stage's options at the former commit."""
    import importlib

    options = importlib.import_module("expandr_core.options")
    stage = importlib.import_module(f"expandr_core.stages.{what}")
    own = {"mining_depth": 30, "expansions_per_query": 1} if what == "mine" else {"depth": 1000}
    return stage.OPTIONS(
        encoding=options.EncodingOptions(),
        expansion_weight=0.0,
        search_memory_gb=MEMORY_GB,
        **own,
    )


def query_vectors(world: Path) -> torch.Tensor:
    """Encode the queries by the model alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(world / "model"), device="cpu")
    texts = pq.read_table(world / "queries.parquet")["query"].to_pylist()
    return torch.from_numpy(model.encode(texts, normalize_embeddings=True, batch_size=1024))


def multiply(world: Path, precision: str) -> Callable[[], str]:
    """Prepare to multiply all queries with all passages, and nothing else."""
    kind = getattr(torch, precision)
    queries = query_vectors(world).to(kind)

    def run() -> str:
        products = torch.empty(PASSAGES * QUERIES, dtype=kind)
        for shard in sorted((world / "shards").iterdir()):
            stored = torch.from_numpy(np.load(shard / "vectors.npy", mmap_mode="c"))
            for passages in stored.to(kind).split(PASSAGES):
                for own in queries.split(QUERIES):
                    into = products[: len(passages) * len(own)].view(len(passages), len(own))
                    torch.mm(passages, own.T, out=into)
        return ""

    return run


class Encoded:
    """Stands for a model that encodes in no time: it returns the vectors of the world."""

    device = "cpu"

    def __init__(self, world: Path):
        """Read all vectors, as float32; passages are known by the number that their text begins with."""
        shards = sorted((world / "shards").iterdir())
        self.passages = torch.cat(
            [torch.from_numpy(np.load(shard / "vectors.npy")).float() for shard in shards]
        )
        self.queries = query_vectors(world)

    def get_embedding_dimension(self) -> int:
        """Return the size of the vectors."""
        return self.passages.shape[1]

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        """Return the vectors of passages, for sentence-transformers."""
        return self.passages[[int(text[1:9]) for text in texts]].numpy()

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        """Return the vectors of all queries, for sentence-transformers."""
        assert len(texts) == len(self.queries)
        return self.queries.numpy()

    def similarity_pairwise(self, queries: np.ndarray, passages: np.ndarray) -> torch.Tensor:
        """Return the inner product of each pair, for sentence-transformers."""
        return torch.from_numpy(np.einsum("pd,pd->p", queries, passages))

    def encode_queries(self, queries: list[str], **_: Any) -> torch.Tensor:
        """Return the vectors of all queries, for beir."""
        return self.queries[: len(queries)]

    def encode_corpus(self, corpus: list[dict[str, str]], **_: Any) -> torch.Tensor:
        """Return the vectors of passages, for beir."""
        return self.passages[[int(each["text"][1:]) for each in corpus]]


def run_library(what: str, world: Path) -> Callable[[], str]:
    """Prepare another library's search for the same vectors."""
    encoded: Any = Encoded(world)
    if what == "beir":
        from beir.retrieval.search.dense import DenseRetrievalExactSearch

        ids = [f"p{number:08}" for number in range(len(encoded.passages))]
        corpus = {id_: {"title": "", "text": id_} for id_ in ids}
        queries = {f"q{number:08}": "" for number in range(len(encoded.queries))}

        def search() -> str:
            searcher = DenseRetrievalExactSearch(encoded, show_progress_bar=False)
            searcher.search(corpus, queries, DEPTHS["evaluate"], "dot")
            return ""

        return search
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    examples = pq.read_table(world / "retriever.parquet", columns=["query", "positive"])
    numbers = range(examples.num_rows)  # it merges equal queries, ours are of one id each
    named = [f"{text} {n}" for text, n in zip(examples["query"].to_pylist(), numbers, strict=True)]
    pairs = Dataset.from_dict({"query": named, "positive": examples["positive"].to_pylist()})
    corpus = pq.read_table(world / "corpus.parquet", columns=["text"])["text"].to_pylist()

    def mine() -> str:
        mine_hard_negatives(
            pairs,
            encoded,
            corpus=corpus,
            num_negatives=DEPTHS["mine"] - 1,
            range_max=DEPTHS["mine"],
            use_faiss=True,
            output_format="n-tuple",
            verbose=False,
        )
        return ""

    return mine


def main() -> None:
    """Prepare a side, run it, and print what it took."""
    what, world, out, *precision = sys.argv[1:]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if what in DEPTHS:
        run = run_stage(what, Path(world), folder, "".join(precision))
    elif what == "products":
        run = multiply(Path(world), precision[0])
    else:
        run = run_library(what, Path(world))
    import sentence_transformers  # noqa: F401  every side has it, so its import is nobody's time

    start = time.perf_counter()
    digest = run()
    print(json.dumps({"seconds": time.perf_counter() - start, "digest": digest}))


if __name__ == "__main__":
    main()
