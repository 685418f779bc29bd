"""The stage dataset: archives over HTTP, folders, S3, and NanoBEIR's files."""

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expandr_core.data.catalog import BEIR, FORUMS, NANO_BEIR, find_datasets
from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import mean_metrics, score_queries
from expandr_core.options.data import DataOptions
from expandr_core.retrieval.bm25 import build_bm25
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.dataset import OPTIONS, options_of, source_digests
from expandr_core.store.store import Store

CORPUS = [("d1", "Wings", "They lift."), ("d2", "", "Stones fall."), ("d3", "Songs", "")]
QUERIES = [("q1", "what lifts?"), ("q2", "what falls?"), ("q3", "asked by nobody")]
QRELS = [("q2", "d2", 2), ("q1", "d1", 1), ("q1", "d3", 0)]


def beir_files(
    folder: str, split: str = "test", qrels: list[tuple[str, str, int]] = QRELS
) -> dict[str, str]:
    """A dataset in BEIR layout, as text by file name."""
    corpus = [json.dumps({"_id": i, "title": t, "text": x}) for i, t, x in CORPUS]
    queries = [json.dumps({"_id": i, "text": text}) for i, text in QUERIES]
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    texts = {"corpus.jsonl": corpus, "queries.jsonl": queries, f"qrels/{split}.tsv": lines}
    return {f"{folder}/{name}": "\n".join(rows) + "\n" for name, rows in texts.items()}


