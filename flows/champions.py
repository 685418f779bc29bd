"""What a run kept, as a version of a registered model; and the run whose models are used by default."""

from collections.abc import Callable
from datetime import UTC, datetime

from expandr_core.generation.adapters import is_adapter, language_model
from expandr_core.generation.chat_templates import chat_options, template_of
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, make_spec, run_stage
from expandr_core.stages import encode, merge
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.registered_model import CHAMPION, Version, model_name
from expandr_core.store.registry import find_version
from expandr_core.store.store import Store
from flows.run_record import RunRecord, loop_run


def chosen_run(store: Store, name: str, say: Callable[[str], None]) -> RunRecord:
    """Return the run of the champion, or, if a name is given, of what `loop_run` finds by it.

    Args:
        store: that has the runs.
        name: see `loop_run`; empty for the champion, and the latest run as long as there is none.
        say: is told which run that is, unless it was named.

    Raises:
        DataError: see `loop_run`; also if several models have a champion.
    """
    if name:
        return loop_run(store, name)
    if found := find_version(store, CHAMPION):
        model, version = found
        run = loop_run(store, f"{model}/{CHAMPION}")
        say(f"using {model}/{CHAMPION}, version {version.number}, of run {run.name}")
        return run
    run = loop_run(store, "latest")
    say(
        f"no champion in {store.url}; using the latest run, {run.name} (`expandr promote` makes one)"
    )
    return run


def version_of(store: Store, run: RunRecord, actor: str, tags: dict[str, str]) -> Version:
    """Return what a run kept, with its encoded corpus if it made one, as a version of a model."""
    index = find(index_spec(run), store)
    models = run.models | ({"index": index} if index else {})
    return Version(run=run.name, models=models, tags=tags, created=datetime.now(UTC), actor=actor)


def index_spec(run: RunRecord) -> StageSpec:
    """Return the stage that encodes the corpus of a run by its retriever, as it is searched."""
    return make_spec(
        "encode",
        encode.OPTIONS.of(run.options.measured_retriever),
        {"corpus": run.models["corpus"], "retriever": run.models["retriever"]},
        seed=run.options.seed,
        device=run.options.device,
    )


def merged(store: Store, run: RunRecord) -> Artifact:
    """Return the whole language model of a run; if it is an adapter, merge it into its base."""
    if not is_adapter(run.models["llm"]):
        return run.models["llm"]
    model, llm = language_model(store, run.models["llm"]), run.options.llm
    chat = chat_options(template_of(store.local(model["llm"])), llm.template, llm.date)
    spec = make_spec("merge", merge.OPTIONS(chat=chat), model, device=run.options.device)
    return find(spec, store) or run_stage(spec, store, no_progress)


def named_after(run: RunRecord) -> str:
    """Return the name of the registered model that a run belongs to: that of its collection."""
    return model_name(run.options.data.collection or run.options.data.triples)
