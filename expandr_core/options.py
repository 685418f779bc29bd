"""Every option of every stage, in the order of the data. The same models are Prefect's form.

Defaults are the paper's (Yao et al., EMNLP 2025, as its code runs); a field made with `runtime` does
not change the bytes of an artifact and therefore stays out of its key.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["transformers", "vllm", "endpoint"]
Prompt = Literal["q2d", "q2a", "q2q", "q2e", "q2c"]
VectorType = Literal["float16", "float32"]
ConventionName = Literal["model", "contriever", "bge", "e5", "gte", "minilm", "last-token"]


def _keep_order(schema: dict[str, Any]) -> None:
    """Number the fields: Prefect's form otherwise sorts them by name."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Options(BaseModel):
    """Typed, frozen, and closed: a misspelled option is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_keep_order)


def runtime(default: Any, **field: Any) -> Any:
    """Declare an option that changes speed, memory or place, but not the artifact's meaning."""
    return Field(default=default, json_schema_extra={"in_key": False}, **field)


def identity(options: Options) -> dict[str, Any]:
    """Return the options that enter the artifact's key: all but those made with `runtime`.

    >>> "batch_size" in identity(SamplingOptions()), "top_p" in identity(SamplingOptions())
    (False, True)
    """
    kept = {}
    for name, field in type(options).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("in_key") is False:
            continue
        kept[name] = _plain(getattr(options, name))
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return identity(value)
    return [_plain(element) for element in value] if isinstance(value, tuple) else value


class DataOptions(Options):
    """The collection to search, and the training examples."""

    collection: str = runtime(
        "demo",
        description="Folder or s3:// URL in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), "
        "'demo' for the built-in world, or '' for none (then `triples` is needed).",
    )
    triples: str = runtime(
        "",
        description="Folder or s3:// URL of training triples (*.jsonl with query, positive, "
        "negative). Empty: the training queries are those of the collection's qrels/train.tsv.",
    )
    preference_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the training queries that align the LLM (paper: 1/8).",
    )
    dev_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share kept for choosing the best round; not used if qrels/dev.tsv exists.",
    )
    cluster_by: str = Field(
        default="",
        description="Field of a query's metadata; queries that share it are tested as one "
        "observation. Empty: each query is one.",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="A bad row stops the run, or is skipped and counted by reason.",
    )


class DemoWorldOptions(Options):
    """The built-in world: invented things, their documents, and questions in lay words."""

    instruct_entities: Positive = Field(
        default=50, description="Things whose questions teach the tiny LLM."
    )
    train_entities: Positive = Field(
        default=50, description="Things whose questions train the loop."
    )
    dev_entities: Positive = Field(
        default=25, description="Things whose questions choose the best round."
    )
    test_entities: Positive = Field(
        default=50, description="Things whose questions measure the result."
    )
    questions_per_aspect: int = Field(
        default=2,
        ge=1,
        le=4,
        description="Differently worded training questions per thing and aspect.",
    )


class TinyLLMOptions(Options):
    """A small Llama and its tokenizer, trained from scratch on the collection's own text."""

    vocabulary: int = Field(
        default=3000, ge=300, description="Size of the byte-level BPE vocabulary."
    )
    hidden_size: int = Field(
        default=128, ge=32, multiple_of=32, description="Width; heads are 32 wide."
    )
    layers: Positive = Field(default=3, description="Number of transformer layers.")
    steps: Positive = Field(default=1400, description="Training steps.")
    batch_size: Positive = Field(default=16, description="Texts per step.")
    max_tokens: int = Field(
        default=512, ge=64, description="Longer texts are cut into pieces this long."
    )
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")


