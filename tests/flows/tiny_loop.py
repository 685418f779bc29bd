"""One round of the joint loop in miniature; also a program, so that it can be killed.

python tests/flows/tiny_loop.py STORE SUMMARY.json
"""

import sys
from pathlib import Path

from expandr_core.options import (
    DataOptions,
    DemoWorldOptions,
    DPOOptions,
    EvaluateOptions,
    ExpandOptions,
    JointLoopOptions,
    LLMOptions,
    LoopOptions,
    PreferenceOptions,
    RetrieverOptions,
    RetrieverTrainingOptions,
    SamplingOptions,
    TinyLLMOptions,
    TinyRetrieverOptions,
)

ONE = SamplingOptions(max_new_tokens=8, top_p=1.0)
OPTIONS = JointLoopOptions(
    data=DataOptions(dev_share=0, cluster_by="entity"),
    world=DemoWorldOptions(
        instruct_entities=4,
        train_entities=6,
        dev_entities=3,
        test_entities=3,
        questions_per_aspect=1,
    ),
    llm=LLMOptions(
        tiny=TinyLLMOptions(vocabulary=400, hidden_size=32, layers=1, steps=20, batch_size=4)
    ),
    retriever=RetrieverOptions(
        tiny=TinyRetrieverOptions(vocabulary=400, dimensions=16, steps=10, batch_size=8),
        max_tokens=128,
    ),
    expand=ExpandOptions(
        candidates=SamplingOptions(
            samples=4, sampling_temperatures=(0.9, 1.1), max_new_tokens=8, top_p=1.0
        ),
        answer=ONE,
        expansion=ONE,
        max_prompt_tokens=400,
        queries_per_shard=16,
    ),
    preferences=PreferenceOptions(acceptance_value=-2),
    dpo=DPOOptions(
        learning_rate=1e-2, epochs=1, batch_size=4, device_batch_size=4, checkpoint_steps=2
    ),
    training=RetrieverTrainingOptions(
        learning_rate=1e-2, epochs=8, batch_size=4, mining_depth=5, checkpoint_steps=2
    ),
    evaluate=EvaluateOptions(depth=100, greedy=False),
    loop=LoopOptions(rounds=1),
    device="cpu",
)


if __name__ == "__main__":
    from flows.joint_loop import joint_loop

    Path(sys.argv[2]).write_text(joint_loop(OPTIONS, sys.argv[1]).model_dump_json())
