"""What ExpandR computes: one module per idea here, one program per stage in `stages/`.

Nothing here imports Prefect or reads an environment variable. In the order of the data:

    options, artifacts, store      every option; what is kept, under which key, and how it is verified
    manifests, filesystems, s3, leases, read_cache, run_records, garbage
                                   parts of the store; what an outage, a second worker, a full disk do
    stage, child, events, provenance
                                   run a stage program, in this process or in one of its own
    demo_*, bpe, corpus_sample     the built-in world, and tiny models made from any collection's text
    datasets, collection, triples  read raw files; bad rows are named by file and line
    split, examples                who learns from which query
    models                         what a model folder must have
    adapters                       a language model's adapter that is kept apart from it
    control_tokens                 what spells a control token of the model is plain characters
    chat_templates, thoughts       what the options say of a chat template; texts without thoughts
    prompts, generator             the five prompts as token ids; texts sampled from a causal LM
    vllm_generator, vllm_program   the engine vLLM, and what of it runs in its own interpreter
    query_shards                   shards that stay the same when other rows change
    encoder, bulk_encoding         texts to vectors, many at once, and the vector of an expanded query
    known_vectors                  vectors that the store has already, found by content
    retriever_check, portable      a retriever tried before any work; one that opens elsewhere
    rewards, acceptance            reciprocal ranks among the candidates, ties, the pair, if it counts
    pair_audit                     what the pairs teach besides, before anything is trained on them
    lazy_pairs                     how many shards to write for, until there are enough pairs
    training_rows, hard_negatives  what the retriever is trained on, and the batches
    contrastive, mini_batches, ranks, dev_metric, retriever_trainer
                                   its loss; a batch of any size, in several processes; how well it goes
    dpo_trainer                    DPO by TRL's trainer, in several processes, with DeepSpeed
    training, checkpoints          what the trainings share; how they go on after a kill
    search, bm25, terms            exact top-k in blocks; the reference from outside, and its words
    evaluation, metrics, significance, trec
                                   nDCG, MAP, Recall and MRR block by block; paired tests; run files
    beir_datasets, archives, nano_beir
                                   datasets for measuring, by name, and where they come from
    volumes, plan                  what a step's time and disk depend on; what a run will cost
    leakage, leaderboard, leaderboard_text, markdown
                                   what training knew of a query; systems on datasets, ranked
"""
