"""A Llama of random weights, and its tokenizer: milliseconds a text, and everything a real one has."""

from itertools import pairwise
from pathlib import Path

TEXTS = ["hello world this is a test of text", "please write a passage to answer the question"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4


def make_tokenizer(template: str | None = TEMPLATE, adds_bos: bool = False):
    """Make a byte-level BPE tokenizer with a chat template.

    Args:
        template: the chat template.
        adds_bos: let the tokenizer, not only the template, begin a sequence.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 20, trainer)
    if adds_bos:
        bpe.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def save_llm(folder: Path, seed: int = 0, heads: int = 2, context: int = 512) -> Path:
    """Save a Llama of two layers with random weights, wide enough that texts differ.

    Args:
        folder: where.
        seed: of the weights.
        heads: that share the width of 32; vLLM on a CPU wants 1.
        context: longest prompt and text together.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_retriever(folder: Path, dimensions: int = 16) -> Path:
    """Save a retriever that averages a random vector of each of those tokens; any text has some."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = make_tokenizer().backend_tokenizer
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(tokenizer.get_vocab_size(), dimensions, generator=generator)
    embedding = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[embedding], device="cpu").save(str(folder))
    return folder


def save_parrot(folder: Path, tokenizer, text: list[int]) -> Path:
    """Save a Llama that after the assistant's token, or after any token of its own, writes the next.

    Args:
        folder: where.
        tokenizer: whose template ends a prompt with the token that `text` begins with.
        text: the last token of every prompt and the tokens that follow it, no two of them the same.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1 if "norm" in name else 0)
        for place, (token, following) in enumerate(pairwise(text)):
            model.model.embed_tokens.weight[token, place] = 1
            model.lm_head.weight[following, place] = 100
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(llm: Path, folder: Path, seed: int, rank: int, targets: list[str]) -> Path:
    """Save an adapter of a language model whose weights all matter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llm), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder
