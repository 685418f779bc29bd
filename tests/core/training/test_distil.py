"""A distilled query encoder finds by the query what its expansion told; passages keep their vectors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retriever_world as world
import torch
from anchordr_world import CONFIG, make_anchordr, save_published, train_pieces
from evaluation_world import put, table
from flat_options import flat
from sentence_transformers import SentenceTransformer

from expandr_core.encoders.encode import Encoder, encode_expanded
from expandr_core.encoders.fusion import Fusion
from expandr_core.errors import DataError
from expandr_core.options.data import DemoWorldOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.runtime.job import Progress, no_progress
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import distil, import_queries
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from expandr_core.training.distil import TEACHER
from expandr_core.training.distillation_loss import DistillationLoss

ENCODING = EncodingOptions(max_tokens=24)
EXAMPLES = [world.example(thing, [world.THINGS[0]]) for thing in world.TRAINED]
UNLABELLED = [world.query(thing) for thing in world.HELD_OUT]
LONG = " ".join(world.VOCABULARY) * 3
TEXTS = [LONG, "lay1 tech1", "tech5 lay0 lay7", "lay3"]
SETTINGS: dict[str, Any] = {
    "samples": 1,
    "loss": "cosine",
    "contrastive_weight": 0.1,
    "learning_rate": 0.02,
    "epochs": 20,
    "batch_size": 8,
    "hard_negatives": 1,
    "contrastive_temperature": 0.1,
    "encoding": ENCODING,
}


def with_prompts(folder: Path) -> Path:
    """Let a model put words before queries and before passages."""
    path = folder / "config_sentence_transformers.json"
    prompts = {"query": "lay0 ", "document": "tech0 "}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts}))
    return folder


def static(folder: Path) -> Path:
    return with_prompts(world.save_static(folder))


def bert(folder: Path) -> Path:
    return with_prompts(world.save_bert(folder, dropout=0))


def anchordr(folder: Path) -> Path:
    still = replace(CONFIG, dropout_rate=0.0)
    return save_published(folder, make_anchordr(train_pieces(folder.with_name("pieces")), still))


def put_queries(store: Store, texts: list[str]) -> Artifact:
    rows = [(text, text, text) for text in texts]
    queries = table(["query_id", "query", "cluster"], rows)
    return put(store, "import_queries-1", {"queries.parquet": queries}).at("queries.parquet")


def expansion(thing: tuple[int, int]) -> str:
    return f"tech{thing[0]}"


def inputs_of(store: Store, retriever: Artifact, unlabelled: bool = True) -> dict[str, Artifact]:
    written = [(f"q{i}{j}", 0, expansion((i, j))) for i, j in world.TRAINED]
    inputs = {
        "retriever": retriever,
        "examples": world.put_examples(store, "prepare-1", EXAMPLES),
        "expansions": world.put_expansions(store, "expand-1", written),
    }
    if unlabelled:
        written = [(world.query(thing), 0, expansion(thing)) for thing in world.HELD_OUT]
        inputs["unlabelled"] = put_queries(store, UNLABELLED)
        inputs["unlabelled_expansions"] = world.put_expansions(store, "expand-2", written)
    return inputs


def imported(store: Store, folder: Path) -> Artifact:
    source, sources = model_source(str(folder))
    options = ImportOptions(kind="retriever", folder=str(source), similarity="cosine")
    return run_stage(make_spec("import_model", options, sources=sources), store, no_progress)


def distilled(
    store: Store, inputs: dict[str, Artifact], report: Progress = no_progress, **options: Any
) -> Artifact:
    settings = flat(distil.OPTIONS, **(SETTINGS | options))
    return run_stage(make_spec("distil", settings, inputs, device="cpu"), store, report)


def similarity_to_teacher(teacher: Encoder, student: Encoder, things: list) -> float:
    """Return the mean cosine of the things' queries with their expanded queries."""
    queries = [world.query(thing) for thing in things]
    expansions = [[expansion(thing)] for thing in things]
    targets = encode_expanded(teacher, queries, expansions, FusionOptions())
    found = student.encode_queries(queries)
    lengths = np.linalg.norm(targets, axis=1) * np.linalg.norm(found, axis=1)
    return float(((targets * found).sum(axis=1) / lengths).mean())


