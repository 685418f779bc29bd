"""What the first round starts from, if not from the data alone: pairs or expansions that exist."""

from dataclasses import replace

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import import_expansions as stage
from expandr_core.store.artifacts import Artifact
from tasks.data import Data
from tasks.pipeline import Pipeline
from tasks.preferences import import_pairs


def check_start(options: JointLoopOptions) -> None:
    """Check that what the loop starts from is named, and that nothing is named in vain.

    Raises:
        DataError: naming the options.
    """
    start, order, data = options.loop.start_from, options.loop.order, options.data
    if start == "pairs" and not data.pairs:
        raise DataError(
            "loop.start_from is 'pairs', and data.pairs names none; name a folder, a file, an s3:// URL "
            "or hub:NAME there, or set loop.start_from to 'data'"
        )
    if start == "data" and data.pairs:
        raise DataError(
            "data.pairs is given, but with loop.start_from 'data' the loop makes its own pairs; set "
            "loop.start_from to 'pairs', or leave data.pairs empty"
        )
    if start == "expansions" and not data.triples:
        raise DataError(
            "loop.start_from is 'expansions', which come from the field pseudo_doc of data.triples, and "
            "there are none; name some, or set loop.start_from to 'data'"
        )
    if start == "expansions" and data.pseudo_docs == "ignore":
        raise DataError(
            "loop.start_from is 'expansions', but data.pseudo_docs is 'ignore'; set it to 'use', or "
            "loop.start_from to 'data'"
        )
    if data.pairs and options.align.method == "kto":
        raise DataError(
            "align.method kto learns from the rewards of all candidates, and data.pairs has none; set "
            "align.method to dpo, sft or sft+dpo"
        )
    for named, unused, what in (
        (data.pairs, "retriever_only", "data.pairs is given"),
        (start == "expansions", "align_only", "loop.start_from is 'expansions'"),
    ):
        if named and order == unused:
            raise DataError(
                f"{what}, but with loop.order {unused!r} nothing is trained on that; choose another "
                "order, or leave it out"
            )


def import_start(pipeline: Pipeline, data: Data, llm: Artifact) -> Data:
    """Import the pairs and the expansions that the options name; return the data with them.

    Args:
        pipeline: of the run.
        data: of the run.
        llm: the language model that training starts from.
    """
    options = pipeline.options
    pairs = expansions = None
    if options.data.pairs:
        pairs = import_pairs(pipeline, llm)
    if options.loop.start_from == "expansions":
        assert data.pseudo_docs is not None  # or the preparation had failed
        expansions = import_expansions(pipeline, data.pseudo_docs)
    return replace(data, pairs=pairs, expansions=expansions)


def import_expansions(pipeline: Pipeline, pseudo_docs: Artifact) -> Artifact:
    """Import the expansions of the training triples, as many a query as training asks for."""
    options = stage.OPTIONS(samples=pipeline.options.training.expansions_per_query)
    inputs, title = {"pseudo_docs": pseudo_docs}, "import the expansions"
    return pipeline.step("import_expansions", inputs, title, options=options)
