"""Several datasets: means by hand, deviations over seeds, one family of tests, what is missing."""

import json
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from evaluation_world import make, put, table

from expandr_core.data.catalog import BEIR
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import Contrast, MeasuredDataset, System
from expandr_core.evaluation.means import means_over
from expandr_core.evaluation.metrics import METRICS
from expandr_core.options.evaluation import SignificanceOptions
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.store import Store

# nDCG@10 by dataset, system and seed; the same for all metrics
VALUES: dict[str, dict[str, list[list[float]]]] = {
    "nq": {
        "bm25": [[0.2, 0.2, 0.2, 0.2]],
        "query": [[0.1, 0.2, 0.3, 0.4]],
        "sampled": [[0.2, 0.2, 0.5, 0.7], [0.4, 0.4, 0.3, 0.9]],
    },
    "scifact": {
        "bm25": [[0.5, 0.5]],
        "query": [[0.6, 0.2]],
        "sampled": [[0.4, 0.1], [0.8, 0.3]],
    },
    "law/a": {"bm25": [[1.0]], "query": [[0.0]], "sampled": [[0.4], [0.4]]},
    "law/b": {
        "bm25": [[0.0, 0.0, 0.0]],
        "query": [[0.1, 0.1, 0.1]],
        "sampled": [[0.1, 0.1, 0.4], [0.1, 0.1, 0.4]],
    },
}
DATASETS = (
    MeasuredDataset(name="nq", benchmark="BEIR", domain="in-domain"),
    MeasuredDataset(name="scifact", benchmark="BEIR", domain="out-of-domain"),
    MeasuredDataset(name="law", benchmark="other", domain="other", subsets=("a", "b")),
)
SYSTEMS = (
    System(name="bm25", title="BM25"),
    System(name="query", title="query only"),
    System(name="sampled", title="+ expansion", baseline="query", seeds=2),
)
CONTRASTS = (Contrast(before="query", after="sampled", question="Do expansions help?"),)


def options(**changes: Any) -> CompareOptions:
    values = {"systems": SYSTEMS, "datasets": DATASETS, "contrasts": CONTRASTS}
    return CompareOptions(**{**values, "significance": SignificanceOptions(), **changes})


def inputs_of(store: Store) -> dict[str, Any]:
    inputs = {}
    for dataset, systems in VALUES.items():
        key = dataset.replace("/", "-")
        queries = [(f"q{n}", f"text of {dataset} {n}") for n in range(len(systems["query"][0]))]
        made = put(
            store, f"{key}-queries", {"queries.parquet": table(["query_id", "query"], queries)}
        )
        inputs[f"queries/{dataset}"] = made.at("queries.parquet")
        for system, seeds in systems.items():
            for seed, values in enumerate(seeds):
                rows = [(f"q{n}", f"q{n}", *[value] * 4) for n, value in enumerate(values)]
                metrics = dict.fromkeys(METRICS, sum(values) / len(values))
                inputs[f"measured/{dataset}/{system}/{seed}"] = put(
                    store,
                    f"{key}-{system}-{seed}",
                    {"per_query.parquet": table(["query_id", "cluster", *METRICS], rows)},
                    texts={"metrics.json": json.dumps(metrics | {"queries": len(values)})},
                )
    return inputs


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("comparison") / "store"))


@pytest.fixture(scope="module")
def inputs(store) -> dict[str, Any]:
    return inputs_of(store)


@pytest.fixture(scope="module")
def made(store, inputs):
    return make(store, "compare", options(), inputs)[1]


@pytest.fixture(scope="module")
def report(made) -> dict[str, Any]:
    return json.loads((made / "comparison.json").read_text())


def rows(report: dict[str, Any], kind: str = "results") -> dict[tuple[str, str], dict[str, Any]]:
    other = "dataset" if kind == "results" else "title"
    return {(row["system"], row[other]): row for row in report[kind]}


