"""Make or read the data, and split it."""

from dataclasses import dataclass

from expandr_core.errors import DataError
from expandr_core.options.data import DataOptions, DemoWorldOptions, IdenticalIds
from expandr_core.stages import collection_texts, prepare
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace


@dataclass(frozen=True)
class Data:
    """What the loop works on; each is one file, so that a change reaches only who reads it.

    Attributes:
        world: the demo world, if the data is the demo.
        corpus: passages to search; those of the dev part if there are only training triples.
        collection: the same if it is a collection's, to mine in; else None.
        preference: training queries that align the LLM.
        retriever: training queries of the retriever.
        evaluations: queries, qrels and corpus by split: "dev", and "test" if there is one.
    """

    world: Artifact | None
    corpus: Artifact
    collection: Artifact | None
    preference: Artifact
    retriever: Artifact
    evaluations: dict[str, "Evaluation"]

    @property
    def reported(self) -> str:
        """The split that the report is about: "test" if there is one."""
        return "test" if "test" in self.evaluations else "dev"


@dataclass(frozen=True)
class Evaluation:
    """Queries with their judgements, and the corpus to search.

    `identical_ids` is what the dataset's own library does with a passage that has the query's id.
    """

    queries: Artifact
    qrels: Artifact
    corpus: Artifact
    identical_ids: IdenticalIds = "ignore"


def prepare_data(work: Workspace, options: DataOptions, world: DemoWorldOptions) -> Data:
    """Read the collection and the triples; split the training queries."""
    made = None
    if options.collection == "demo":
        made = work.make("make the demo world", "demo_world", world)
    prepared = work.make(
        "prepare the data", "prepare", options, {"world": made}, prepare.source_digests(options)
    )

    if "dev_queries.parquet" not in prepared.files:
        raise DataError(
            "there is no dev part to choose the best round on; set data.dev_share above 0, or add "
            "qrels/dev.tsv to the collection"
        )

    def file(*names: str) -> Artifact:
        return next(prepared.at(name) for name in names if name in prepared.files)

    evaluations = {
        split: Evaluation(
            file(f"{split}_queries.parquet"),
            file(f"{split}_qrels.parquet"),
            file(f"{split}_corpus.parquet", "corpus.parquet"),
        )
        for split in ("dev", "test")
        if f"{split}_queries.parquet" in prepared.files
    }
    return Data(
        world=made,
        corpus=file("corpus.parquet", "dev_corpus.parquet"),
        collection=file("corpus.parquet") if "corpus.parquet" in prepared.files else None,
        preference=file("preference.parquet"),
        retriever=file("retriever.parquet"),
        evaluations=evaluations,
    )


def training_texts(work: Workspace, data: Data) -> Artifact:
    """Collect the texts that tiny models are trained on: the world's own, or the corpus."""
    if data.world:
        return data.world.at("texts.parquet")
    options = collection_texts.OPTIONS()
    made = work.make(
        "collect the corpus's texts", "collection_texts", options, {"corpus": data.corpus}
    )
    return made.at("texts.parquet")
