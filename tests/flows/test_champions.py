"""What is promoted is what is searched by default, until it is rolled back."""

import re
import shutil

import pytest
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.store.registry import read_model
from expandr_core.store.store import Store


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def expandr(store, *command: str) -> str:
    said = CliRunner().invoke(app, [*command, "--store", str(store)])
    assert said.exit_code == 0, said.output
    return said.output


def other_run(store: Store, name: str, seed: int) -> str:
    """Record a run that differs from the first in its name, and in the seed of its options."""
    record = store.records()[0]
    options = record["options"] | {"seed": seed}
    store.write_record(name, record | {"name": name, "options": options})
    return name


def found_by(text: str) -> list[str]:
    """Return the hits that a search printed, with their scores."""
    return re.findall(r"^ +\d+\. \S+  \S+", text, re.MULTILINE)


def test_the_champion_is_searched_by_default_and_after_a_rollback_as_before(first, store, tmp_path):
    opened, question = Store(str(store)), "what is it for?"
    said = expandr(store, "search", question, "--no-expand")
    assert f"no champion in {store}; using the latest run, {first.record.name}" in said
    hits = found_by(said)
    assert len(hits) == 5

    said = expandr(store, "promote", "latest", "-m", "the first", "--tag", "for=tests")
    assert f"demo/champion is version 1, of run {first.record.name}" in said
    said = expandr(store, "promote", "latest")
    assert f"demo/champion is version 1 already, of run {first.record.name}" in said
    model = read_model(opened, "demo")
    assert model.versions[0].models.keys() >= {"llm", "retriever", "corpus", "index"}

    refused = CliRunner().invoke(app, ["rollback", "--as", "nosuch", "--store", str(store)])
    assert refused.exit_code == 2
    assert f"no alias nosuch in {store}; there are: demo/champion" in refused.output

    later = other_run(opened, "20990101T000000-later-run", 2)
    said = expandr(store, "search", question, "--no-expand")
    assert f"using demo/champion, version 1, of run {first.record.name}" in said
    assert found_by(said) == hits
    assert f"version 2, of run {later}" in expandr(store, "promote", later)
    listed = expandr(store, "models")
    assert re.search(rf"1 +{first.record.name}.*for=tests *\n +2 +champion +{later}", listed)

    assert "version 1" in expandr(store, "rollback", "-m", "worse in production")
    shown = expandr(store, "models", "demo")
    assert "champion: version 1 rolled back, in place of 2, by " in shown
    assert "worse in production" in shown and "the first" in shown
    expandr(store, "gc", "--keep-runs", "0", "--older-than", "0h", "--delete")
    shutil.move(store, tmp_path / "moved")
    assert found_by(expandr(tmp_path / "moved", "search", question, "--no-expand")) == hits
    assert "intact" in expandr(tmp_path / "moved", "verify")


def test_what_is_not_there_is_refused_with_what_is(store):
    for command, words in (
        (
            ["rollback"],
            f"no alias champion in {store}; there are: none; `expandr promote RUN` makes",
        ),
        (["models", "x"], f"there is no model 'x' in {store}; there are: none"),
        (["search", "what?", "--run", "x/champion"], "there is no run 'x/champion'"),
        (["promote", "--tag", "x"], "write it as NAME=VALUE"),
        (["promote", "--as", "latest"], "cannot name an alias"),
    ):
        said = CliRunner().invoke(app, [*command, "--store", str(store)])
        assert said.exit_code == 2 and words in said.output, said.output