def test_a_dataset_s_result_is_the_mean_over_its_seeds_with_their_deviation(report):
    row = rows(report)["sampled", "nq"]
    assert row["ndcg_at_10"] == pytest.approx(0.45)  # of 0.4 and 0.5
    assert row["ndcg_at_10_deviation"] == pytest.approx(0.1 / 2**0.5)  # n - 1
    assert (row["seeds"], row["queries"]) == (2, 4)
    single = rows(report)["query", "nq"]
    assert single["ndcg_at_10"] == pytest.approx(0.25)
    assert single["ndcg_at_10_deviation"] is None


def test_a_dataset_with_subsets_has_their_unweighted_mean(report):
    found = rows(report)
    assert found["bm25", "law"]["ndcg_at_10"] == pytest.approx(0.5)  # 1 and 0, not 1/4
    assert found["query", "law"]["ndcg_at_10"] == pytest.approx(0.05)
    assert found["sampled", "law"]["ndcg_at_10"] == pytest.approx((0.4 + 0.2) / 2)
    assert found["bm25", "law"]["queries"] == 4


def test_means_are_apart_by_domain_and_benchmark_and_say_what_they_are_of(report):
    found = rows(report, "means")
    assert found["sampled", "BEIR, in-domain (1 of 4)"]["ndcg_at_10"] == pytest.approx(0.45)
    assert found["sampled", "BEIR, out-of-domain (1 of 11)"]["ndcg_at_10"] == pytest.approx(0.4)
    everything = found["sampled", "BEIR, mean of 2 of 15"]
    assert everything["ndcg_at_10"] == pytest.approx(0.425)
    # the seeds' means over both datasets are (0.4 + 0.25) / 2 and (0.5 + 0.55) / 2
    assert everything["ndcg_at_10_deviation"] == pytest.approx(0.2 / 2**0.5)
    assert set(everything["missing"]) == BEIR.keys() - {"nq", "scifact"}
    assert found["bm25", "other datasets, mean of 1"]["ndcg_at_10"] == pytest.approx(0.5)


def test_only_all_fifteen_make_the_mean_of_all_fifteen():
    all_of_them = [
        MeasuredDataset(name=name, benchmark="BEIR", domain=each.domain)
        for name, each in BEIR.items()
    ]
    assert [mean.title for mean in means_over(all_of_them)] == [
        "BEIR, in-domain (4 of 4)",
        "BEIR, out-of-domain (11 of 11)",
        "BEIR, mean of all 15",
    ]
    assert means_over(all_of_them[1:])[-1].title == "BEIR, mean of 14 of 15"
    assert means_over(all_of_them[1:])[-1].missing == ("msmarco",)


def test_the_tests_of_all_datasets_are_one_family_on_the_mean_over_seeds(report):
    nq, scifact, law = report["contrasts"]
    assert [each["dataset"] for each in report["contrasts"]] == ["nq", "scifact", "law"]
    assert nq["p"] == 2 / 2**4  # all four gain, and four are too few for a t-test
    assert nq["difference"] == pytest.approx(0.2)
    assert (scifact["difference"], scifact["p"]) == (0, 1)  # the seeds' means are query only's
    assert (scifact["wins"], scifact["losses"]) == (0, 0)
    assert (scifact["effect"], scifact["counted"]) == ("equal", False)
    assert [each["corrected_p"] for each in report["contrasts"]] == [2 * nq["p"], 1, law["p"]]
    row = rows(report)["sampled", "nq"]
    assert (row["corrected_p"], row["wins"], row["losses"]) == (nq["corrected_p"], 4, 0)
    assert rows(report)["bm25", "nq"]["p"] is None
    assert law["queries"] == 4


def test_the_test_of_a_dataset_with_subsets_is_of_their_unweighted_mean(report):
    law = report["contrasts"][2]
    results = rows(report)
    gain = results["sampled", "law"]["ndcg_at_10"] - results["query", "law"]["ndcg_at_10"]
    assert law["difference"] == pytest.approx(gain) == pytest.approx(0.25)
    assert law["p"] == 0.5  # two of the four changed: one in a; one in b, which has three


