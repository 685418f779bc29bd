"""What depends on what: the core runs without Prefect, quickly imported, and no option is unread."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import expandr_core.stages
from expandr_core.options import Options

ROOT = Path(__file__).parents[1]
SOURCES = {
    path: ast.parse(path.read_text())
    for package in ("expandr_core", "tasks", "flows", "deployments")
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


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("expandr_core", {"prefect", "tasks", "flows"}), ("tasks", {"flows"})],
)
def test_dependencies_point_one_way(package, forbidden):
    for path, tree in SOURCES.items():
        if path.is_relative_to(ROOT / package):
            assert not imports(tree) & forbidden, path


def test_the_core_reads_no_environment_variable():
    for path, tree in SOURCES.items():
        if path.is_relative_to(ROOT / "expandr_core"):
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not names & {"environ", "getenv"}, path


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


def names_read() -> set[str]:
    """Collect the names of attributes that are read anywhere but among the options."""
    names = set()
    for path, tree in SOURCES.items():
        if path.parent.name != "options":
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
    return names


def test_every_option_is_read_somewhere():
    read = names_read()
    unread = {
        f"{each.__name__}.{field}" for each in option_classes() for field in each.model_fields
        if field not in read
    }  # fmt: skip
    assert not unread


def test_every_option_is_described_or_explained():
    for each in option_classes():
        assert each.__doc__, each
        if each.__module__.startswith("expandr_core.options"):
            for name, field in each.model_fields.items():
                assert field.description or field.title, f"{each.__name__}.{name}"
