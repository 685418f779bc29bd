"""The command `expandr import-gguf`: a GGUF as a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from expandr_cli.terminal import out, user_errors

app = typer.Typer()


@app.command()
def import_gguf(
    file: Annotated[Path, typer.Argument(help="GGUF of a causal language model.")],
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    template: Annotated[
        Path | None,
        typer.Option(
            help="File with a chat template; by default the GGUF's own, or a plain one if it has none."
        ),
    ] = None,
) -> None:
    """Turn a GGUF of a causal language model into a folder for `llm.model`.

    Quantised weights become bfloat16. Needs the package gguf: `pip install gguf`.
    """
    with user_errors():
        from expandr_core.errors import DataError
        from expandr_core.exports.export import new_folder
        from expandr_core.generation.gguf_models import import_gguf

        text = ""
        if template:
            if not template.is_file():
                raise DataError(f"--template {template}: no such file; correct its path")
            text = template.read_text(encoding="utf-8")
        with new_folder(folder) as partial:
            remarks = import_gguf(file, partial, text)
    for remark in remarks:
        out.print(remark, highlight=False)
    out.print(f"a language model in {folder}; name it in llm.model", highlight=False)
