"""The forms of the deployments: complete, in order, and refusing what is wrong at submission."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from deployments.deploy import deploy
from deployments.forms import form
from deployments.plan import Deployment, plan
from expandr_core.options.loop import JointLoopOptions
from flows.joint_loop import joint_loop

FORMS = {
    deployment.flow.name: deployment
    for deployment in plan("/store", "UTC")
    if deployment.flow.name != "stage"  # flows start it, not people
}
Field = tuple[str, dict[str, Any], bool]


def fields(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[Field]:
    """Yield path, schema and whether it is required, for every field at every depth."""
    for name, field in schema.get("properties", {}).items():
        below = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        described = {**below, **field}
        yield f"{path}{name}", described, name in schema.get("required", [])
        yield from fields(below, definitions, f"{path}{name}.")


def fields_of(deployment: Deployment) -> list[Field]:
    schema = form(deployment.flow)
    return list(fields(schema, schema.get("definitions", {})))


@pytest.mark.parametrize("name", FORMS)
def test_every_field_has_a_title_a_description_and_a_default_or_is_required(name):
    found = fields_of(FORMS[name])
    assert len(found) > 100 or name == "compare-runs"
    for path, field, required in found:
        assert field.get("title"), path
        assert len(field.get("description", "")) > 5, path
        assert required or "default" in field, path
        nullable = {"type": "null"} in field.get("anyOf", [])
        assert nullable or field.get("default", "") is not None, path


@pytest.mark.parametrize("name", FORMS)
def test_every_number_has_a_bound_and_tells_it(name):
    for path, field, _ in fields_of(FORMS[name]):
        if field.get("type") in ("integer", "number"):
            assert "minimum" in field or "exclusiveMinimum" in field, path
            assert field["description"].endswith(")"), path


@pytest.mark.parametrize("name", FORMS)
def test_fields_come_in_reading_order(name):
    schema = form(FORMS[name].flow)
    for model in [schema, *schema.get("definitions", {}).values()]:
        positions = [field["position"] for field in model.get("properties", {}).values()]
        assert positions == list(range(len(positions))), model["title"]


def test_choices_are_drop_downs_of_these_values():
    found = {path: field for path, field, _ in fields_of(FORMS["joint-loop"])}
    presets = ["none", "tiny", "demo", "scifact", "gemma", "paper", "released", "cosine-0.02"]
    assert found["preset"]["enum"] == presets
    assert found["placement.train"]["enum"] == ["here", "cpu", "gpu-infer", "gpu-train"]
    assert found["options.device"]["enum"] == ["auto", "cpu", "cuda"]
    assert found["options.preferences.acceptance"]["enum"] == ["auto", "threshold", "quantile"]


def test_the_suite_s_form_says_what_can_be_measured():
    found = {
        path: (field, required) for path, field, required in fields_of(FORMS["evaluate-suite"])
    }
    datasets, required = found["datasets"]
    assert required and datasets["type"] == "array" and datasets["items"] == {"type": "string"}
    assert "beir or nano-beir for all of them" in datasets["description"]
    assert found["seeds"][0]["default"] == 3
    assert found["models.runs"][0]["type"] == "array"
    assert "options.llm.model" in found and "placement.generate" in found


def test_the_bounds_are_told():
    found = {path: field for path, field, _ in fields_of(FORMS["joint-loop"])}
    assert found["options.data.dev_share"]["description"].endswith("(at least 0, less than 1)")
    assert found["options.llm.tiny.hidden_size"]["description"].endswith(
        "(at least 32, a multiple of 32)"
    )


@pytest.mark.parametrize("name", ["joint-loop", "evaluate-suite"])
def test_what_presets_set_an_option_to_is_told_beside_it(name):
    found = {path: field["description"] for path, field, _ in fields_of(FORMS[name])}
    assert found["options.loop.rounds"].endswith("Presets: tiny 1, gemma 1. (at least 1)")
    assert "Presets: tiny 0.01, demo 0.0005, scifact" in found["options.dpo.learning_rate"]
    assert "Presets: for candidates tiny 4, demo 8" in found["options.expand.candidates.samples"]
    assert "cosine-0.02 facebook/contriever." in found["options.retriever.model"]
    assert "Presets" not in found["options.dpo.zero"]


def test_options_that_get_their_default_back_are_choices():
    found = {path: field for path, field, _ in fields_of(FORMS["joint-loop"])}
    choices = found["back_to_default"]["items"]["enum"]
    assert {"loop", "loop.rounds", "expand.candidates.samples", "device"} <= set(choices)


@pytest.fixture(scope="module")
def deployed(prefect_server, tmp_path_factory):
    deploy(str(tmp_path_factory.mktemp("store")))


def submit(**parameters: Any) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("joint-loop/manual")
        client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"loop": {"rounds": 0}}, "loop.rounds"),
        ({"data": {"preference_share": 1}}, "data.preference_share"),
        ({"llm": {"tiny": {"hidden_size": 33}}}, "llm.tiny.hidden_size"),
        ({"device": "tpu"}, "device"),
        ({"loop": {"rounds": "many"}}, "loop.rounds"),
        ({"dpo": {"betta": 0.1}}, "betta"),
        ({"expand": {"answer": {"sampling_temperatures": []}}}, "sampling_temperatures"),
    ],
)
def test_the_server_refuses_wrong_options_and_names_the_field(deployed, options, complaint):
    with pytest.raises(PrefectHTTPStatusError) as refused:
        submit(options=options)
    assert refused.value.response.status_code == 409
    assert complaint in refused.value.response.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "large"},
        {"back_to_default": ["loop.round"]},
        {"placement": {"train": "gpu"}},
        {"placement": {"trian": "cpu"}},
        {"prest": "tiny"},
        {"preset": "tiny", "rounds": 1},
    ],
)
def test_the_server_refuses_a_wrong_preset_placement_or_parameter(deployed, wrong):
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        submit(**wrong)


@pytest.mark.parametrize("name", FORMS)
def test_no_part_of_a_form_takes_fields_that_it_does_not_have(name):
    schema = form(FORMS[name].flow)
    parts = [schema, *schema.get("definitions", {}).values()]
    assert all(not part["additionalProperties"] for part in parts if "properties" in part)


def test_the_server_takes_the_form_as_the_ui_sends_it(deployed):
    options = JointLoopOptions().model_dump(mode="json")
    submit(preset="tiny", options=options, back_to_default=["loop.rounds"], fresh=False)


@pytest.mark.parametrize(
    ("preset", "samples", "temperatures"),
    [("none", 7, (0.8, 0.9)), ("tiny", 32, tuple(number / 10 for number in range(1, 9)))],
)
def test_what_only_a_validator_sees_fails_before_anything_is_made(
    prefect_server, tmp_path, preset, samples, temperatures
):
    """Samples that are no multiple of the temperatures: two fields, which no schema compares.

    The second fits together, but not with the preset: 32 samples are the default, the preset has 4.
    """
    candidates = {"samples": samples, "sampling_temperatures": temperatures}
    store = tmp_path / "store"
    options: Any = {"expand": {"candidates": candidates}}
    state = joint_loop(preset, options, store=str(store), return_state=True)
    assert state.is_failed()
    assert "must be a multiple" in (state.message or "")
    assert not store.exists()
