"""The audit of the pairs: numbers that one can count by hand, and when it says stop."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from candidates import judged
from evaluation_world import make, put
from flat_options import flat

from expandr_core.preferences.audit import reason_to_stop
from expandr_core.preferences.rewards import schema
from expandr_core.stages import audit_pairs, pairs
from expandr_core.store.store import Store

# Two queries with three candidates each: (text, similarity to the positive, to the answer).
# q1: both similarities order the texts alike, and the longer the nearer; q2: exactly opposite.
CANDIDATES = {
    "q1": [("sky sky blue is", 0.9, 0.8), ("sky high", 0.5, 0.4), ("low", 0.1, 0.2)],
    "q2": [("one", 0.9, 0.8), ("one two", 0.5, 0.9), ("one two six", 0.1, 0.95)],
}


def audited(tmp_path, candidates=CANDIDATES):
    """Choose pairs from candidates and audit them; return counts, the JSON and the Markdown."""
    store = Store(str(tmp_path / "store"))
    rows = []
    for query_id, own in candidates.items():
        texts, similarities = [text for text, *_ in own], [(one, two) for _, one, two in own]
        asked = {"query_id": query_id, "query": "Is the sky blue?"}
        rows += judged(similarities, texts=texts, **asked)
    for row in rows:
        row["finish_reason"] = "length" if row["text"] == "low" else "stop"
    table = pa.Table.from_pylist(rows, schema())
    shard = put(store, "reward_shard-1", {"rewards.parquet": table})
    rewards = put(store, "reward-1", {}, [shard])
    chosen, folder = make(
        store, "pairs", flat(pairs.OPTIONS, dpo_dev_share=0), {"rewards": rewards}
    )
    texts = pq.read_table(folder / "pairs.parquet").select(["chosen_text", "rejected_text"])
    inputs = {"pairs": chosen, "rewards": rewards}
    made, folder = make(store, "audit_pairs", audit_pairs.OPTIONS(), inputs)
    audit = json.loads((folder / "pair_audit.json").read_text())
    return texts.to_pylist(), made.counts, audit, (folder / "pair_audit.md").read_text()


def test_two_pairs_by_hand(tmp_path):
    texts, counts, audit, markdown = audited(tmp_path)
    # q1: rewards 2, 1, 2/3. q2: 1 + 1/3, 1/2 + 1/2, 1/3 + 1: the summed similarity chooses "one"
    assert texts == [
        {"chosen_text": "sky sky blue is", "rejected_text": "low"},
        {"chosen_text": "one", "rejected_text": "one two"},
    ]
    assert (counts["pairs"], counts["queries"], counts["accepted"]) == (2, 2, 2)
    assert (counts["chosen_words"], counts["rejected_words"]) == (2.5, 1.5)
    assert (counts["chosen_longer"], counts["rejected_longer"]) == (1, 1)
    assert counts["length_p"] == 1.0
    assert counts["chosen_overlap"] == (3 / 4 + 0) / 2  # sky, blue, is; of: is, the, sky, blue
    assert counts["rejected_overlap"] == 0
    assert (counts["chosen_cut"], counts["rejected_cut"]) == (0, 1)
    assert counts["agreement"] == 0.0  # 1 and -1
    # q1: 1; q2: rewards 4/3, 1, 4/3 with lengths 1, 2, 3: one pair up, one down, one tied
    assert counts["length_agreement"] == 0.5
    assert audit["margins"] == [0, 1, 0, 0, 0, 1, 0, 0]  # 1/3 and 4/3
    assert {name: audit[name] for name in counts} == counts
    assert "| words | 2.5 | 1.5 |" in markdown
    assert "| 1.25 to 1.50 | 1 |" in markdown


def test_a_longer_text_in_every_pair_is_seen(tmp_path):
    longer = [("a b c d", 0.9, 0.9), ("a b", 0.5, 0.5), ("a", 0.1, 0.1)]
    _, counts, _, _ = audited(tmp_path, {f"q{number}": longer for number in range(10)})
    assert (counts["chosen_longer"], counts["rejected_longer"]) == (10, 0)
    assert counts["length_p"] == pytest.approx(2 / 2**10)
    assert (counts["agreement"], counts["length_agreement"]) == (1, 1)
    assert "teach only length" in reason_to_stop(counts, minimum_pairs=10, max_length_bias=0.9)


LONGER = {
    "pairs": 100,
    "chosen_longer": 96,
    "rejected_longer": 4,
    "length_p": 1e-20,
    "agreement": 0.3,
    "length_agreement": 0.6,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the longer in 96% of 100 pairs"),
        ({"chosen_longer": 4, "rejected_longer": 96, "length_agreement": -0.6}, "shorter in 96%"),
        ({"chosen_longer": 82, "rejected_longer": 0}, "the longer in 91%"),  # 18 equal: half each
        ({"chosen_longer": 80, "rejected_longer": 0}, ""),  # 90 %, and more is needed
        ({"agreement": 0.61}, ""),  # the halves agree on something else
        ({"pairs": 50, "chosen_longer": 50}, "50 preference pairs and at least 60"),
        ({"length_p": 0.02}, ""),  # may be chance
    ],
)
def test_when_to_stop(changes, reason):
    found = reason_to_stop(LONGER | changes, minimum_pairs=60, max_length_bias=0.9)
    assert reason in found and bool(reason) == bool(found)


def test_a_max_length_bias_of_one_never_stops():
    always = LONGER | {"chosen_longer": 100, "rejected_longer": 0}
    assert reason_to_stop(always, minimum_pairs=1, max_length_bias=1) == ""


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({"accepted": 80}, "raise preferences.max_pairs to 60"),
        ({"accepted": 20, "with_preference": 70}, "acceptance_value to -10000, which accepts 70"),
        ({"accepted": 20, "with_preference": 50}, "lower preferences.minimum_pairs to 20"),
        (
            {"accepted": 20, "with_preference": 20, "dropped/does_not_beat_the_query": 45},
            "set preferences.beats_query to false, which accepts 65",
        ),
    ],
)
def test_of_too_few_pairs_the_remedy_is_one_that_works(facts, remedy):
    assert remedy in reason_to_stop(LONGER | {"pairs": 20} | facts, 60, 0.9)
