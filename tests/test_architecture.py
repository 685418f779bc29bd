"""What depends on what: the core runs without Prefect, quickly imported, and no option is unread."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from option_reads import options_read

import expandr_core.stages
from expandr_core.options.base import Options

ROOT = Path(__file__).parents[1]
SOURCES = {
    path: ast.parse(path.read_text())
    for package in ("expandr_core", "expandr_cli", "tasks", "flows", "deployments")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
]
STAGES = [module.name for module in pkgutil.iter_modules(expandr_core.stages.__path__)]
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "faiss",
    "scipy",
    "trl",
    "peft",
    "prefect",
    "matplotlib",
}


def imported_by(statement: str) -> set[str]:
    """Run a statement in a new Python; return the top-level modules that it imported."""
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_core_imports_neither_prefect_nor_torch_by_itself():
    everything = ", ".join(f"expandr_core.stages.{name}" for name in STAGES)
    statement = (
        f"import expandr_core, expandr_core.runtime.runner, expandr_core.store.store, {everything}"
    )
    assert not imported_by(statement) & HEAVY


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_is_and_can_be_placed(stage):
    from tasks.placement import Placement

    module = importlib.import_module(f"expandr_core.stages.{stage}")
    assert module.VERSION >= 1
    assert module.ISOLATION in ("always", "on-gpu", "never")
    assert Placement().of(stage) == "here"
    assert Placement(**{module.ROLE: "cpu"}).of(stage) == "cpu"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported(module):
    importlib.import_module(module)


# From the top down: a room may import what is below it, and nothing beside it. `infra` is above all.
FLOORS = [
    ("expandr_cli",),
    ("deployments",),
    ("flows",),
    ("tasks",),
    ("expandr_core.stages",),
    (
        "expandr_core.planning",
        "expandr_core.demo",
        "expandr_core.exports",
        "expandr_core.reports",
        "expandr_core.serving",
    ),
    ("expandr_core.lineage",),
    ("expandr_core.training",),
    ("expandr_core.evaluation",),
    ("expandr_core.retrieval", "expandr_core.preferences"),
    ("expandr_core.encoders", "expandr_core.generation"),
    ("expandr_core.anchordr", "expandr_core.data"),
    ("expandr_core.runtime",),
    ("expandr_core.store",),
    ("expandr_core.options",),
    ("expandr_core.records", "expandr_core.errors", "expandr_core.seeding"),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """Return the room of a module of ours.

    >>> room_of("expandr_core.store.leases"), room_of("flows.stage")
    ('expandr_core.store', 'flows')
    """
    names = module.split(".")
    return ".".join(names[:2] if names[0] == "expandr_core" else names[:1])


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports, wherever in it, as full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_imports_only_the_floors_below_it():
    for path, tree in SOURCES.items():
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own == "expandr_core.__init__":
            continue
        below = {room for room, floor in FLOOR_OF.items() if floor > FLOOR_OF[own]} | {own}
        for module in imports(tree):
            if module.startswith(("expandr_", "tasks.", "flows.", "deployments.")):
                assert room_of(module) in below, f"{path.relative_to(ROOT)} imports {module}"


def test_no_file_is_over_300_lines_and_no_function_over_60():
    for path, tree in SOURCES.items():
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("rooms", "most"),
    [
        ("preferences training generation encoders retrieval evaluation", 12892),
        ("store runtime planning", 4900),
        ("stages", 4545),
        ("data", 2040),
        ("anchordr demo", 1200),
        ("exports", 830),
        ("lineage", 2610),
        ("reports", 2800),
        ("serving", 1230),
    ],
)
def test_rooms_stay_within_their_size(rooms, most):
    """Raise a limit only with a reason, such as a new capability."""
    files = [
        path for room in rooms.split() for path in (ROOT / "expandr_core" / room).rglob("*.py")
    ]
    assert sum(len(path.read_text().splitlines()) for path in files) <= most


def test_the_core_does_not_import_prefect():
    for path, tree in SOURCES.items():
        if path.is_relative_to(ROOT / "expandr_core"):
            assert not any(name.split(".")[0] == "prefect" for name in imports(tree)), path


def test_the_core_reads_no_environment_variable():
    for path, tree in SOURCES.items():
        if path.is_relative_to(ROOT / "expandr_core"):
            attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            set_anew = {  # a fork gets the environment that its caller gives it
                node.value
                for node in attributes
                if node.attr in ("clear", "update") and ast.unparse(node.value) == "os.environ"
            }
            read = {node.attr for node in attributes if node not in set_anew}
            assert not read & {"environ", "getenv"}, path


def test_whatever_loads_a_model_folder_is_told_to_run_no_code_of_it():
    loaders = {"AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoModelForCausalLM"}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            loads = called in {f"{name}.from_pretrained" for name in loaders} or (
                called in ("SentenceTransformer", "LLM") and "modules" not in keywords
            )
            if loads:
                assert keywords.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_what_the_runner_asks(name):
    stage = importlib.import_module(f"expandr_core.stages.{name}")
    assert isinstance(stage.VERSION, int) and stage.VERSION >= 1
    assert stage.ISOLATION in ("always", "on-gpu", "never")
    assert issubclass(stage.OPTIONS, Options)
    assert callable(stage.run)


def option_classes() -> list[type[Options]]:
    for module in MODULES:
        importlib.import_module(module)
    found, new = [], [Options]
    while new:
        new = [below for above in new for below in above.__subclasses__() if below not in found]
        found += new
    return [each for each in found if each.__module__.startswith("expandr_core")]


def test_every_option_is_read_on_a_value_of_its_class(tmp_path):
    """An option that nothing reads is reported, though others of its name are read everywhere."""
    dead = {"MiningOptions.epochs"}
    classes = option_classes()
    read = options_read(
        {each.__name__ for each in classes}, tmp_path, {"MiningOptions": "epochs: int = 3"}
    )
    every = {  # each once, in the class that declares it
        f"{each.__name__}.{field}"
        for each in classes
        for field in each.model_fields
        if field in each.__annotations__
    }
    assert (every | dead) - read == dead


def test_every_option_is_described_or_explained():
    for each in option_classes():
        assert each.__doc__, each
        if each.__module__.startswith("expandr_core.options"):
            for name, field in each.model_fields.items():
                assert field.description or field.title, f"{each.__name__}.{name}"


def test_no_two_files_of_tests_have_one_name():
    """Pytest would collect only the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