def zipped(files: dict[str, str]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return target.getvalue()


class Server:
    """Serves files over HTTP; may break off an answer in its middle."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests = 0
        self.breaks_off = 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                content = server.files.get(self.path)
                self.send_response(200 if content else 503)
                content = content or b"<html>busy</html>"
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if server.breaks_off:
                    server.breaks_off -= 1
                    content = content[: len(content) // 2]
                self.wfile.write(content)

            def log_message(self, format, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make(store: Store, options: OPTIONS):
    spec = make_spec("dataset", options, sources=source_digests(options))
    artifact = run_stage(spec, store, no_progress)
    return artifact, store.local(artifact)


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def serve(server: Server, files: dict[str, str], name: str = "wings", **options) -> OPTIONS:
    content = zipped(files)
    server.files[f"/{name}.zip"] = content
    values = {"split": "test", "md5": hashlib.md5(content).hexdigest(), **options}
    return OPTIONS(location=f"{server.url}/{name}.zip", name=name, **values)


def test_an_archive_is_downloaded_checked_and_read(server, store):
    artifact, folder = make(store, serve(server, beir_files("wings")))
    assert [tuple(row.values()) for row in rows(folder / "corpus.parquet")] == CORPUS
    assert rows(folder / "queries.parquet") == [  # q3 has no judgement
        {"query_id": "q1", "query": "what lifts?", "cluster": "q1"},
        {"query_id": "q2", "query": "what falls?", "cluster": "q2"},
    ]
    assert [tuple(row.values()) for row in rows(folder / "qrels.parquet")] == sorted(QRELS)
    assert artifact.counts == {"passages": 3, "queries": 2, "judgements": 3}
    assert sorted(path.name for path in folder.iterdir()) == [
        *("corpus.parquet", "manifest.json", "qrels.parquet", "queries.parquet")
    ]


def test_the_split_of_ms_marco_is_dev(server, store):
    files = beir_files("wings", "dev") | beir_files("wings", "test", QRELS[:1])
    artifact, _ = make(store, serve(server, files, split="dev"))
    assert artifact.counts["queries"] == 2


def test_an_archive_with_another_checksum_is_refused(server, store):
    options = serve(server, beir_files("wings"), md5="0" * 32)
    with pytest.raises(
        DataError, match=f"not the archive with {'0' * 32}; it is a different archive"
    ):
        make(store, options)
    assert not store.keys()


def test_an_error_page_counts_as_an_outage(server, store):
    options = serve(server, beir_files("wings"))
    archive = server.files.pop("/wings.zip")
    with pytest.raises(OSError, match=r"17 bytes with the MD5 .* the server may have failed"):
        make(store, options)
    server.files["/wings.zip"] = archive
    assert make(store, options)[0].counts["passages"] == 3


def test_an_interrupted_download_starts_again(server, store):
    options = serve(server, beir_files("wings"))
    server.breaks_off = 1
    with pytest.raises(OSError):
        make(store, options)
    assert make(store, options)[0].counts["passages"] == 3
    assert server.requests == 2


def test_a_partial_archive_left_by_a_kill_is_not_read(server, store):
    options = serve(server, beir_files("wings"))
    key = make_spec("dataset", options).key
    left = store.scratch / "work" / key / "checkpoints"
    left.mkdir(parents=True)
    (left / "archive.zip").write_bytes(server.files["/wings.zip"][:100])
    assert make(store, options)[0].counts["passages"] == 3
    assert server.requests == 1


def test_a_complete_archive_left_by_a_kill_is_not_downloaded_again(server, store):
    options = serve(server, beir_files("wings"))
    left = store.scratch / "work" / make_spec("dataset", options).key / "checkpoints"
    left.mkdir(parents=True)
    (left / "archive.zip").write_bytes(server.files["/wings.zip"])
    make(store, options)
    assert server.requests == 0


@pytest.mark.parametrize("name", ["../evil", "/evil", "wings/../../evil", "wings\\..\\..\\evil"])
def test_an_archive_with_a_file_outside_itself_is_refused(server, store, name):
    options = serve(server, beir_files("wings") | {name: "rm -rf"})
    with pytest.raises(DataError, match="a path outside itself"):
        make(store, options)
    assert not list(store.scratch.parent.rglob("evil"))


def test_subsets_are_separate_datasets_that_may_share_ids(server, store):
    files = beir_files("cqadupstack/android") | beir_files("cqadupstack/gis", qrels=QRELS[:1])
    options = serve(server, files, "cqadupstack", subsets=("android", "gis"))
    artifact, folder = make(store, options)
    assert [row["query_id"] for row in rows(folder / "android" / "queries.parquet")] == ["q1", "q2"]
    assert [row["query_id"] for row in rows(folder / "gis" / "queries.parquet")] == ["q2"]
    assert (artifact.counts["android/queries"], artifact.counts["gis/queries"]) == (2, 1)
    assert artifact.at("gis/corpus.parquet").path == "gis/corpus.parquet"
    lacking = serve(server, files, "cqadupstack", subsets=("android", "tex"))
    with pytest.raises(DataError, match=r"tex::.*no such folder"):
        make(store, lacking)


def test_the_location_of_an_archive_is_not_in_the_key(server):
    options = serve(server, beir_files("wings"))
    elsewhere = options.model_copy(update={"location": "https://example.org/wings.zip"})
    other = options.model_copy(update={"md5": "1" * 32})
    assert make_spec("dataset", options).key == make_spec("dataset", elsewhere).key
    assert make_spec("dataset", options).key != make_spec("dataset", other).key


def test_bad_rows_and_unknown_passages_of_an_archive_are_counted(server, store):
    files = beir_files("wings", qrels=[*QRELS, ("q1", "nowhere", 1)])
    files["wings/corpus.jsonl"] += '{"_id": "d4", "text": null}\n'
    artifact, folder = make(store, serve(server, files))
    assert artifact.counts["unknown/judged passages"] == 1
    assert artifact.counts["skipped/collection/corpus.jsonl/text is null"] == 1
    assert len(rows(folder / "qrels.parquet")) == 4


def test_queries_of_a_folder_are_clustered_if_they_have_the_field(store, tmp_path):
    files = beir_files("wings")
    folder = write(tmp_path, files) / "wings"
    [dataset] = find_datasets([f"{folder}/"])
    by_thing = options_of(dataset, DataOptions(cluster_by="thing"))
    lines = [json.loads(line) for line in files["wings/queries.jsonl"].splitlines()]

    def clusters(*things: Any) -> list[str]:
        rows_ = [
            row | {"metadata": {"thing": each}} for row, each in zip(lines, things, strict=True)
        ]
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
        return [row["cluster"] for row in rows(make(store, by_thing)[1] / "queries.parquet")]

    assert clusters("sky", "sky", None) == ["sky", "sky"]  # nobody judges the third
    assert clusters(None, None, "sky") == ["q1", "q2"]
    assert clusters(3.0, 3, float("nan")) == ["3", "3"]
    with pytest.raises(DataError, match=r"thing is neither a string nor a number \(\[\"sky\"\]\)"):
        clusters(["sky"], ["sky"], None)
    with pytest.raises(DataError, match="query 'q2' has no \"thing\""):
        clusters("sky", None, None)
    [published] = find_datasets([f"scifact={folder}"])
    assert not options_of(published, DataOptions(cluster_by="thing")).cluster_by


BEIR_S_OWN = [  # a passage that the corpus lacks, a pair judged twice, and ids that csv must quote
    *('q1\td1\t0', 'q1\td1\t2', 'q1\tgone\t1', '"the ""second"""\t"d ""2"""\t1'),
    *('"the ""second"""\td3\t1', 'q3\tgone too\t1'),
]  # fmt: skip


