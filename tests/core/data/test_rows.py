"""Reading raw files: what is wrong is said with file, line and remedy; the rest is read as it is."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from expandr_core.data.collection import Query
from expandr_core.data.formats.beir import read_corpus, read_qrels
from expandr_core.data.formats.triples import read_triples
from expandr_core.data.rows import RawFile, Reader, find_files, write_parquet
from expandr_core.errors import DataError
from expandr_core.options.data import DataOptions
from expandr_core.records import PASSAGES
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.prepare import source_digests
from expandr_core.store.store import Store

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "They lift."},
    {"_id": "d2", "text": "No title."},
    {"_id": "d3", "title": "", "text": ""},
    {"_id": "d4", "title": "Tail", "text": "It steers.", "metadata": {"year": 1961}},
    {"_id": "d5", "text": "Judged for no query."},
]
QUERIES = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(41)]  # q40 is not judged
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_collection(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines(CORPUS))
    (folder / "queries.jsonl").write_text(lines(QUERIES))
    train = "".join(f"q{n}\td{1 + n % 2}\t1\n" for n in range(30))
    (folder / "qrels" / "train.tsv").write_text(HEADER + train)
    test = "".join(f"q{n}\td4\t{n % 3}\n" for n in range(30, 40))
    (folder / "qrels" / "test.tsv").write_text(HEADER + test)
    return folder


def write_triples(folder: Path) -> Path:
    folder.mkdir()
    for source in ("nq", "fever"):
        rows = [
            {"query": f"{source} asks {n}", "positive": f"yes {n}", "negative": f"no {n}", "n": n}
            for n in range(20)
        ]
        (folder / f"{source}.jsonl").write_text(lines(rows))
    return folder


def prepare(tmp_path: Path, **options: Any) -> tuple[dict[str, float], Path]:
    """Run the stage; return its counts and folder."""
    data = DataOptions(**options)
    store = Store(str(tmp_path / "store"))
    spec = make_spec("prepare", data, sources=source_digests(data))
    artifact = run_stage(spec, store, no_progress)
    return artifact.counts, store.local(artifact)


class Bad(NamedTuple):
    """A line put in place of one of a file's, the reason it is refused for, and what is said."""

    file: str
    line: int
    content: bytes
    reason: str
    parts: tuple[str, ...] = ()


def bad_passage(content: bytes, reason: str, *parts: str) -> Bad:
    return Bad("corpus.jsonl", 5, content, reason, parts)


def bad_query(content: bytes, reason: str, *parts: str) -> Bad:
    return Bad("queries.jsonl", 41, content, reason, parts)


def bad_triple(content: bytes, reason: str, *parts: str) -> Bad:
    return Bad("nq.jsonl", 5, content, reason, parts)


def bad_judgement(content: bytes, reason: str, *parts: str) -> Bad:
    return Bad("qrels/test.tsv", 3, content, reason, parts)


