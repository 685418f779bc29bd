"""What is searched and learned from."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Options, Positive, added, runtime

IdenticalIds = Literal["ignore", "keep"]


class DataOptions(Options):
    """The collection to search, and the training examples."""

    collection: str = runtime(
        "demo",
        description="Folder or s3:// URL in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), "
        "'demo' for the built-in world, or '' for none (then `triples` is needed).",
    )
    triples: str = runtime(
        "",
        description="Folder or s3:// URL of training triples (*.jsonl with query, positive, "
        "negative), or hub:NAME. Empty: the training queries are those of the collection's "
        "qrels/train.tsv.",
    )
    pseudo_docs: Literal["use", "ignore"] = added(
        "use",
        description="Whether the `pseudo_doc` of training triples is kept as an expansion of its "
        "query, for `loop.start_from: expansions`.",
    )
    pairs: str = runtime(
        "",
        description="Preference pairs that exist, for `loop.start_from: pairs`: folder, file, s3:// URL "
        "or hub:NAME of *.json or *.jsonl in the layout of the paper's release or of TRL.",
    )
    preference_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the training queries that align the LLM (paper: 1/8).",
    )
    dev_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share kept for choosing the best round; not used if qrels/dev.tsv exists.",
    )
    cluster_by: str = Field(
        default="",
        description="Field of a query's metadata; queries that share it are tested as one "
        "observation. Empty: each query is one.",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="A bad row stops the run, or is skipped and counted by reason.",
    )


class DemoWorldOptions(Options):
    """The built-in world: invented entities, their documents, and questions in everyday words."""

    instruct_entities: Positive = Field(
        default=50, description="Entities whose questions train the tiny LLM."
    )
    train_entities: Positive = Field(
        default=50, description="Entities whose questions train the loop."
    )
    dev_entities: Positive = Field(
        default=25, description="Entities whose questions choose the best round."
    )
    test_entities: Positive = Field(
        default=50, description="Entities whose questions are the test set."
    )
    questions_per_aspect: int = Field(
        default=2,
        ge=1,
        le=4,
        description="Paraphrased training questions per entity and aspect.",
    )
