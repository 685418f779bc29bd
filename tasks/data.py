"""Make or read the data, and split it."""

from dataclasses import dataclass

from expandr_core.errors import DataError
from expandr_core.options.data import IdenticalIds
from expandr_core.options.distil import DEMO
from expandr_core.stages import collection_texts, prepare
from expandr_core.stages import import_queries as import_queries_stage
from expandr_core.stages.prepare import PSEUDO_DOCS
from expandr_core.store.artifacts import Artifact
from tasks.pipeline import Pipeline


@dataclass(frozen=True)
class Data:
    """What the loop works on; each is one file, so that a change reaches only who reads it.

    Attributes:
        world: the demo world, if the data is the demo.
        corpus: passages to search; those of the dev split if there are only training triples.
        collection: the same if it is a collection's, to mine in; else None.
        preference: training queries that align the LLM.
        retriever: training queries of the retriever.
        evaluations: queries, qrels and corpus by split: "dev", and "test" if there is one.
        pseudo_docs: expansions of the retriever's queries in the training triples, if there are any.
        pairs: imported pairs that the first round aligns the LLM with, or None.
        expansions: imported expansions that the first round trains the retriever on, or None.
        unlabelled: queries without judgements that the distilled query encoder learns from, or None.
    """

    world: Artifact | None
    corpus: Artifact
    collection: Artifact | None
    preference: Artifact
    retriever: Artifact
    evaluations: dict[str, "Evaluation"]
    pseudo_docs: Artifact | None = None
    pairs: Artifact | None = None
    expansions: Artifact | None = None
    unlabelled: Artifact | None = None

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

    @property
    def judged(self) -> dict[str, Artifact]:
        """The queries and their judgements, as the inputs of a stage."""
        return {"queries": self.queries, "qrels": self.qrels}


def prepare_data(pipeline: Pipeline) -> Data:
    """Read the collection and the triples; split the training queries."""
    options, made = pipeline.options.data, None
    if options.collection == "demo":
        made = make_world(pipeline)
    prepared = pipeline.step(
        "prepare",
        {"world": made},
        "prepare the data",
        options=options,
        sources=prepare.source_digests(options),
    )

    if "dev_queries.parquet" not in prepared.files:
        raise DataError(
            "there are no dev queries to choose the best round on; set data.dev_share above 0, or add "
            "qrels/dev.tsv to the collection"
        )

    if pipeline.options.loop.start_from == "expansions" and PSEUDO_DOCS not in prepared.files:
        raise DataError(
            f"{options.triples}: no row has a pseudo_doc that is not empty, so there are no expansions "
            "to start from; set loop.start_from to 'data'"
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
        pseudo_docs=file(PSEUDO_DOCS) if PSEUDO_DOCS in prepared.files else None,
        unlabelled=import_queries(pipeline, made) if pipeline.options.distil.enabled else None,
    )


def make_world(pipeline: Pipeline) -> Artifact:
    """Make the demo world."""
    world = pipeline.options.world
    return pipeline.step("demo_world", {}, "make the demo world", options=world)


def import_queries(pipeline: Pipeline, world: Artifact | None) -> Artifact | None:
    """Import the queries without judgements to distil with, if some are named.

    Args:
        pipeline: of the run.
        world: the demo world, if it is made already.
    """
    options = import_queries_stage.OPTIONS.of(pipeline.options)
    if not options.location:
        return None
    from_world = options.location == DEMO
    made = pipeline.step(
        "import_queries",
        {"world": world or make_world(pipeline)} if from_world else {},
        "import the queries without judgements",
        options=options,
        sources=import_queries_stage.source_digests(options),
    )
    return made.at(import_queries_stage.FILE)


def training_texts(pipeline: Pipeline, data: Data, role: str) -> Artifact:
    """Collect the texts that a tiny model is trained on: the world's own, or the corpus.

    Args:
        pipeline: of the run.
        data: of the run.
        role: "llm" or "retriever".
    """
    if data.world:
        return data.world.at("texts.parquet")
    made = pipeline.step(
        "collection_texts",
        {"corpus": data.corpus},
        f"collect the corpus's texts for the tiny {role}",
        options=collection_texts.OPTIONS(),
        name=role,
    )
    return made.at(collection_texts.TEXTS)