@pytest.mark.parametrize(
    ("save", "rate", "contrast"), [(static, 0.03, 0.1), (bert, 0.005, 0.1), (anchordr, 0.0005, 0)]
)
def test_queries_move_to_where_the_teacher_is_and_passages_stay_to_the_bit(
    save: Callable[[Path], Path], rate: float, contrast: float, tmp_path: Path
):
    store = Store(str(tmp_path / "store"))
    inputs = inputs_of(store, imported(store, save(tmp_path / "start")))
    start = store.local(inputs["retriever"])
    options = {"learning_rate": rate, "contrastive_weight": contrast}
    folder = store.local(distilled(store, inputs, **options))
    teacher, student = (Encoder(each, "cpu", ENCODING) for each in (start, folder))
    assert student.normalize == teacher.normalize == (save is not anchordr)
    before, after = (
        similarity_to_teacher(teacher, each, world.THINGS) for each in (teacher, student)
    )
    assert after > before + 0.3 * (1 - before)

    assert np.array_equal(student.encode_passages(TEXTS), teacher.encode_passages(TEXTS))
    assert not np.allclose(student.encode_queries(TEXTS[1:]), teacher.encode_queries(TEXTS[1:]))
    trusted = save is anchordr  # a class of ours, which the library imports only if told to
    libraries = [
        SentenceTransformer(str(each), device="cpu", trust_remote_code=trusted)
        for each in (start, folder)
    ]
    assert libraries[1].prompts == libraries[0].prompts
    vectors = [each.encode_document(TEXTS[1:], batch_size=1) for each in libraries]
    assert np.array_equal(*vectors)
    scaled = libraries[1].encode_query(TEXTS, normalize_embeddings=student.normalize)
    np.testing.assert_allclose(scaled, student.encode_queries(TEXTS), atol=1e-5)
    copy = imported(store, folder)  # it can be a run's retriever
    again = Encoder(store.local(copy), "cpu", ENCODING)
    assert np.array_equal(again.encode_queries(TEXTS), student.encode_queries(TEXTS))


def test_an_interrupted_distillation_goes_on_to_the_same_bytes_and_encodes_nothing_twice(tmp_path):
    made, reports = [], []
    for name in ("straight", "interrupted"):
        store = Store(str(tmp_path / name))
        inputs = inputs_of(store, world.put(store, "import-1", bert(tmp_path / f"{name}-bert")))

        def stop(done: int, total: int, unit: str) -> None:
            if (done, unit) == (8, "steps"):
                raise KeyboardInterrupt

        if name == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                distilled(store, inputs, stop, epochs=3, checkpoint_steps=3)
            [vectors] = store.scratch.rglob(TEACHER)
            assert np.load(vectors).shape == (len(world.THINGS), 16)
        reports.append([])
        report = lambda done, total, unit: reports[-1].append((unit, done))  # noqa: E731
        made.append(distilled(store, inputs, report, epochs=3, checkpoint_steps=3))
    assert made[0].files == made[1].files
    assert reports[1][0] == ("steps", 6) and reports[0][0][0] == "queries"


def test_queries_without_judgements_count_and_a_static_model_learns_their_words(tmp_path):
    store = Store(str(tmp_path / "store"))
    retriever = world.put(store, "import-1", static(tmp_path / "start"))
    teacher = Encoder(store.local(retriever), "cpu", ENCODING)
    found = []
    for unlabelled in (False, True):
        made = distilled(store, inputs_of(store, retriever, unlabelled), loss="mse")
        assert made.counts["unlabelled queries"] == unlabelled * len(UNLABELLED)
        rows = len(EXAMPLES) + made.counts["unlabelled queries"]
        assert made.counts["rows"] == 20 * rows
        assert made.counts["steps"] == np.ceil(20 * rows / 8)
        student = Encoder(store.local(made), "cpu", ENCODING)
        found.append(similarity_to_teacher(teacher, student, world.HELD_OUT))
    assert found[1] > found[0]


