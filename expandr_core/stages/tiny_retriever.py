"""Pre-train static token embeddings on the corpus alone: two crops of a passage are a positive pair.

Contriever is trained so (Izacard et al., 2022); here the encoder is the mean of token embeddings.
Inputs: `corpus` (a corpus.parquet), and `texts` (a texts.parquet) for the tokenizer's vocabulary. Writes
a folder of sentence-transformers.
"""

import logging
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from expandr_core.demo.bpe import train_bpe
from expandr_core.demo.corpus_sample import sample_passages
from expandr_core.encoders.portable import make_portable
from expandr_core.errors import DataError
from expandr_core.options.retriever import TinyRetrieverOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

VERSION = 3
ROLE = "train"
ISOLATION = "always"
OPTIONS = TinyRetrieverOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts of all training steps."""
    options: TinyRetrieverOptions = step.options
    return {"texts": options.steps * options.batch_size}


log = logging.getLogger(__name__)
CONTRASTIVE_SCALE = 20.0  # the inverse of the temperature, 0.05


def run(job: Job) -> None:
    """Train the tokenizer, then the embeddings."""
    import pyarrow.parquet as pq

    options: TinyRetrieverOptions = job.options
    random = Random(derive_seed("tiny_retriever", job.seed))
    wanted = options.steps * options.batch_size
    passages = [
        passage.content for passage in sample_passages(job.inputs["corpus"], wanted, random)
    ]
    if len(passages) < 2:
        raise DataError(
            f"the corpus has {len(passages)} passages with text; the tiny retriever needs two at "
            "least, to tell them apart"
        )
    texts = pq.read_table(job.inputs["texts"], columns=["text"]).column("text").to_pylist()
    tokenizer = train_bpe([*texts, *passages], options.vocabulary, lower=True)
    pairs = list(crop_pairs(passages, options.steps, options.batch_size, random))
    model, loss = _train(job, tokenizer, pairs)
    model.save(str(job.out), create_model_card=False)
    make_portable(job.out)
    job.counts |= {
        "passages": len(passages),
        "crop_pairs": len(pairs),
        "vocabulary": tokenizer.get_vocab_size(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_loss": round(loss, 4),
    }


def crop_pairs(
    passages: list[str], steps: int, batch_size: int, random: Random
) -> Iterator[tuple[str, str]]:
    """Yield two crops of each sampled passage; no passage occurs twice in a batch."""
    for _ in range(steps):
        for passage in random.sample(passages, min(batch_size, len(passages))):
            words = passage.split()
            yield crop(words, random), crop(words, random)


def crop(words: list[str], random: Random) -> str:
    """Take 30 to 80 % of the words in a row, but at least three, from a random position."""
    length = min(len(words), max(3, int(len(words) * random.uniform(0.3, 0.8))))
    start = random.randrange(len(words) - length + 1)
    return " ".join(words[start : start + length])


def _train(
    job: Job, tokenizer, pairs: list[tuple[str, str]]
) -> tuple["SentenceTransformer", float]:
    """Train new embeddings on the pairs, once and in order; return them with the last loss."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import PrinterCallback, set_seed

    from expandr_core.training.callbacks import FiniteCallback, ProgressCallback

    options: TinyRetrieverOptions = job.options
    remedy = f"lower retriever.tiny.learning_rate ({options.learning_rate:g})"
    seed = derive_seed("tiny_retriever", job.seed) % 2**32
    set_seed(seed)
    embedding = StaticEmbedding(tokenizer, embedding_dim=options.dimensions)
    torch.nn.init.normal_(embedding.embedding.weight, std=options.initial_deviation)
    model = SentenceTransformer(modules=[embedding], device="cpu", similarity_fn_name="cosine")
    loss = MultipleNegativesRankingLoss(
        model,
        scale=CONTRASTIVE_SCALE,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    anchors, positives = zip(*pairs, strict=True)
    dataset = Dataset.from_dict({"anchor": anchors, "positive": positives})
    trainer = SentenceTransformerTrainer(
        model,
        _arguments(job, seed, len(pairs)),
        train_dataset=dataset,
        loss=loss,
        callbacks=[ProgressCallback(job.progress), FiniteCallback(remedy)],
    )
    log.info("training %d token embeddings", tokenizer.get_vocab_size())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model, [line["loss"] for line in trainer.state.log_history if "loss" in line][-1]


def _arguments(job: Job, seed: int, pairs: int) -> "SentenceTransformerTrainingArguments":
    """Train on the pairs in their order, without checkpoints."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    options: TinyRetrieverOptions = job.options
    return SentenceTransformerTrainingArguments(
        output_dir=str(job.checkpoints),
        max_steps=options.steps,
        per_device_train_batch_size=min(options.batch_size, pairs // options.steps),
        batch_sampler=lambda dataset, **rest: DefaultBatchSampler(
            SequentialSampler(dataset),  # pyrefly: ignore[bad-argument-type]
            **rest,
        ),
        learning_rate=options.learning_rate,
        warmup_steps=options.steps // 10,
        weight_decay=0.01,
        save_strategy="no",
        use_cpu=True,  # faster than moving so few numbers to a GPU
        seed=seed,
        report_to=[],
        logging_nan_inf_filter=False,  # it would hide a loss that is not a number
        logging_steps=max(1, options.steps // 6),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
