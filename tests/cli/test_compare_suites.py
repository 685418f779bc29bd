"""What `expandr compare` says of two runs on several datasets."""

from io import StringIO

from expandr_cli.compare import _print
from expandr_cli.terminal import as_written


def test_results_that_were_made_otherwise_are_named_with_their_datasets():
    cause = {"run": "later", "options": {"seed": [0, 1]}, "first": []}
    rows = [
        {"dataset": dataset, "title": title, "values": {"early": 0.5, "later": 0.5}}
        | {"tests": [], "upstream": [cause] if title != "BM25" else []}
        for dataset in ("letters", "law")
        for title in ("BM25", "+ expansion, greedy", "+ expansion, sampled")
    ]
    differ = {"later": {"options": {}, "code": {}}}
    file = StringIO()
    found = {"runs": ["early", "later"], "rows": rows, "apart": {}, "differ": differ}
    _print(as_written(file=file, width=120), found)
    assert (
        "4 results were made otherwise: + expansion, greedy (letters, law); + expansion, sampled "
        "(letters, law)\n"
    ) in file.getvalue()