def scores(folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Our metrics of BM25 on a dataset, and its run."""
    corpus, queries, qrels = (
        pq.read_table(folder / f"{name}.parquet") for name in ("corpus", "queries", "qrels")
    )
    index = build_bm25(corpus["passage_id"].combine_chunks(), corpus["text"].to_pylist(), 1.5, 0.75)
    run = index.search(queries["query_id"].combine_chunks(), queries["query"].to_pylist(), 100)
    nested: dict[str, dict[str, float]] = {row: {} for row in queries["query_id"].to_pylist()}
    for row in run.to_pylist():
        nested[row["query_id"]][row["passage_id"]] = row["score"]
    return mean_metrics(score_queries(qrels, run)), nested


@pytest.mark.parametrize("place", ["archive", "folder", "named", "group", "bucket"])
def test_a_beir_dataset_scores_what_beir_computes_wherever_it_lies(
    place, server, request, store, tmp_path
):
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval

    files = beir_files("arguana")
    files["arguana/corpus.jsonl"] = files["arguana/corpus.jsonl"].replace('"d2"', '"d \\"2\\""')
    files["arguana/queries.jsonl"] = files["arguana/queries.jsonl"].replace(
        '"q2"', '"the \\"second\\""'
    )
    files["arguana/qrels/test.tsv"] = "\n".join(["query-id\tcorpus-id\tscore", *BEIR_S_OWN]) + "\n"
    folder = write(tmp_path, files) / "arguana"
    if place == "archive":
        options = serve(server, files, "arguana")
    else:
        for name, text in files.items() if place == "bucket" else ():
            s3 = request.getfixturevalue("s3")
            s3.client.put_object(Bucket="bucket", Key=name, Body=text.encode())
        reference = {"folder": str(folder), "named": f"arguana={folder}", "group": f"beir={tmp_path}",
                     "bucket": "s3://bucket/arguana"}[place]  # fmt: skip
        [dataset] = [each for each in find_datasets([reference]) if each.name == "arguana"]
        options = options_of(dataset)
    artifact, made = make(store, options)
    assert artifact.counts["unknown/judged passages"] == 2
    ours, run = scores(made)
    _, _, qrels = GenericDataLoader(str(folder)).load("test")
    ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, run, [10, 100])
    assert round(ours["ndcg_at_10"], 5) == ndcg["NDCG@10"]
    assert round(ours["recall_at_100"], 5) == recall["Recall@100"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_without_training_judgements_gives_the_bytes_of_the_archive(
    server, store, tmp_path
):
    folder = write(tmp_path, beir_files("wings")) / "wings"
    options = OPTIONS(location=str(folder), split="test")
    read, _ = make(store, options)
    downloaded, _ = make(store, serve(server, beir_files("wings")))
    assert read.digest == downloaded.digest
    first = make_spec("dataset", options, sources=source_digests(options)).key
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    assert make_spec("dataset", options, sources=source_digests(options)).key != first


def test_errors_in_a_folder_name_the_line(store, tmp_path):
    folder = write(tmp_path, beir_files("wings", qrels=[*QRELS, ("q1", "nowhere", 1)])) / "wings"
    options = OPTIONS(location=str(folder), split="test")
    with pytest.raises(DataError, match=r"qrels/test.tsv:5: unknown passage"):
        make(store, options)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries.jsonl is missing; a dataset for measuring needs"):
        source_digests(options)
    missing = options.model_copy(update={"location": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere: no such folder"):
        source_digests(missing)


def test_a_dataset_on_s3_is_read(s3, store):
    for name, text in beir_files("sets/wings").items():
        s3.client.put_object(Bucket="bucket", Key=name, Body=text.encode())
    options = OPTIONS(location="s3://bucket/sets/wings", split="test")
    assert make(store, options)[0].counts["queries"] == 2


def nano(folder: Path, split: str = "NanoWings", many: bool = False) -> Path:
    """The files of one split, as they lie on the hub; `many` has lists of passages."""
    judged = {"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"]}
    if many:
        judged = {"query-id": ["q1"], "corpus-id": [["d1", "d2"]]}
    tables = {
        "corpus": {"_id": [row[0] for row in CORPUS], "text": [row[2] for row in CORPUS]},
        "queries": {"_id": [row[0] for row in QUERIES], "text": [row[1] for row in QUERIES]},
        "qrels": judged,
    }
    for part, columns in tables.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / part / f"{split}-00000-of-00001.parquet")
    return folder


def test_nano_beir_files_are_read_and_judged_passages_are_relevant(store, tmp_path):
    location = str(nano(tmp_path / "nano"))
    _, folder = make(store, OPTIONS(location=location, name="nano-wings", split="NanoWings"))
    assert rows(folder / "corpus.parquet")[0] == dict(passage_id="d1", title="", text="They lift.")
    assert [row["query_id"] for row in rows(folder / "queries.parquet")] == ["q1", "q2"]
    qrels = [tuple(row.values()) for row in rows(folder / "qrels.parquet")]
    assert qrels == [("q1", "d1", 1), ("q2", "d2", 1)]


def test_nano_beir_judgements_may_be_lists(store, tmp_path):
    location = str(nano(tmp_path / "nano", many=True))
    _, folder = make(store, OPTIONS(location=location, name="nano-wings", split="NanoWings"))
    qrels = [tuple(row.values()) for row in rows(folder / "qrels.parquet")]
    assert qrels == [("q1", "d1", 1), ("q1", "d2", 1)]


def test_nano_beir_files_are_read_from_a_folder_with_brackets(store, tmp_path):
    location = str(nano(tmp_path / "nano[1]*"))
    options = OPTIONS(location=location, name="nano-wings", split="NanoWings")
    assert make(store, options)[0].counts["queries"] == 2


@pytest.mark.parametrize(("score", "complaint"), [(0.5, "not an integer"), (10**9, "too great")])
def test_grades_in_nano_beir_files_are_checked(store, tmp_path, score, complaint):
    location = nano(tmp_path / "nano")
    path = location / "qrels" / "NanoWings-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).append_column("score", pa.array([1, score])), path)
    with pytest.raises(DataError, match=rf"qrels/NanoWings.*: the score is {complaint}"):
        make(store, OPTIONS(location=str(location), name="nano-wings", split="NanoWings"))


def test_your_own_folder_in_nano_beir_layout_is_read_strictly(store, tmp_path):
    options = OPTIONS(location=str(nano(tmp_path / "mine", "test")), split="test")
    assert make(store, options)[0].counts["queries"] == 2
    path = tmp_path / "mine" / "qrels" / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"query-id": ["q1", "q2"], "corpus-id": ["d1", "d9"]}), path)
    with pytest.raises(DataError, match=r"qrels/test.*:2: unknown passage \('d9'\)"):
        make(store, options)
    skipping = options.model_copy(update={"bad_rows": "skip"})
    assert make(store, skipping)[0].counts["judgements"] == 1


@pytest.mark.parametrize("part", ["corpus", "queries"])
def test_an_id_that_two_nano_beir_files_have_in_the_same_row_is_refused(store, tmp_path, part):
    folder = nano(tmp_path, "test") / part
    path = folder / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), folder / "test-00001-of-00002.parquet")
    with pytest.raises(DataError, match=rf"{part}/test-00001.*:1: duplicate _id"):
        make(store, OPTIONS(location=str(tmp_path), split="test"))


def test_a_nano_beir_file_that_changed_after_hashing_is_refused(store, tmp_path):
    options = OPTIONS(location=str(nano(tmp_path)), name="nano-wings", split="NanoWings")
    spec = make_spec("dataset", options, sources=source_digests(options))
    nano(tmp_path, many=True)
    with pytest.raises(DataError, match="changed during the run"):
        run_stage(spec, store, no_progress)


def test_a_split_missing_from_nano_beir_is_refused(tmp_path):
    options = OPTIONS(location=str(nano(tmp_path)), name="nano-wings", split="NanoStones")
    with pytest.raises(DataError, match=r"corpus/NanoStones-\*.parquet: no such file"):
        source_digests(options)


def test_the_catalog_matches_beir():
    assert len(BEIR) == 15 and len(NANO_BEIR) == 13
    assert [each.split for each in BEIR.values()].count("dev") == 1
    assert BEIR["msmarco"].split == "dev"
    inside = [name for name, each in BEIR.items() if each.domain == "in-domain"]
    assert inside == ["msmarco", "nq", "hotpotqa", "fever"]
    assert BEIR["climate-fever"].domain == "out-of-domain"
    assert BEIR["cqadupstack"].subsets == FORUMS and len(set(FORUMS)) == 12
    assert len({each.md5 for each in BEIR.values()}) == 15
    assert {len(each.md5) for each in BEIR.values()} == {32}


def test_nano_beir_has_the_splits_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.evaluation import nano_beir

    names = nano_beir.DATASET_NAME_TO_HUMAN_READABLE.values()
    assert {each.split for each in NANO_BEIR.values()} == {f"Nano{name}" for name in names}


def test_a_passage_with_the_query_id_is_treated_as_the_benchmark_treats_it():
    assert {each.identical_ids for each in BEIR.values()} == {"ignore"}
    assert {each.identical_ids for each in NANO_BEIR.values()} == {"keep"}
    [own] = find_datasets(["./law"])
    assert own.identical_ids == "ignore"


def test_datasets_are_looked_up_by_name_group_and_location():
    [scifact] = find_datasets(["scifact=/data/sf"])
    assert (scifact.benchmark, scifact.domain, scifact.md5) == ("BEIR", "out-of-domain", "")
    [mirrored] = find_datasets(["scifact=http://mirror/scifact.zip"])
    assert mirrored.md5 == BEIR["scifact"].md5
    [own] = find_datasets(["s3://bucket/sets/law/"])
    assert (own.name, own.benchmark, own.domain) == ("law", "other", "other")
    for path in ("/data/a=b/law", "s3://bucket/k=v/law", "law=/data/a=b"):
        [law] = find_datasets([path])
        assert (law.name, law.location) == ("law", path.removeprefix("law="))
    group = find_datasets(["beir=http://mirror/sets"])
    assert group[0].location == "http://mirror/sets/msmarco.zip"
    nano_group = find_datasets(["nano-beir=/data/nano"])
    assert {each.location for each in nano_group} == {"/data/nano"}
    assert len(find_datasets(["scifact", "beir", "scifact"])) == 15


@pytest.mark.parametrize(
    ("references", "complaint"),
    [
        (["scifacts"], "unknown dataset 'scifacts'; the names are msmarco, trec-covid"),
        (["a/law", "b/law"], "two datasets are called 'law', in a/law and in b/law"),
        (["law=https://example.org/law.zip"], "only downloads of BEIR's archives can be verified"),
        (["law="], "write NAME, LOCATION or NAME=LOCATION"),
        ([], "no dataset; name some"),
    ],
)
def test_unknown_datasets_are_refused(references, complaint):
    with pytest.raises(DataError, match=complaint):
        find_datasets(references)


def test_nothing_is_said_of_clusters_where_there_is_nothing_to_score(tmp_path, store, caplog):
    for path, text in beir_files(".", qrels=[("q1", "d1", 0)]).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    caplog.set_level("INFO")
    with pytest.raises(DataError, match="no passage is relevant"):
        make(store, OPTIONS(location=str(tmp_path), split="test", cluster_by="author"))
    assert "no query has" not in caplog.text
