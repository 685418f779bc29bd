"""A run: every step of it, in order, each a Prefect task around one stage program.

    pairs = make_pairs(pipeline.round(1), queries, llm, retriever)

A pipeline is frozen. A *view* of it, such as `pipeline.round(2)`, differs in one thing and shares the
steps: what a view makes is in the run's record.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future as ConcurrentFuture
from dataclasses import dataclass, field, replace
from functools import partial
from threading import RLock, current_thread, main_thread
from typing import Any, Protocol, TypeVar

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.runner import make_spec
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import Step, StepId
from expandr_core.store.store import Store
from tasks.branches import run_branch, stop_if_asked
from tasks.placement import Placement
from tasks.progress import only_shown
from tasks.stage import make_artifact, open_store

TIMEOUT_SECONDS = 48 * 3600
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome", covariant=True)


class Future(Protocol[Outcome]):
    """What a branch will return."""

    def result(self) -> Outcome:
        """Wait for the branch; raise what it raised."""
        ...


def done(outcome: Answer) -> "Future[Answer]":
    """Return a branch that has ended."""
    future = ConcurrentFuture[Answer]()
    future.set_result(outcome)
    return future


class Steps:
    """The steps of a run so far, in the order of the code, whichever branch ends first.

    All views of a pipeline share them; the lock forbids a deep copy.

    Attributes:
        expected: about how many there will be; 0 as long as nobody knows.
    """

    def __init__(self, run: "Steps | None" = None) -> None:
        self._made: list[Step | Steps] = []
        self._run: Steps = run or self
        self.expected = 0
        if run is None:
            self._lock = RLock()
            self._ids: list[StepId] = []
            self._after_each: list[Callable[[], None]] = []

    def branch(self) -> "Steps":
        """Give the steps of a branch their place: after those so far."""
        branch = Steps(self._run)
        with self._run._lock:
            self._made.append(branch)
        return branch

    def begin(self, step_id: StepId) -> None:
        """Count a step in.

        Raises:
            ValueError: if the run has a step of that id.
        """
        with self._run._lock:
            if step_id in self._run._ids:
                raise ValueError(f"the run has two steps with the id {step_id}; name one of them")
            self._run._ids.append(step_id)

    def end(self, step: Step) -> None:
        """Note what a step has made or found."""
        with self._run._lock:
            self._made.append(step)
            for call in self._run._after_each:
                call()

    def position(self, step_id: StepId) -> str:
        """Say which step of the run this is."""
        with self._run._lock:
            number, expected = self._run._ids.index(step_id) + 1, self._run.expected
        return f"step {number}" + (f" of about {expected}" if expected else "")

    def after_each(self, call: Callable[[], None]) -> None:
        """Call this whenever a step has ended."""
        self._run._after_each.append(call)

    def __iter__(self) -> Iterator[Step]:
        """Iterate over the steps that have ended."""
        with self._run._lock:
            made = list(self._made)
        for each in made:
            if isinstance(each, Steps):
                yield from each
            else:
                yield each

    def artifact(self, stage: str, round: int = 0, name: str = "") -> Artifact:
        """Return what a step has made; of a step that was limited to some shards, the last."""
        found = [step for step in self if step.id[:3] == (stage, round, name)]
        if not found:
            raise KeyError(StepId(stage, round, name))
        return found[-1].artifact


@dataclass(frozen=True)
class Pipeline:
    """Makes the steps of a run, and remembers them.

    Attributes:
        store: folder or s3:// URL that keeps every artifact.
        options: of the run; the seed and the device are among them.
        placement: where each kind of stage runs.
        fresh: make every artifact again, even if the store has it.
        current_round: of the loop; 0 outside of the rounds.
        part: of the run, if it has several with the same steps; begins their titles and names.
        max_shards: limits sharded stages to their first shards; 0 for all.
        steps: of the run so far, whichever view made them.
    """

    store: str
    options: JointLoopOptions = field(default_factory=JointLoopOptions)
    placement: Placement = field(default_factory=Placement)
    fresh: bool = False
    current_round: int = 0
    part: str = ""
    max_shards: int = 0
    steps: Steps = field(default_factory=Steps)

    def round(self, number: int) -> "Pipeline":
        """View the pipeline in a round of the loop."""
        return replace(self, current_round=number)

    def within(self, part: str) -> "Pipeline":
        """View the pipeline in a part of the run."""
        return replace(self, part=part)

    def first_shards(self, number: int) -> "Pipeline":
        """View the pipeline limited to the first shards of sharded stages."""
        return replace(self, max_shards=number)

    def changed(self, **groups: Any) -> "Pipeline":
        """View the pipeline with other options, such as `seed=1`."""
        return replace(self, options=self.options.model_copy(update=groups))

    def submit(
        self, title: str, branch: Callable[..., Answer], *arguments: Any
    ) -> "Future[Answer]":
        """Begin a branch of the run, `branch(pipeline, *arguments)`; its steps come after those so far.

        It overlaps what follows if the placement lets it; else it has ended when this returns.

        Args:
            title: of the branch, in Prefect.
            branch: makes steps by the pipeline that it is given.
            arguments: what else it is given.
        """
        view = replace(self, steps=self.steps.branch())
        if self.placement.overlaps:
            return run_branch.submit(title, partial(branch, view, *arguments))
        return done(branch(view, *arguments))

    def step(
        self,
        stage: str,
        inputs: Mapping[str, Artifact | None],
        title: str,
        *,
        options: Options,
        name: str = "",
        sources: dict[str, str] | None = None,
    ) -> Artifact:
        """Find the artifact of a stage, or make it.

        Args:
            stage: module in `expandr_core.stages`.
            inputs: artifacts by role; absent ones are left out.
            title: what people see; round and shards are added to it.
            options: of the stage's type OPTIONS.
            name: tells steps of one stage and round apart.
            sources: SHA-256 of external files by name.

        Raises:
            DataError: if the input is at fault; it is not retried.
            ValueError: if the run has a step of that stage, round and name.
        """
        stop_if_asked()
        name = f"{self.part}/{name}" if self.part else name
        step_id = StepId(stage, self.current_round, name, self.max_shards)
        self.steps.begin(step_id)
        spec = make_spec(
            stage,
            options,
            {role: artifact for role, artifact in inputs.items() if artifact is not None},
            seed=self.options.seed,
            sources=sources,
            max_shards=self.max_shards,
            device=self.options.device,
            prefect_flow_run=str(flow_run.id or ""),
            **({"fresh": True} if self.fresh else {}),
        )
        title = self._full(title)
        artifact = self.make(step_id, title, spec)
        self.steps.end(Step(id=step_id, title=title, artifact=artifact))
        return artifact

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        """Run one stage as a Prefect task named by its title."""
        in_branch = (
            current_thread() is not main_thread()
        )  # where Prefect cannot end a task, and warns
        run = make_artifact.with_options(
            name=step_id.stage.replace("_", "-"),
            timeout_seconds=None if in_branch else TIMEOUT_SECONDS,
        )
        position = self.steps.position(step_id)
        state = run(title, spec, self.store, self.placement, position, return_state=True)
        return state.result()  # raises what the task raised

    def _full(self, title: str) -> str:
        """Add round and shards to a title, unless it names the round."""
        which = f"round {self.current_round}" if self.current_round else ""
        shards = f"first {self.max_shards} shards" if self.max_shards else ""
        title = ", ".join([title, *(words for words in (which, shards) if words not in title)])
        return f"{self.part}: {title}" if self.part else title

    def ask(self, question: Callable[[Store], Answer], *, predicted: Answer) -> Answer:
        """Ask the store about artifacts; a dry run, which makes none, takes the prediction."""
        return question(self.open())

    def publish(self, artifact: Artifact, path: str, name: str) -> None:
        """Show a Markdown file of an artifact in Prefect, under a name."""

        def show(store: Store) -> None:
            markdown = (store.local(artifact) / path).read_text(encoding="utf-8")
            about = f"{artifact.key} in {self.store}"
            with only_shown(name):
                create_markdown_artifact(markdown, key=name, description=about)

        self.ask(show, predicted=None)

    def find(self, reference: str) -> Artifact:
        """Find the artifact KEY, or the file KEY/FILE of one; KEY may be the beginning of a key.

        Raises:
            DataError: if there is none, or several.
        """
        beginning, _, path = reference.partition("/")
        store = self.open()
        keys = [
            key for key in store.keys(beginning) if not key.rpartition("-")[0].endswith("_shard")
        ]
        if len(keys) != 1:
            raise DataError(
                f"{reference!r} is the beginning of {len(keys)} keys in {self.store}; "
                "`expandr show` lists the artifacts of a run"
            )
        artifact = store.lookup(keys[0])
        if artifact is None or (path and path not in artifact.files):
            raise DataError(f"{reference!r} is not in {self.store}, or damaged")
        return artifact.at(path) if path else artifact

    def open(self) -> Store:
        """Open the store."""
        return open_store(self.store)
