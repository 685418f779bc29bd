"""Every option of every stage, in the order of the data. The same models are Prefect's form.

    data          what is searched and learned from
    models        the language model and the retriever
    preferences   expand, reward, pairs, DPO
    training      the retriever's
    loop          evaluate, and all of it together

Defaults are the paper's (Yao et al., EMNLP 2025, as its code runs); a field made with `runtime` does
not change the bytes of an artifact and therefore stays out of its key.
"""

from expandr_core.options.base import (
    ConventionName,
    Device,
    Engine,
    IdenticalIds,
    Language,
    Options,
    Positive,
    Prompt,
    VectorType,
    added,
    identity,
    runtime,
)
from expandr_core.options.data import (
    DataOptions,
    DemoWorldOptions,
)
from expandr_core.options.loop import (
    EvaluateOptions,
    JointLoopOptions,
    LoopOptions,
)
from expandr_core.options.models import (
    DEFAULT_DATE,
    ChatOptions,
    EncodingOptions,
    EndpointOptions,
    LLMOptions,
    RetrieverOptions,
    TinyLLMOptions,
    TinyRetrieverOptions,
    Variables,
    VLLMOptions,
)
from expandr_core.options.preferences import (
    ALL_LINEAR,
    DPOOptions,
    ExpandOptions,
    LoRAOptions,
    PreferenceOptions,
    SamplingOptions,
)
from expandr_core.options.training import (
    ContrastiveTrainingOptions,
    RetrieverTrainingOptions,
)

__all__ = [
    "ALL_LINEAR",
    "DEFAULT_DATE",
    "ChatOptions",
    "ContrastiveTrainingOptions",
    "ConventionName",
    "DPOOptions",
    "DataOptions",
    "DemoWorldOptions",
    "Device",
    "EncodingOptions",
    "EndpointOptions",
    "Engine",
    "EvaluateOptions",
    "ExpandOptions",
    "IdenticalIds",
    "JointLoopOptions",
    "LLMOptions",
    "Language",
    "LoRAOptions",
    "LoopOptions",
    "Options",
    "Positive",
    "PreferenceOptions",
    "Prompt",
    "RetrieverOptions",
    "RetrieverTrainingOptions",
    "SamplingOptions",
    "TinyLLMOptions",
    "TinyRetrieverOptions",
    "VLLMOptions",
    "Variables",
    "VectorType",
    "added",
    "identity",
    "runtime",
]
