"""AnchorDR (Xie et al., SIGIR 2023), the paper's retriever, as a module of sentence-transformers.

Its published config calls it a T5, which it is not (see `layers`): transformers' T5 loads its file with
only a warning, and returns meaningless vectors. A text's vector is the decoder's only output, at its
start token, so the encoder alone is useless.

Parameters have the names of the published file, which `encoders.anchordr_checkpoint` reads.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from expandr_core.anchordr.layers import MAX_TOKENS, AnchorDRConfig, Decoder, Encoder
from expandr_core.anchordr.tokenizer import BOS, FILE, PAD, AnchorDRTokenizer
from expandr_core.errors import DataError

MODEL_TYPE = "anchordr"


class AnchorDR(InputModule):
    """Texts to vectors: the encoder reads, the decoder answers with one token."""

    __module__ = "expandr_core.anchordr"  # as modules.json of exported models says

    tokenizer: AnchorDRTokenizer  # pyrefly: ignore[bad-override]

    def __init__(self, config: AnchorDRConfig, tokenizer: AnchorDRTokenizer):
        """Create a model with random weights.

        Args:
            config: sizes of the model.
            tokenizer: its tokenizer.

        Raises:
            DataError: if the sizes do not fit together, or the tokenizer has more pieces than the
                embedding has rows.
        """
        super().__init__()
        if config.d_model % config.num_heads or len(tokenizer) > config.vocab_size:
            raise DataError(
                f"AnchorDR of width {config.d_model} with {config.num_heads} heads and "
                f"{config.vocab_size} tokens, the tokenizer has {len(tokenizer)}: these do not fit "
                "together; use the config.json and sp.model of one model"
            )
        self.sizes, self.tokenizer = config, tokenizer
        self.max_seq_length = config.max_seq_length
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Tokenise texts, with the prompt before each if there is one, and pad them on the right."""
        texts = [(prompt or "") + text for text in inputs]
        limit = min(self.max_seq_length, MAX_TOKENS)
        ids = [torch.tensor(each) for each in self.tokenizer(texts, limit)]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)
        return {"input_ids": padded, "attention_mask": (padded != PAD).long()}

    def forward(self, features: dict[str, Any], **kwargs: object) -> dict[str, Any]:
        """Add `sentence_embedding` (texts, d_model) to the features of `preprocess`."""
        is_token = features["attention_mask"]
        encoded = self.encoder(self.shared(features["input_ids"]), is_token)
        start = self.shared(is_token.new_full((len(is_token), 1), BOS))
        features["sentence_embedding"] = self.decoder(start, encoded, is_token)
        return features

    def get_embedding_dimension(self) -> int:
        """Return the size of the vectors."""
        return self.sizes.d_model

    def get_config_dict(self) -> dict[str, Any]:
        """Return the content of config.json, with a `model_type` that nobody takes for a T5."""
        limit = {"max_seq_length": self.max_seq_length}
        return {"model_type": MODEL_TYPE} | asdict(self.sizes) | limit

    def save(self, output_path: str, *args: object, safe_serialization: bool = True) -> None:
        """Write config.json, model.safetensors with encoder and decoder, and sp.model."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)
        self.tokenizer.save(Path(output_path))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: object) -> Self:  # pyrefly: ignore[bad-override]
        """Load a model that `save` wrote.

        Raises:
            DataError: if the weights are not exactly those of the model.
        """
        folder = Path(model_name_or_path, subfolder)
        sizes = json.loads((folder / "config.json").read_text())
        if sizes.pop("model_type", None) != MODEL_TYPE:
            raise DataError(
                f"{folder}/config.json: model_type is not {MODEL_TYPE}; import the model"
            )
        tokenizer = AnchorDRTokenizer(folder / FILE)
        weights = load_file(folder / "model.safetensors")
        return cls.of_weights(AnchorDRConfig(**sizes), tokenizer, weights, folder)

    @classmethod
    def of_weights(
        cls,
        config: AnchorDRConfig,
        tokenizer: AnchorDRTokenizer,
        weights: dict[str, Tensor],
        folder: Path,
    ) -> Self:
        """Create the model from exactly these weights, which come from a folder.

        Raises:
            DataError: if a weight is missing, too many, or of another shape.
        """
        with torch.device("meta"):
            model = cls(config, tokenizer)
        wanted = {name: weight.shape for name, weight in model.state_dict().items()}
        found = {name: weight.shape for name, weight in weights.items()}
        faults = {
            "missing": wanted.keys() - found.keys(),
            "unexpected": found.keys() - wanted.keys(),
            "of another shape": {
                name for name in wanted.keys() & found.keys() if wanted[name] != found[name]
            },
        }
        for fault, names in faults.items():
            if names:
                raise DataError(
                    f"{folder}: {len(names)} of AnchorDR's weights are {fault} "
                    f"({', '.join(sorted(names)[:3])}); get weights and config.json of one model"
                )
        model.load_state_dict(weights, assign=True)
        return model