class VLLMOptions(Options):
    """The engine vLLM, in an interpreter of its own, which `make vllm-env` makes."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the weights. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    quantisation: Literal["none", "fp8", "bitsandbytes"] = Field(
        default="none",
        description="How the weights are quantised when they are loaded; what is quantised already "
        "needs 'none'.",
    )
    tensor_parallel: Positive = runtime(1, description="GPUs that share one copy of the model.")
    data_parallel: Positive = runtime(
        1, description="Copies of the model, each on GPUs of its own; they share the queries."
    )
    gpu_memory_share: float = runtime(
        0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes."
    )


class EndpointOptions(Options):
    """An OpenAI-compatible server; its key is in OPENAI_API_KEY, in the environment of who asks."""

    url: str = runtime("", description="Such as http://host:8000/v1, without a key in it.")
    model: str = Field(
        default="", description="Name under which the server has the model; the same as `model`."
    )
    api: Literal["completions", "chat"] = Field(
        default="completions",
        description="What to send: the prompt's token ids to /completions, where the server takes "
        "them (vLLM does), or the user's turn to /chat/completions, where its template is used.",
    )
    concurrency: Positive = runtime(64, description="Texts asked for at once.")
    retries: int = runtime(
        8, ge=0, description="Of a request that met a busy, failing or absent server; with pauses."
    )
    timeout_seconds: float = runtime(600, gt=0, description="Longest wait for one text.")


class LLMOptions(Options):
    """The language model that writes the expansions, and the engine that runs it."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of a causal LM with a chat template, or 'tiny' to build one "
        "from the collection's text (paper: meta-llama/Meta-Llama-3-8B-Instruct).",
    )
    tiny: TinyLLMOptions = Field(default=TinyLLMOptions(), title="The tiny LLM, if 'tiny'")
    engine: Engine = Field(
        default="transformers",
        description="What runs the model: transformers; vLLM, which is made for it; or a server "
        "elsewhere, which only the flow `expand` can use, as the loop's model changes. Their "
        "sampled texts differ.",
    )
    vllm: VLLMOptions = Field(default=VLLMOptions(), title="vLLM, if the engine is 'vllm'")
    endpoint: EndpointOptions = Field(
        default=EndpointOptions(), title="The server, if the engine is 'endpoint'"
    )


class TinyRetrieverOptions(Options):
    """Static token embeddings, pre-trained without labels on crops of the corpus."""

    vocabulary: int = Field(
        default=3000, ge=300, description="Size of the byte-level BPE vocabulary."
    )
    dimensions: int = Field(default=256, ge=8, description="Size of the vectors.")
    steps: Positive = Field(default=600, description="Training steps.")
    batch_size: Positive = Field(default=64, description="Passages per step, two crops of each.")
    learning_rate: float = Field(default=5e-3, gt=0, description="Peak learning rate of AdamW.")
    initial_deviation: float = Field(
        default=0.005, gt=0, description="Deviation of the initial embeddings."
    )


class EncodingOptions(Options):
    """How texts become vectors, and how these are compared: in training, reward and search alike."""

    similarity: Literal["model", "cosine", "dot"] = Field(
        default="model",
        description="What the model's own configuration says, the cosine, or the raw inner product.",
    )
    max_tokens: int = Field(
        default=512, ge=8, description="Longer texts are cut (also by the model's own limit)."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 is quicker; vectors differ in the third digit."
    )
    batch_size: Positive = runtime(128, description="Texts encoded at once.")


