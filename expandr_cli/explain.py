"""The command `expandr explain`: how a number came to be, in the terminal."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expandr_cli.terminal import StoreOption, absolute, out, printable, user_errors
from expandr_core.lineage.finding import find_run
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

app = typer.Typer()
RunArgument = Annotated[str, typer.Argument(help="A run, the beginning of its name, or 'latest'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
_IDS = 40  # of a prompt


@app.command()
def explain(
    run: RunArgument = "latest",
    what: Annotated[
        str,
        typer.Argument(
            help="SYSTEM/METRIC, DATASET/SYSTEM/METRIC or BEFORE..AFTER/p, such as joint-1/ndcg@10; "
            "METRIC_low and METRIC_high are the limits of its interval. Empty for the headline."
        ),
    ] = "",
    query: Annotated[str | None, typer.Option(help="Show this query of the run instead.")] = None,
    check: Annotated[
        bool, typer.Option(help="Compute the number again; exit with 1 if it differs.")
    ] = False,
    check_all: Annotated[
        bool,
        typer.Option("--check-all", help="Compute every number again; exit with 1 if one differs."),
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = "store",
) -> None:
    """Explain a number of a run's report: its files, models, data, options, code and cost.

    Example: `expandr explain latest joint-1/ndcg@10 --check`
    """
    with user_errors():
        from expandr_core.lineage.explain import check_all as check_every
        from expandr_core.lineage.explain import explain as explain_number
        from expandr_core.lineage.query import explain_query
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        record = recorded(opened, run)
        if check_all:
            raise typer.Exit(_print_checks(check_every(opened, record), as_json))
        if query is not None:
            found = explain_query(opened, record, query, what.partition("/")[0])
        else:
            found = explain_number(opened, record, what, check)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif query is not None:
        _print_query(out, found)
    else:
        _print_number(out, found)
    raise typer.Exit(0 if found.get("check", {}).get("agrees", True) else 1)


def _print_checks(checked: list[dict[str, Any]], as_json: bool) -> int:
    """Print the numbers that differ, and how many agree; return the exit status."""
    wrong = [each for each in checked if not each["check"]["agrees"]]
    if as_json:
        typer.echo(json.dumps(checked, indent=1, ensure_ascii=False))
    else:
        _say(out, "numbers that differ", *(
            f"{each['what']}: {each['value']:.12g}, computed again {each['check']['value']:.12g}"
            for each in wrong
        ))  # fmt: skip
        most = max((each["check"]["difference"] for each in checked), default=0.0)
        out.print(f"{len(checked) - len(wrong)} of {len(checked)} numbers agree; the largest difference "
                  f"is {most:.1e}", highlight=False)  # fmt: skip
    return int(bool(wrong))


def recorded(store: Store, name: str) -> RecordedRun:
    """Find a run.

    Raises:
        DataError: if there is none; it lists those that there are.
    """
    return find_run([store], name)[1]


def _say(console: Console, title: str, *lines: str) -> None:
    """Print lines below a title."""
    if lines:
        console.print(title, style="bold")
    for line in lines:
        console.print(f"  {printable(line)}", highlight=False, soft_wrap=True)


def _print_number(console: Console, found: dict[str, Any]) -> None:
    """Print the number first, then what it was computed from, back to the data."""
    console.print(f"{found['title']} = {found['value']:.12g}", style="bold")
    _say(console, "from", f"run {found['run']}, {found['what']}", f"{found['report']}")
    if found["kept"]:
        _say(console, "which models are kept", found["kept"])
    if "check" in found:
        check = found["check"]
        word = "agrees" if check["agrees"] else "DIFFERS"
        _say(
            console, "computed again", f"{check['value']:.12g}, {word} ({check['difference']:.1e})"
        )
    if "audit" in found:
        _say(console, "audit", found["audit"])
    for each in found["evaluations"]:
        title = f"measured: {each['system']} on {each['dataset']} {each['subset']}".rstrip()
        value = "" if each["value"] is None else f"{each['value']:.6f} on "
        lines = [f"{value}{each['queries']:.0f} queries, seed {each['seed']}"]
        lines += [f"{name:<11}{each[key]['path']}  SHA-256 {each[key]['sha256']}"
                  for name, key in (("rankings", "run_file"), ("per query", "per_query"))]  # fmt: skip
        lines += [f"{name:<11}{each[key]['path']}  SHA-256 {each[key]['digest']}"
                  for name, key in (("queries", "query_texts"), ("judgements", "judgements"),
                                    ("corpus", "corpus")) if each[key]]  # fmt: skip
        _say(console, title, *lines)
    _say(console, "models", *(
        f"{role:<11}{model['key']}  {model['title']}" for role, model in found["models"].items()
    ))  # fmt: skip
    _print_prompt(console, found["prompt"])
    _say(console, "raw files", *(
        f"{each['file']}  SHA-256 {each['sha256']}, read by {each['read_by']}"
        for each in found["sources"]
    ))  # fmt: skip
    _say(console, "options that differ from the defaults", *(
        f"{path}: {json.dumps(value, ensure_ascii=False)}"
        for path, value in found["options"].items()
    ))  # fmt: skip
    for title, facts in (("seeds", found["seeds"]), ("commits", found["commits"])):
        _say(console, title, *(f"{value or 'not known'}: {', '.join(stages)}"
                               for value, stages in facts.items()))  # fmt: skip
    for title in ("libraries", "vllm_libraries"):
        _say(console, title, *(f"{name} {', '.join(each)}" for name, each in found[title].items()))
    _print_nodes(console, found)


def _print_prompt(console: Console, prompt: dict[str, Any] | None) -> None:
    if prompt is None:
        return
    if "unavailable" in prompt:
        _say(console, "a prompt", prompt["unavailable"])
        return
    ids = prompt["ids"]
    shown = " ".join(map(str, ids[:_IDS])) + (" ..." if len(ids) > _IDS else "")
    lines = [*prompt["text"].splitlines(), f"{len(ids)} ids: {shown}"]
    _say(console, f"a prompt, for {prompt['query_id']}", *lines)


def _print_nodes(console: Console, found: dict[str, Any]) -> None:
    """Print what each artifact upstream took, from the data on, and all together."""
    table = Table("artifact", "made by", "options not at their defaults")
    table.title, table.title_justify = "upstream, the data first", "left"
    for name in ("seconds", "GPU hours", "tokens", "peak GB"):
        table.add_column(name, justify="right")
    total = found["cost"] | {"key": f"{len(found['nodes'])} artifacts", "title": "", "options": {}}
    for node in [*found["nodes"], total]:
        options = (f"{p}={json.dumps(v, ensure_ascii=False)}" for p, v in node["options"].items())
        peak = node["peak_memory"]
        table.add_row(
            node["key"], node["title"], ", ".join(options), f"{node['seconds']:.1f}",
            "not known" if node["gpu_hours"] is None else f"{node['gpu_hours']:.3f}",
            "" if not node["tokens"] else f"{node['tokens']:,.0f}",
            "" if peak is None else f"{peak / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)


def _print_query(console: Console, found: dict[str, Any]) -> None:
    """Print a query: what was written, what that was worth, and what each system found."""
    place = f" on {found['dataset']}" if found["dataset"] else ""
    console.print(f"{found['query_id']}{place}: {found['query']}", style="bold")
    passages, written = found.get("passages", {}), set[str]()
    for each in found.get("systems", []):
        scores = ", ".join(f"{k.replace('_at_', '@')} {v:.3f}" for k, v in each["metrics"].items())
        lines = [scores] if scores else []
        texts = each["expansions"]
        if texts and texts["from"] not in written:
            written.add(texts["from"])
            lines += [f"expansion, {texts['title']}: {text}" for text in texts["texts"]]
        elif texts:
            lines.append(f"expansion as above, {texts['title']}")
        lines += [f"{hit['rank']}. {hit['passage_id']} ({hit['score']:.4f}) "
                  f"{_short(passages.get(hit['passage_id'], ''))}" for hit in each["top"]]  # fmt: skip
        lines += [f"judged {hit['passage_id']} (relevance {hit['relevance']}): "
                  + (f"rank {hit['rank']}, score {hit['score']:.4f}" if hit["rank"] else
                     "not among the hits")
                  for hit in each["judged"]]  # fmt: skip
        _say(console, each["title"], *lines)
    if found["unrewarded"]:
        _say(console, "no rewards", found["unrewarded"])
    for each in found["rewarded"]:
        _say(console, f"candidates of round {each['round']}, the best first", *(
            f"{c['rank']}. reward {c['reward']:.4f} {c['side']:<8} {_short(c['text'], 120)}"
            for c in each["candidates"]
        ))  # fmt: skip


def _short(text: str, length: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
