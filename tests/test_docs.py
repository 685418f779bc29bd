"""The pages tell the truth: every file, module, command, option and link that they name exists."""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from pydantic import BaseModel
from test_architecture import FLOORS

from expandr_cli.main import app
from expandr_core.options.loop import JointLoopOptions

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "infra/README.md")
    if page.name != "CHANGELOG.md"  # it names what is gone
}
CODE = (
    r"expandr_core|expandr_cli|expandr_app|tasks|flows|deployments|infra|tests|benchmarks|configs"
)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def named(pattern: str) -> list[tuple[str, str]]:
    """Find what matches a pattern's first group, page by page; not in links' targets and fences."""
    found = set()
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)  # test_extending runs these
        prose = LINK.sub(lambda link: link[0].split("](")[0], prose)
        found |= {(page, match) for match in re.findall(pattern, prose)}
    return sorted(found)


@cache
def to_be_written() -> set[str]:
    """The files that the recipes of docs/extending.md add."""
    return set(re.findall(r"^New `([^`]+)`:", PAGES["docs/extending.md"], re.M))


def anchors(page: str) -> set[str]:
    """Name a page's headings as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for target in LINK.findall(text):
            if not target.startswith("http"):
                yield page, target


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_links_lead_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    assert not anchor or anchor in anchors(file.read_text())


@pytest.mark.parametrize(("page", "path"), named(rf"(?<![\w./-])((?:{CODE}|docs)/[\w./-]*\w)"))
def test_paths_exist(page, path):
    assert (ROOT / path).exists() or path in to_be_written()


@pytest.mark.parametrize(("page", "module"), named(rf"(?<![\w./-])((?:{CODE})(?:\.\w+)+)"))
def test_modules_and_their_names_exist(page, module):
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if all(importlib.util.find_spec(".".join(parts[:n])) for n in range(1, length)) and (
            importlib.util.find_spec(name)
        ):
            found = importlib.import_module(name) if length < len(parts) else None
            for attribute in parts[length:]:
                found = getattr(found, attribute)
            return
    raise AssertionError(module)


@pytest.mark.parametrize(
    ("page", "target"), named(r"(?<![\w-])make (?:-C \S+ )?([a-z-]+)(?=[`\s])")
)
def test_make_targets_exist(page, target):
    if f"`make {target}" in PAGES[page] or f"    make {target}" in PAGES[page]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(("page", "line"), named(r"(?<![\w/])expandr ([a-z][a-z-]+[^`#\n]*)"))
def test_commands_and_their_options_exist(page, line):
    commands = typer.main.get_command(app).commands
    if f"`expandr {line}" not in PAGES[page] and f"    expandr {line}" not in PAGES[page]:
        return  # a sentence
    name = line.split()[0]
    assert name in commands
    known = {option for parameter in commands[name].params for option in parameter.opts}
    known |= {option for parameter in commands[name].params for option in parameter.secondary_opts}
    assert {word.split("=")[0] for word in line.split() if word.startswith("--")} <= known


def is_option(path: str) -> bool:
    """Whether a path such as dpo.lora.targets leads to an option of the loop."""

    def leads(model: type[BaseModel], parts: list[str]) -> bool:
        field = model.model_fields.get(parts[0])
        if not field or len(parts) == 1:
            return bool(field)
        below = [
            each
            for each in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(each, type) and issubclass(each, BaseModel)
        ]
        open_ended = getattr(field.annotation, "__origin__", None) is dict
        return open_ended or any(leads(each, parts[1:]) for each in below)

    return leads(JointLoopOptions, path.split("."))


GROUPS = "|".join(JointLoopOptions.model_fields)


@pytest.mark.parametrize(("page", "path"), named(rf"(?:`|--set )((?:{GROUPS})(?:\.[a-z_]\w*)+)"))
def test_options_exist(page, path):
    assert path.rsplit(".", 1)[-1] in ("py", "yaml", "json", "jsonl", "template") or is_option(path)


@pytest.mark.parametrize(("page", "name"), named(r"\b(EXPANDR_[A-Z_]+)\b"))
def test_variables_of_the_environment_are_read(page, name):
    sources = (path.read_text() for top in CODE.split("|") for path in (ROOT / top).rglob("*.py"))
    assert any(name in source for source in sources)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 115


def test_the_readme_names_every_room():
    tree = PAGES["README.md"].split("## Where to look")[1]
    packages = {room.split(".")[-1] for rooms in FLOORS for room in rooms}
    packages -= {"errors", "records", "seeding"}
    assert packages <= set(re.findall(r"\b(\w+)/", tree))


def test_the_page_on_architecture_has_the_floors_of_the_test():
    table = PAGES["docs/architecture.md"].split("## Floors")[1].split("\n\nThe core")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    floors = [{room.split(".")[-1] for room in rooms} for rooms in FLOORS]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == floors


def test_the_way_of_one_query_opens_at_most_eighteen_files():
    way = PAGES["docs/architecture.md"].split("## The way of one query")[1].split("\n## ")[0]
    assert 10 <= len(re.findall(r"^\| \d+ \| `", way, re.M)) <= 18