def test_every_query_s_difference_is_kept_with_its_text(made):
    found = pq.read_table(made / "differences.parquet").to_pylist()
    assert len(found) == 4 + 2 + 4
    last = found[-1]
    assert (last["dataset"], last["before"], last["after"]) == ("law", "query", "sampled")
    assert (last["query_id"], last["query"]) == ("b/q2", "text of law/b 2")
    assert (last["before_score"], last["after_score"]) == pytest.approx((0.1, 0.4))
    assert last["difference"] == pytest.approx(0.3)


def test_the_table_has_a_row_for_each_system_and_dataset(made, report):
    found = pd.read_csv(made / "comparison.csv")
    assert list(found.columns[:2]) == ["system", "dataset"]
    assert len(found) == 9
    row = found[(found["system"] == "+ expansion") & (found["dataset"] == "scifact")].iloc[0]
    assert row["ndcg_at_10"] == pytest.approx(0.4)
    assert row["in_domain_mean"] == pytest.approx(0.45)
    assert row["out_of_domain_mean"] == pytest.approx(0.4)
    assert row["benchmark_mean_is_of"] == "BEIR, mean of 2 of 15"
    assert row["corrected_p"] == pytest.approx(report["contrasts"][1]["corrected_p"])


def test_the_report_to_read_says_what_is_missing_and_who_won(made):
    text = (made / "report.md").read_text()
    assert "**Missing** of BEIR: msmarco, trec-covid, nfcorpus, hotpotqa" in text
    assert "+ expansion: mean ± standard deviation over 2 seeds." in text
    lines = text.splitlines()
    [row] = [line for line in lines if line.startswith("| nq ") and "0.450 ± 0.071" in line]
    assert "+0.200" in row and "4 / 0" in row
    wins = lines[lines.index("**query only → + expansion**") + 2 :]
    assert [cell.strip() for cell in wins[2].split("|")[1:4]] == ["law", "a/q0", "text of law/a 0"]
    assert "## Leakage" not in text


def test_what_makes_its_numbers_doubtful_stands_in_the_report(store, inputs):
    doubtful = options(warnings=("expand: 9 of 10 texts (90 %) are empty",))
    _, folder = make(store, "compare", doubtful, inputs)
    said = "**Warning**: expand: 9 of 10 texts (90 %) are empty."
    assert said in (folder / "report.md").read_text().splitlines()


def test_audits_are_shown_by_dataset(store, inputs):
    part = {"queries": 1, "share": 0.25, "gain_of_these": 0.1, "gain_without": 0.2}
    audit = {
        "rule": "copying: many words",
        "queries": 4,
        "gain": 0.15,
        "expansions": {"number": 8, "with_a_run": 2, "copying": 1},
        "query_in_training": part,
        "passage_in_training": None,
        "copying": part,
        "any": part | {"gain_without": None},
    }
    artifact = put(store, "audit-1", {}, texts={"audit.json": json.dumps(audit)})
    _, folder = make(store, "compare", options(), inputs | {"audit/law/b/sampled": artifact})
    text = (folder / "report.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| law/b ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == [
        *("law/b", "+ expansion", "25.0%", "not known", "12.5%", "+0.150"),
        *("+0.200", "not known", "+0.200", "none left"),
    ]


def test_what_cannot_be_compared_is_refused(store, inputs):
    lacking = {role: each for role, each in inputs.items() if role != "measured/nq/sampled/1"}
    with pytest.raises(DataError, match="no evaluation 'measured/nq/sampled/1'"):
        make(store, "compare", options(), lacking)
    contrast = Contrast(before="query", after="nobody", question="?")
    with pytest.raises(DataError, match=r"not measured: \['nobody'\]"):
        make(store, "compare", options(contrasts=(contrast,)), inputs)
    other = inputs | {"measured/nq/sampled/1": inputs["measured/scifact/sampled/1"]}
    with pytest.raises(DataError, match="2 seeds of a system were measured on different"):
        make(store, "compare", options(), other)
