"""DPO of the language model, and contrastive training of the retriever."""