class RetrieverOptions(Options):
    """The dense retriever, and how its vectors are compared everywhere."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of AnchorDR (the paper's: yiqingx/AnchorDR), of a "
        "sentence-transformers model, or of an encoder with a convention; or 'tiny' to build one "
        "from the collection's text.",
    )
    tiny: TinyRetrieverOptions = Field(
        default=TinyRetrieverOptions(), title="The tiny retriever, if 'tiny'"
    )
    encoding: EncodingOptions = Field(default=EncodingOptions(), title="Texts to vectors")
    expansion_weight: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the expansions in an expanded query's vector (paper: 0.5); several "
        "expansions are averaged first.",
    )
    contrastive_temperature: float = Field(
        default=0.02, gt=0, description="Similarities are divided by it in the training loss."
    )
    vector_type: VectorType = Field(
        default="float16",
        description="How the vectors of the corpus are kept: float16 takes half the space, and "
        "changes similarities in the fourth digit.",
    )
    search_memory_gb: float = runtime(
        2.0,
        gt=0,
        description="Memory that exact search may take; a larger corpus is read block by block.",
    )
    convention: ConventionName = Field(
        default="model",
        description="Pooling, prompts, similarity and longest text of a model whose folder does not "
        "say them (expandr_core/conventions.py has the values); 'model': it does.",
    )


class SamplingOptions(Options):
    """How texts are sampled from the language model."""

    samples: Positive = Field(
        default=1,
        description="Texts per query, a multiple of the number of temperatures, which share them.",
    )
    sampling_temperatures: tuple[float, ...] = Field(
        default=(1.0,), min_length=1, description="0 is greedy; higher is more varied."
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="Sample among the likeliest tokens of this mass."
    )
    max_new_tokens: Positive = Field(
        default=512, description="A longer text is cut and marked 'length'."
    )
    batch_size: Positive = runtime(
        64,
        description="Texts generated at once, by transformers; vLLM takes what its memory holds.",
    )

    @model_validator(mode="after")
    def _evenly_spread(self) -> "SamplingOptions":
        if self.samples % len(self.sampling_temperatures):
            raise ValueError(
                f"samples ({self.samples}) must be a multiple of the number of "
                f"sampling_temperatures ({len(self.sampling_temperatures)})"
            )
        return self


class ExpandOptions(Options):
    """How the language model writes: candidates to rank, answers to compare with, expansions."""

    prompt: Prompt = Field(
        default="q2d", description="What is asked for: a passage (the paper), or another."
    )
    candidates: SamplingOptions = Field(
        default=SamplingOptions(samples=32, sampling_temperatures=(0.8, 0.9, 1.0, 1.1)),
        title="Candidates for the preference pairs",
    )
    answer: SamplingOptions = Field(
        default=SamplingOptions(), title="The answer of the self-reward"
    )
    expansion: SamplingOptions = Field(
        default=SamplingOptions(),
        title="Expansions for retriever training and for evaluation (which averages their vectors)",
    )
    max_prompt_tokens: Positive = Field(
        default=1024,
        description="A longer prompt is shortened within its passage or query, never around it.",
    )
    queries_per_shard: Positive = Field(
        default=256, description="A shard is an artifact of its own; a kill loses one at most."
    )


class PreferenceOptions(Options):
    """Which candidates become preference pairs."""

    acceptance: Literal["threshold", "quantile"] = Field(
        default="threshold",
        description="A query is accepted if its best candidate's summed similarity (to the positive "
        "and to the answer) reaches the threshold, or is above this quantile of all queries.",
    )
    acceptance_value: float = Field(
        default=0.6, ge=-2, le=2, description="0.6 suits Contriever; it depends on the encoder."
    )
    minimum_margin: float = Field(
        default=0.0, ge=0, lt=2, description="Smallest difference between the rewards of a pair."
    )
    max_pairs: Positive = Field(
        default=30_000,
        description="A seeded sample of so many pairs is kept; if lazy, the first so many.",
    )
    lazy: bool = Field(
        default=False,
        description="Write candidates shard by shard, and stop when max_pairs are accepted, instead "
        "of writing all and keeping a sample. Needs acceptance 'threshold'.",
    )
    minimum_pairs: Positive = runtime(
        100, description="With fewer pairs the run stops before DPO, and says why."
    )
    length_share: float = runtime(
        0.9,
        ge=0.5,
        le=1,
        description="If in more than this share of the pairs the chosen text is the longer one (or "
        "the shorter one), and the reward tells nothing else, the run stops before DPO. 1: never.",
    )
    dev_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the pairs that only measures DPO."
    )

    @model_validator(mode="after")
    def _knows_the_threshold(self) -> "PreferenceOptions":
        if self.lazy and self.acceptance == "quantile":
            raise ValueError(
                "lazy pairs need acceptance 'threshold': a quantile of all queries is known only "
                "when all have been rewarded; set lazy to false, or acceptance to 'threshold'"
            )
        return self


class DPOOptions(Options):
    """Direct preference optimisation of a LoRA adapter."""

    learning_rate: float = Field(
        default=2e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: float = Field(default=2, gt=0, description="Passes over the pairs.")
    batch_size: Positive = Field(default=16, description="Pairs per optimiser step.")
    beta: float = Field(
        default=0.1, gt=0, description="Strength of the pull towards the reference model."
    )
    lora_rank: Positive = Field(default=8, description="Rank of the adapter.")
    lora_alpha: Positive = Field(default=32, description="Scale of the adapter.")
    lora_targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="Linear layers that are adapted."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps until the peak learning rate.")
    max_grad_norm: float = Field(
        default=10.0, gt=0, description="Gradients are clipped to this norm."
    )
    max_tokens: int = Field(
        default=612,
        ge=16,
        description="Longest prompt plus text; longer texts are cut at the end, prompts never.",
    )
    evaluation_steps: Positive = Field(
        default=100,
        description="Steps between two measurements on the pairs of the dev part, and their "
        "checkpoints; the adapter with the lowest loss is kept. Without a dev part, the last.",
    )
    device_batch_size: Positive = runtime(
        16, description="Pairs per process at once; the rest accumulates."
    )
    processes: Positive = runtime(
        1, description="Processes that train together on one machine: GPUs, or shares of a CPU."
    )
    zero: Literal["none", "2", "3"] = runtime(
        "none",
        description="DeepSpeed's ZeRO: the processes share the optimiser's state and the gradients (2), "
        "or the model's weights too (3), for a model that no GPU holds alone.",
    )
    gradient_checkpointing: bool = runtime(
        False, description="Takes less memory, and about a third more time."
    )
    checkpoint_steps: Positive = runtime(
        50, description="Steps between checkpoints, if there is no dev part."
    )
    merge: bool = runtime(
        True,
        description="Write the model with the adapter folded in. Otherwise the adapter is kept apart, "
        "and used so wherever the model writes: a round then writes megabytes, not the model.",
    )


class ContrastiveTrainingOptions(Options):
    """Contrastive training of the retriever on expanded queries."""

    learning_rate: float = Field(
        default=1e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: Positive = Field(default=3, description="Passes over the training examples.")
    batch_size: int = Field(
        default=64,
        ge=2,
        description="Queries per step, of all processes together; the others' passages are negatives.",
    )
    batches: Literal["mixed", "by_source"] = Field(
        default="mixed",
        description="'by_source' fills a batch from one source (a file of triples), whose passages "
        "are harder to tell apart.",
    )
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps until the peak."
    )
    hard_negatives: int = Field(default=1, ge=0, description="Hard negatives per query and epoch.")
    expansions_per_query: Positive = Field(
        default=1, description="Expansions written per training query."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16 is about twice as quick; weights and loss stay in float32.",
    )
    dev_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the queries that is held out to choose the best step; 0 trains on all "
        "and keeps the last.",
    )
    evaluation_steps: Positive = Field(
        default=100, description="Steps between two measurements on the held-out queries."
    )
    mini_batch_size: Positive = runtime(
        256,
        description="Texts of a process whose activations are kept at once; what exceeds them is "
        "embedded twice. Lower it if the memory does not suffice.",
    )
    processes: Positive = runtime(
        1, description="Processes that train together on one machine: GPUs, or shares of a CPU."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")


class RetrieverTrainingOptions(ContrastiveTrainingOptions):
    """Contrastive training of the retriever on expanded queries, and its hard negatives."""

    mining_depth: Positive = Field(
        default=30,
        description="If none are given, hard negatives are drawn from this many first passages.",
    )
    mining_margin: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Passages that are no less similar to the query than its positive by this share "
        "may be relevant and are left out (NV-Retriever: 0.05); 0 keeps all.",
    )


class EvaluateOptions(Options):
    """How systems are measured and compared."""

    depth: int = Field(default=1000, ge=100, description="Passages kept per query in the run.")
    test: Literal["t", "randomisation"] = Field(
        default="t", description="Paired test between two systems."
    )
    significance_level: float = Field(
        default=0.05, gt=0, lt=1, description="After Holm's correction."
    )
    greedy: bool = Field(default=True, description="Also report expansions decoded greedily.")


class LoopOptions(Options):
    """How often, from where, and until when."""

    rounds: Positive = Field(default=2, description="Rounds at most (the paper's code: 1).")
    retriever_start: Literal["base", "previous"] = Field(
        default="base",
        description="A round trains the base retriever anew, or goes on from the last round's.",
    )
    stop_without_gain: bool = Field(
        default=True, description="Stop when a round brings no significant gain on the dev part."
    )


class JointLoopOptions(Options):
    """The whole loop: expand, reward, DPO, retrain the retriever, evaluate, and again."""

    seed: int = Field(default=0, ge=0, description="Changes every random choice.")
    data: DataOptions = Field(default=DataOptions(), title="Data")
    world: DemoWorldOptions = Field(
        default=DemoWorldOptions(), title="The demo world, if the data is 'demo'"
    )
    llm: LLMOptions = Field(default=LLMOptions(), title="Language model")
    retriever: RetrieverOptions = Field(default=RetrieverOptions(), title="Retriever")
    expand: ExpandOptions = Field(default=ExpandOptions(), title="Expand")
    preferences: PreferenceOptions = Field(default=PreferenceOptions(), title="Reward and pairs")
    dpo: DPOOptions = Field(default=DPOOptions(), title="DPO")
    training: RetrieverTrainingOptions = Field(
        default=RetrieverTrainingOptions(), title="Retriever training"
    )
    evaluate: EvaluateOptions = Field(default=EvaluateOptions(), title="Evaluate")
    loop: LoopOptions = Field(default=LoopOptions(), title="Loop")
    device: Device = runtime("auto", description="Where models run.")