OWN_ID = "give every row an id of its own"
BAD_ROWS = {
    "malformed": bad_passage(b'{"_id": "x", ', "not valid JSON", "column 14", "one complete"),
    "too deep": bad_passage(b"[" * 100_000, "not valid JSON"),
    "huge number": bad_passage(b'{"_id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "no object": bad_passage(b'["x"]', "not a JSON object", "it starts with"),
    "no id": bad_passage(b'{"text": "x"}', "no _id", 'add "_id"'),
    "empty id": bad_passage(b'{"_id": "", "text": "x"}', "_id is empty", OWN_ID),
    "number as id": bad_passage(b'{"_id": 7, "text": "x"}', "_id is not a string", "(7)"),
    "id again": bad_passage(
        b'{"_id": "d2", "text": "x"}',
        "duplicate _id",
        "'d2', first on line 2, again on line 5",
        OWN_ID,
    ),
    "null text": bad_passage(b'{"_id": "x", "text": null}', "text is null", "write a string"),
    "other name of the id": bad_passage(
        b'{"docid": "x", "text": "x"}', "no _id", 'rename "docid" to "_id"'
    ),
    "other name of the text": bad_passage(
        b'{"_id": "x", "contents": "x"}', "no text", 'rename "contents" to "text"'
    ),
    "list as text": bad_passage(b'{"_id": "x", "text": ["x"]}', "text is not a string", '["x"]'),
    "no text": bad_passage(b'{"_id": "x", "title": "x"}', "no text", 'add "text"'),
    "Latin-1": bad_passage(
        b'{"_id": "x", "text": "caf\xe9"}', "not UTF-8", "byte 26 of the line is 0xe9", "iconv"
    ),
    "UTF-16": bad_passage('{"_id": "x"}'.encode("utf-16"), "not UTF-8", "iconv -f UTF-16"),
    "array": bad_passage(b'[{"_id": "x"}]', "not a JSON object", "jq -c '.[]'"),
    "half a pair": bad_passage(rb'{"_id": "x", "text": "\ud83d"}', "text holds half a character"),
    "blank query": bad_query(b'{"_id": "x", "text": " \\t"}', "text is empty", "fill it in"),
    "query again": bad_query(
        b'{"_id": "q0", "text": "x"}', "duplicate _id", "'q0', first on line 1, again on line 41"
    ),
    "two columns": bad_judgement(b"q30\td1", "not three columns", "(2 found)", "by tabs"),
    "four columns": bad_judgement(b"q30\td1\t1\t1", "not three columns", "(4 found)", "TREC"),
    "by commas": bad_judgement(b"q30,d1,1", "not three columns", "(1 found)", "by tabs"),
    "lines of old Macs": bad_judgement(
        b"q30\td1\t1\rq31\td1\t1", "not readable as csv", "with \\n"
    ),
    "a huge id": bad_judgement(
        b"q30\t" + b"d" * 140_000 + b"\t1", "not readable as csv", "short ids"
    ),
    "white space": bad_judgement(b"q30 \td1\t1", "unknown query", "remove the white space"),
    "a huge grade": bad_judgement(b"q30\td1\t999999999", "the score is too great", "0 to 1000"),
    "no number": bad_judgement(b"q30\td1\thigh", "the score is not an integer", "('high')", "0, 1"),
    "a fraction": bad_judgement(b"q30\td1\t0.5", "the score is not an integer", "('0.5')"),
    "unknown query": bad_judgement(
        b"q99\td1\t1", "unknown query", "('q99')", "add it to the queries"
    ),
    "unknown passage": bad_judgement(
        b"q30\td99\t1", "unknown passage", "('d99')", "add it to the corpus"
    ),
    "two scores": bad_judgement(
        b"q30\td4\t2", "two scores for one query and passage", "0 on line 2, 2 on line 3"
    ),
    "no positive": bad_triple(b'{"query": "a"}', "no positive", 'add "positive"'),
    "null positive": bad_triple(b'{"query": "a", "positive": null}', "positive is null"),
    "blank positive": bad_triple(b'{"query": "a", "positive": " "}', "positive is empty", "fill"),
    "no query": bad_triple(b'{"positive": "a"}', "no query", 'add "query"'),
    "blank query in triple": bad_triple(b'{"query": "", "positive": "a"}', "query is empty"),
    "number as negative": bad_triple(
        b'{"query": "a", "positive": "b", "negative": [7]}', "negative is not a string", "(7)"
    ),
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_refused_with_file_line_and_remedy_or_skipped_and_counted(
    bad: Bad, tmp_path: Path
) -> None:
    folder = write_collection(tmp_path / "wings")
    options = {"collection": str(folder), "preference_share": 0.4, "dev_share": 0.2}
    path = folder / bad.file
    if bad.file == "nq.jsonl":
        path = write_triples(tmp_path / "triples") / bad.file
        options["triples"] = str(path.parent)
    content = path.read_bytes().splitlines()
    content[bad.line - 1] = bad.content
    path.write_bytes(b"\n".join(content))

    with pytest.raises(DataError) as caught:
        prepare(tmp_path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}:{bad.line}: {bad.reason}")
    for part in [*bad.parts, "data.bad_rows"]:
        assert part in message

    counts, _ = prepare(tmp_path, **options, bad_rows="skip")
    role = "triples" if "triples" in options else "collection"
    skipped = {name: n for name, n in counts.items() if name.startswith("skipped/")}
    assert skipped == {f"skipped/{role}/{bad.file}/{bad.reason}": 1}


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes(b"\n \n")


def no_qrels(folder: Path) -> None:
    for path in (folder / "qrels").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove("corpus.jsonl"), ["corpus.jsonl is missing"]),
        (remove("queries.jsonl"), ["queries.jsonl is missing"]),
        (remove("qrels/train.tsv"), ["qrels/train.tsv is missing", "data.triples"]),
        (no_qrels, ["qrels: no judgements", "train.tsv, dev.tsv or test.tsv"]),
        (empty("corpus.jsonl"), ["corpus.jsonl is empty", "at least one row"]),
        (empty("queries.jsonl"), ["queries.jsonl is empty"]),
        (empty("qrels/test.tsv"), ["test.tsv is empty"]),
        (lambda folder: (folder / "qrels/test.tsv").write_text(HEADER), ["test.tsv is empty"]),
        (
            lambda folder: (folder / "qrels/test.tsv").write_text("q30\td1\t0\n"),
            ["qrels/test.tsv: no passage is relevant", "above 0"],
        ),
    ],
)
def test_an_incomplete_collection_is_refused(damage: Any, parts: list[str], tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "wings")
    damage(folder)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, collection=str(folder))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"collection": "nowhere"}, ["nowhere: no such folder", "data.collection"]),
        ({"collection": "", "triples": "nowhere"}, ["nowhere: no such folder", "data.triples"]),
        ({"collection": "", "triples": "no.jsonl"}, ["no.jsonl: no triples"]),
        ({"collection": "", "triples": "."}, ["no triples", "*.jsonl"]),
        ({"collection": ""}, ["no data", "data.collection, data.triples"]),
        ({"collection": "s3://user:secret@bucket/x"}, ["credentials"]),
    ],
)
def test_a_missing_location_is_refused(
    options: dict[str, str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        source_digests(DataOptions(**options))
    for part in parts:
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_whose_rows_are_all_bad_is_refused_even_if_bad_rows_are_skipped(
    tmp_path: Path,
) -> None:
    folder = write_collection(tmp_path / "wings")
    (folder / "corpus.jsonl").write_text('{"_id": "a"}\n{"_id": "b"}\nnothing\n')
    expected = r"all rows were skipped \(no text: 2, not valid JSON: 1\); .* line 1: no text; add"
    with pytest.raises(DataError, match=expected):
        prepare(tmp_path, collection=str(folder), bad_rows="skip")


def test_judgements_that_are_all_of_unknown_passages_are_refused(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "wings")
    (folder / "qrels" / "test.tsv").write_text("q30\tx\t1\nq31\ty\t1\n")
    with pytest.raises(DataError, match=r"all rows were skipped \(unknown passage: 2\)"):
        prepare(tmp_path, collection=str(folder), bad_rows="skip")


def local_file(path: Path) -> RawFile:
    return RawFile(fsspec.filesystem("file"), str(path), path.name)


def test_a_document_without_title_and_text_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(lines(CORPUS))
    contents = [passage.content for passage in read_corpus(Reader(), local_file(path), {})]
    assert contents[:4] == ["Wings They lift.", "No title.", "", "Tail It steers."]


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": " a ", "positive": "b"}\r\n\r\n')
    assert list(read_triples(Reader(), local_file(path))) == [([("a", "b", "")], "")]


@pytest.mark.parametrize(
    "header", ["", HEADER, "query_id\tdoc_id\trelevance\n", "topic\tdocid\trel\n"]
)
def test_qrels_may_have_a_header_or_none(header: str, tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "wings")
    (folder / "qrels" / "test.tsv").write_text(header + "q30\td1\t1\r\nq31\td1\t-1\n")
    counts, _ = prepare(tmp_path, collection=str(folder))
    assert counts["test/judgements"] == 2


@pytest.mark.parametrize(
    "row",
    ["q1\td1\t2", "q1 d1 2", "q1 0 d1 2", "q1\tQ0\td1\t2", "q1\t4.5\td1\t2", "q1\td1\t2.0",
     '"q1"\t"d1"\t"2"', "q1\td1\t2\t"],
)  # fmt: skip
def test_judgements_are_read_as_beir_or_trec_or_csv_write_them(row: str, tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(f"{row}\n")
    queries = {"q1": Query("q1", "what?", "q1", 1)}
    assert read_qrels(Reader(), local_file(path), queries) == [("q1", "d1", 2, 1)]


def test_of_two_judgements_of_one_pair_the_last_counts_where_they_are_not_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("q1\td1\t0\nq1\td2\t1\nq1\td1\t2\n")
    queries = {"q1": Query("q1", "what?", "q1", 1)}
    kept = [("q1", "d1", 2, 3), ("q1", "d2", 1, 2)]
    assert read_qrels(Reader(), local_file(path), queries, strict=False) == kept
    assert read_qrels(Reader("skip"), local_file(path), queries) == kept
    with pytest.raises(DataError, match="the last one counts"):
        read_qrels(Reader(), local_file(path), queries)


def test_skipping_is_said_to_change_the_metrics_but_for_training_triples(tmp_path: Path) -> None:
    folder, triples = write_collection(tmp_path / "wings"), write_triples(tmp_path / "triples")
    (triples / "nq.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"without such rows$"):
        prepare(tmp_path, collection="", triples=str(triples))
    (folder / "qrels" / "test.tsv").write_text("q30\tgone\t1\n")
    with pytest.raises(DataError, match=r"without such rows, which changes the metrics$"):
        prepare(tmp_path, collection=str(folder))


def test_packed_files_give_the_artifact_of_the_plain_ones(tmp_path: Path) -> None:
    collection, triples = write_collection(tmp_path / "wings"), write_triples(tmp_path / "triples")
    data = DataOptions(collection=str(collection), triples=str(triples))
    plain = source_digests(data)
    counts, _ = prepare(tmp_path, collection=str(collection), triples=str(triples))
    for path in [*collection.rglob("*.*"), *triples.iterdir()]:
        packed = gzip.compress(path.read_bytes())
        if path.name == "queries.jsonl":  # the name may hide it
            path.write_bytes(packed)
        else:
            path.with_name(f"{path.name}.gz").write_bytes(packed)
            path.unlink()
    assert source_digests(data) == plain
    other = tmp_path / "other"
    assert prepare(other, collection=str(collection), triples=str(triples))[0] == counts
    (collection / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(CORPUS).encode())[:-9])
    with pytest.raises(DataError, match=r"corpus.jsonl.gz: damaged gzip file .* get the file"):
        source_digests(data)


def test_a_title_that_is_null_is_none(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "title": null, "text": "wing"}\n')
    assert list(read_corpus(Reader(), local_file(path), {})) == [("a", "", "wing")]


def test_a_file_that_changes_between_digest_and_reading_is_refused(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "wings")
    data = DataOptions(collection=str(folder))
    spec = make_spec("prepare", data, sources=source_digests(data))
    (folder / "queries.jsonl").write_text(lines(QUERIES) + '{"_id": "new", "text": "new"}\n')
    with pytest.raises(DataError, match=r"queries.jsonl was changed during the run"):
        run_stage(spec, Store(str(tmp_path / "store")), no_progress)


def test_rows_are_written_in_blocks_in_their_order(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = ((str(n), "", f"text {n}") for n in range(20_000))
    assert write_parquet(tmp_path / "corpus.parquet", PASSAGES, rows) == 20_000
    table = pq.read_table(tmp_path / "corpus.parquet")
    assert table["passage_id"].to_pylist() == [str(n) for n in range(20_000)]


def test_no_rows_make_a_file_with_the_columns(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert write_parquet(tmp_path / "corpus.parquet", PASSAGES, []) == 0
    assert pq.read_table(tmp_path / "corpus.parquet").schema == PASSAGES


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    filesystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    filesystem.mkdir("data")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield filesystem
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_data_on_s3_give_the_same_artifact_as_local_data(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    collection, triples = write_collection(tmp_path / "wings"), write_triples(tmp_path / "triples")
    bucket.put(str(tmp_path / "wings"), "data/wings", recursive=True)
    bucket.put(str(triples), "data/triples", recursive=True)
    local = DataOptions(collection=str(collection), triples=str(triples))
    remote = DataOptions(collection="s3://data/wings/", triples="s3://data/triples")
    digests = []
    for number, data in enumerate((local, remote)):
        spec = make_spec("prepare", data, sources=source_digests(data))
        store = Store(str(tmp_path / f"store{number}"))
        artifact = run_stage(spec, store, no_progress)
        digests.append((artifact.key, artifact.digest))
    assert digests[0] == digests[1]
    bucket.pipe_file("data/wings/queries.jsonl", b"nothing")
    with pytest.raises(DataError, match=r"^s3://data/wings/queries.jsonl:1: not valid JSON"):
        prepare(tmp_path, collection="s3://data/wings")
    with pytest.raises(DataError, match="no such folder"):
        find_files("s3://data/nowhere", ["corpus.jsonl"], "collection")
