"""Every option of every stage, in the order of the data. The same classes are Prefect's form.

    data          what is searched and learned from
    generation    the language model, its engine, and what it writes
    retriever     the dense retriever, and how texts become vectors
    preferences   which candidates become pairs
    training      DPO, and the retriever's training
    evaluation    how systems are measured and compared
    gate          which queries are expanded, and with what weight
    loop          all of it together

Defaults are the paper's (Yao et al., EMNLP 2025, as its code runs). A field declared with `runtime`
does not change an artifact's bytes and therefore stays out of its key.
"""