def test_a_distillation_that_diverges_names_its_own_learning_rate(tmp_path):
    store = Store(str(tmp_path / "store"))
    inputs = inputs_of(store, world.put(store, "import-1", static(tmp_path / "start")))
    dot = EncodingOptions(similarity="dot", max_tokens=24)
    with pytest.raises(DataError, match=r"diverged.*lower distil\.learning_rate"):
        distilled(store, inputs, learning_rate=1e30, loss="mse", encoding=dot)


def test_the_loss_is_the_distance_and_the_weighted_contrast_of_judged_queries():
    """Worked with plain tensors: two judged queries, the second with a hard negative, and a third."""
    generator = torch.Generator().manual_seed(0)
    teacher, passages, vectors = (
        torch.randn(*shape, generator=generator) for shape in ((3, 4), (4, 4), (3, 4, 4))
    )
    labels = torch.tensor([[0, -1, 2, -1], [1, -1, 0, 3], [2, -1, -1, -1]])
    pairs = torch.tensor([2, (1 << 31) + 0])
    loss = DistillationLoss(
        teacher.numpy(), passages.numpy(), pairs, Fusion(normalize=True), "cosine", 0.5, 0.1
    )
    found, gradient = loss.with_gradient(vectors, labels)

    leaf = vectors[:, 0].clone().requires_grad_()
    students = torch.nn.functional.normalize(leaf, dim=1)
    targets = torch.nn.functional.normalize(teacher, dim=1)
    distance = (1 - (students * targets).sum(dim=1)).mean()
    similarities = students[:2] @ passages[[2, 0, 3]].T / 0.1
    contrast = torch.nn.functional.cross_entropy(
        similarities, torch.tensor([0, 1]), reduction="sum"
    )
    expected = distance + 0.5 * contrast / 3
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient[:, 0], leaf.grad)
    assert not gradient[:, 1:].any()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.txt", "red bird\n\n  blue song \nred bird\n"),
        ("log.jsonl", '{"text": "red bird"}\n{"text": "blue song"}\n{"text": "red bird "}\n'),
    ],
)
def test_queries_without_judgements_are_read_once_each(name, content, tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / name
    path.write_text(content)
    store = Store(str(tmp_path / "store"))
    options = import_queries.OPTIONS(location=str(path))
    sources = import_queries.source_digests(options)
    made = run_stage(make_spec("import_queries", options, sources=sources), store, no_progress)
    rows = pq.read_table(store.local(made) / "queries.parquet").to_pylist()
    assert [row["query"] for row in rows] == ["red bird", "blue song"]
    assert len({row["query_id"] for row in rows}) == 2
    assert made.counts == {"queries": 2, "dropped/repeated queries": 1}
    with pytest.raises(DataError, match=r"nothing: no such file; .*distil\.queries"):
        import_queries.source_digests(import_queries.OPTIONS(location="nothing"))


def test_the_log_of_the_demo_world_is_read_from_it(tmp_path):
    import pyarrow.parquet as pq

    store = Store(str(tmp_path / "store"))
    size = DemoWorldOptions(instruct_entities=1, train_entities=2, dev_entities=1, test_entities=1)
    world = run_stage(make_spec("demo_world", size), store, no_progress)
    options = import_queries.OPTIONS(location="demo")
    assert import_queries.source_digests(options) == {}
    spec = make_spec("import_queries", options, {"world": world})
    rows = pq.read_table(store.local(run_stage(spec, store, no_progress)) / "queries.parquet")
    log = (store.local(world) / "log.txt").read_text()
    assert rows["query"].to_pylist() == log.splitlines()


def test_the_log_of_the_demo_world_is_not_asked_of_another_collection():
    with pytest.raises(ValueError, match=r"distil\.queries 'demo' is the log of data\.collection"):
        JointLoopOptions.model_validate(
            {"distil": {"enabled": True, "queries": "demo"}, "data": {"collection": "law"}}
        )


def test_without_weight_of_the_expansions_there_is_nothing_to_distil():
    fusion = FusionOptions(expansion_weight=0)
    with pytest.raises(ValueError, match=r"expansion_weight is 0; raise it"):
        JointLoopOptions.model_validate(
            {"distil": {"enabled": True}, "retriever": {"fusion": fusion}}
        )
