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
    """What the configuration of a sentence-transformers model would say.

    Attributes:
        models: the models that follow the convention.
        pooling: the text's vector: the mean of its tokens' vectors, the first, or the last; for the
            last, an end token is added to texts if the tokenizer adds none.
        similarity: how vectors are compared.
        max_tokens: texts are cut at this length, or at the model's limit if that is smaller.
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
        """Describe the convention in words.

        >>> print(CONVENTIONS["e5"])
        intfloat/e5-*: mean of the tokens, cosine, 512 tokens, 'query: ' before a query, \
'passage: ' before a passage
        """
        names = {"mean": "mean of the tokens", "cls": "first token", "lasttoken": "last token"}
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt}
        parts = [f"{self.models}: {names[self.pooling]}", self.similarity]
        parts.append(f"{self.max_tokens} tokens")
        parts += [f"{prompt!r} before a {kind}" for kind, prompt in prompts.items() if prompt]
        return ", ".join(parts)


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
