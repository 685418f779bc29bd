"""What ExpandR computes. Nothing here imports Prefect or reads an environment variable.

One room for each noun of the field; a room imports only what stands below it:

    stages          one program for each kind of artifact
    planning demo   what a run will cost; the built-in world
    lineage         how a number came to be, and why two runs differ
    training        DPO, and the retriever's contrastive loss
    evaluation      runs to metrics, tests and comparisons
    retrieval preferences
                    exact search and BM25; rewards and preference pairs
    encoders generation
                    texts to vectors; prompts to texts
    anchordr data   the paper's retriever; collections, triples and datasets
    runtime         how a stage runs
    store           what is kept, and under which key
    options         everything that can be set
"""
