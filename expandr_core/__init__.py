"""What ExpandR computes: one module per idea here, one program per stage in `stages/`.

Nothing here imports Prefect or reads an environment variable. In the order of the data:

    options      every option of every stage, typed, with the paper's values as defaults
    store        artifacts: immutable folders with a manifest, found by key and verified by digest
    stage        run one stage program, here or in a child process
    datasets     collections in BEIR layout, training triples, the seeded split
    prompts      the five prompts, the chat template, the removal of preambles
    generator    sample texts from a causal language model
    encoder      texts to vectors; the one `Similarity` of training, reward and evaluation
    rewards      reciprocal ranks of the candidates, ties, preference pairs
    contrastive  the loss of the retriever
    search       exact top-k, in blocks; BM25
    metrics      nDCG, MAP, Recall, MRR from qrels and run; paired tests
"""
