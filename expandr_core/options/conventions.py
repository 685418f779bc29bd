"""How retrievers are used whose folders do not say so.

A folder that sentence-transformers wrote has its own configuration. One that transformers wrote has only
weights and a tokenizer; how tokens become a vector, what goes before a query, and how vectors are
compared is known from the model's description alone. Users name one of these conventions; none is
guessed.
"""

from dataclasses import dataclass
from typing import Literal

_WEB_SEARCH = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
)


@dataclass(frozen=True)
class Convention:
    """What sentence-transformers' configuration would say.

    Attributes:
        models: whose convention it is.
        pooling: which tokens' vectors are the text's: their mean, the first, or the last, after
            which an end token is put where the tokenizer does not.
        similarity: how vectors are compared.
        max_tokens: longer texts are cut, or at the model's own limit.
        query_prompt: put before a query.
        passage_prompt: put before a passage.
    """

    models: str
    pooling: Literal["mean", "cls", "lasttoken"]
    similarity: Literal["cosine", "dot"]
    max_tokens: int
    query_prompt: str = ""
    passage_prompt: str = ""

    def __str__(self) -> str:
        """Say it in words.

        >>> print(CONVENTIONS["e5"])
        intfloat/e5-*: mean of the tokens, cosine, 512 tokens, 'query: ' before a query, \
'passage: ' before a passage
        """
        names = {"mean": "mean of the tokens", "cls": "first token", "lasttoken": "last token"}
        said = [f"{self.models}: {names[self.pooling]}", self.similarity]
        said.append(f"{self.max_tokens} tokens")
        for prompt, kind in ((self.query_prompt, "query"), (self.passage_prompt, "passage")):
            if prompt:
                said.append(f"{prompt!r} before a {kind}")
        return ", ".join(said)


ConventionName = Literal["model", "contriever", "bge", "e5", "gte", "minilm", "last-token"]
CONVENTIONS = {  # by ConventionName; "model" stands for what the folder says
    "contriever": Convention("facebook/contriever*", "mean", "dot", 512),
    "bge": Convention(
        "BAAI/bge-*-en*",
        "cls",
        "cosine",
        512,
        query_prompt="Represent this sentence for searching relevant passages: ",
    ),
    "e5": Convention(
        "intfloat/e5-*", "mean", "cosine", 512, query_prompt="query: ", passage_prompt="passage: "
    ),
    "gte": Convention("thenlper/gte-*", "mean", "cosine", 512),
    "minilm": Convention("sentence-transformers/all-MiniLM-*", "mean", "cosine", 256),
    "last-token": Convention(
        "decoder LLMs such as intfloat/e5-mistral-7b-instruct",
        "lasttoken",
        "cosine",
        4096,
        query_prompt=f"{_WEB_SEARCH}Query: ",
    ),
}
