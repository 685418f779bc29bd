"""Wrong options and inputs: one sentence that says which, where it was said, and what was meant."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expandr_cli.config_files import load_options
from expandr_cli.main import app

NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # whoever asks Prefect fails there


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 3\ndpo: {beta: 0.5}\n")
    return path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("dpo.betta=0.2", "there is no option dpo.betta; did you mean dpo.beta?"),
        (
            "preferences.length_share=0.8",
            "there is no option preferences.length_share; it is preferences.max_length_bias now",
        ),
        ("dop.beta=0.2", "there is no option dop; did you mean dpo"),
        ("hidden_size=64", "there is no option hidden_size; did you mean llm.tiny.hidden_size?"),
        ("loop.zzz=1", "there is no option loop.zzz; here are rounds, "),
        ("dpo.beta=high", "dpo.beta: Input should be a valid number"),
        ("dpo.beta=-1", "dpo.beta: Input should be greater than 0, not -1"),
        ("loop.rounds=2.5", "loop.rounds: Input should be a valid integer"),
        ("device=tpu", "device: Input should be 'auto', 'cpu' or 'cuda', not 'tpu'"),
        ("loop=3", "loop is a group of options, such as loop.rounds"),
        ("seed.x=3", "seed: Input should be a valid integer"),
        ("dpo.beta", "write it as name=value, such as dpo.beta=0.2"),
        ("dpo.beta=[1", "expected ',' or ']', but got '<stream end>'; write a value as in YAML"),
    ],
)
def test_what_was_wrong_on_the_command_line_is_said_of_it(config, capsys, change, complaint):
    with pytest.raises(Exception, match="2"):
        load_options(config, None, [change])
    said = capsys.readouterr().err
    assert said.startswith(f"error: --set {change}: {complaint}")
    assert str(config) not in said and said.count("\n") == 1


def test_what_was_wrong_in_the_file_is_said_of_the_file(config, capsys):
    config.write_text("dpo: {betta: 0.5}\nrounds: 3\n")
    with pytest.raises(Exception, match="2"):
        load_options(config, None, ["dpo.epochs=2"])
    assert capsys.readouterr().err == (
        f"error: {config}: there is no option dpo.betta; did you mean dpo.beta?\n"
        f"{config}: there is no option rounds; did you mean loop.rounds?\n"
    )


def test_a_file_that_is_missing_is_told_with_where_to_begin(tmp_path, capsys):
    missing = tmp_path / "tiny"
    with pytest.raises(Exception, match="2"):
        load_options(missing, None, [])
    told = f"error: {missing}: there is no such file; configs/ has some to start from\n"
    assert capsys.readouterr().err == told


def test_a_folder_is_no_config(tmp_path, capsys):
    with pytest.raises(Exception, match="2"):
        load_options(tmp_path, None, [])
    assert capsys.readouterr().err == f"error: {tmp_path}: a folder; name a file in it\n"


def test_options_that_do_not_fit_together_name_what_was_said_of_them(config, capsys):
    changes = ["expand.candidates.sampling_temperatures=[0.5, 0.6, 0.7]", "dpo.beta=0.2"]
    with pytest.raises(Exception, match="2"):
        load_options(config, None, changes)
    said = capsys.readouterr().err
    assert said.startswith(f"error: --set {changes[0]}: expand.candidates: samples (32) must be")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "dpo: [", "1: 2"])
def test_a_file_that_holds_no_options_is_named(config, capsys, text):
    config.write_text(text)
    with pytest.raises(Exception, match="2"):
        load_options(config, None, [])
    assert capsys.readouterr().err.startswith(f"error: {config}: ")


def test_values_are_read_as_the_option_needs_them(config):
    changes = ["data.collection=", "llm.model=2024", "retriever.model=no", "dpo.epochs=1"]
    options = load_options(config, 5, changes)
    assert (options.data.collection, options.llm.model) == ("", "2024")
    assert (options.retriever.model, options.dpo.epochs) == ("no", 1)
    assert (options.seed, options.dpo.beta) == (5, 0.5)


def test_a_change_leaves_the_options_beside_it_as_they_are(config):
    """`candidates` has 32 samples by default, `SamplingOptions` has 1."""
    before = load_options(config, None, []).expand.candidates
    after = load_options(config, None, ["expand.candidates.top_p=0.5"]).expand.candidates
    assert (before.samples, before.top_p) != (1, 0.5)
    assert after == before.model_copy(update={"top_p": 0.5})


# A prompt of one's own


@pytest.fixture
def prompt(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "few shots.txt"
    path.write_text("Like these: {...}\r\nQuery: {query}\n", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("name", ["few shots.txt", "{}"])
def test_a_prompt_is_read_from_its_file_and_only_its_text_is_an_option(
    config, prompt, in_file, name
):
    name = name.format(prompt)
    config.write_text(f"expand: {{prompt: {name if in_file else '{max_tokens: 99}'}}}\n")
    options = load_options(config, None, [] if in_file else [f"expand.prompt={name}"])
    asked = options.expand.prompt
    assert (asked.name, asked.text) == ("own", "Like these: {...}\nQuery: {query}")
    assert asked.max_tokens == (1024 if in_file else 99)
    assert "few shots" not in options.model_dump_json()
    inline = load_options(config, None, [f"expand.prompt.text={json.dumps(prompt.read_text())}"])
    assert inline.expand.prompt.text.lstrip("\ufeff") == asked.text


def test_a_name_alone_leaves_the_length_beside_it_and_takes_the_place_of_a_text(config, prompt):
    config.write_text("expand: {prompt: {text: 'On {query}', max_tokens: 99}}\n")
    asked = load_options(config, None, ["expand.prompt=q2e"]).expand.prompt
    assert (asked.name, asked.text, asked.max_tokens) == ("q2e", "", 99)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "'mine.txt' is neither a file nor one of q2d, q2a, q2q, q2e, q2c; give the path"),
        (b"Write.", "mine.txt: the prompt has no {query}; write {query} where the query goes"),
        (b" \n", "mine.txt: the prompt is empty; write what to ask for"),
        (b"{query}" + 100_000 * b"x", "mine.txt: the prompt has 100007 characters; shorten it"),
        (b"\xff\xfe{query}", "mine.txt cannot be read as UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_prompt_is_refused_by_name(config, prompt, capsys, content, complaint):
    if content is not None:
        prompt.with_name("mine.txt").write_bytes(content)
    with pytest.raises(Exception, match="2"):
        load_options(config, None, ["expand.prompt=mine.txt"])
    assert f"expand.prompt: {complaint}" in capsys.readouterr().err


@pytest.fixture
def wrong_model(tmp_path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--store", "{config}/store"], "--store {config}/store: nothing can be written there"),
        (["--set", "data.collection=/nowhere"], "correct data.collection"),
        (["--set", "data.triples=[/nowhere.jsonl]"], "data.triples"),
        (["--set", "data.collection="], "no data; set data.collection, data.triples, or both"),
        (["--set", "llm.model=/nowhere"], "llm.model: /nowhere: no such folder"),
        (["--set", "llm.model=somebody/some-model"], "llm.model: somebody/some-model: no folder"),
        (["--set", "llm.model={wrong_model}"], "llm.model: {wrong_model}: an adapter, not a model"),
        (["--set", "retriever.model=/nowhere"], "retriever.model: /nowhere: no such folder"),
        (["--set", "llm.engine=endpoint"], "llm.engine is 'endpoint'"),
        ([], "no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9/api"),
    ],
)
def test_what_a_run_starts_from_is_checked_before_prefect(
    config, wrong_model, tmp_path, monkeypatch, arguments, complaint
):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a network without the hub
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    here = {"config": config, "wrong_model": wrong_model}
    command = ["run", str(config), "--store", str(tmp_path / "store")]
    command += [argument.format(**here) for argument in arguments]
    with temporary_settings({PREFECT_API_URL: NOWHERE["PREFECT_API_URL"]}):
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert complaint.format(**here) in line


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (PermissionError(13, "denied"), False),
        (NotADirectoryError(20, "a file"), False),
        (OSError(30, "read-only"), False),
        (OSError(5, "input/output"), True),
        (ConnectionError("reset"), True),
    ],
)
def test_a_folder_that_cannot_be_written_is_not_tried_again(error, again):
    from prefect.states import Failed

    from tasks.stage import make_artifact

    decide = make_artifact.retry_condition_fn
    assert decide is not None
    assert decide(make_artifact, None, Failed(data=error)) is again
