"""The stages sft and kto: what is learned, the loss by hand, and that a kill changes nothing."""

import logging
import threading
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from alignment_world import job_of, put_world, spec_of
from safetensors.torch import load_file
from test_dpo import kill_at_checkpoint

from expandr_core.errors import DataError
from expandr_core.generation.adapters import load_adapted
from expandr_core.runtime.child import run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import run_stage
from expandr_core.stages import dpo, kto, sft
from expandr_core.store.store import Store
from expandr_core.training.alignment import make_trainer


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def trainer_of(stage: Any, store: Store, inputs: dict, **options: Any):
    name = stage.__name__.rpartition(".")[2]
    job = job_of(store, spec_of(name, inputs, **options), store.scratch / "job")
    return make_trainer(stage.prepare(job), "cpu", no_progress)


def log_likelihoods(model, prompt: list[int], text: list[int]) -> torch.Tensor:
    """Return log p of each token of a text, by a plain forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0]


def test_sft_learns_the_chosen_texts_by_the_token_ids_of_dpo_and_no_token_of_a_prompt(
    store, llm_folder
):
    inputs = put_world(store, llm_folder)
    rows = {}
    for stage in (sft, dpo):
        name = stage.__name__.rpartition(".")[2]
        rows[name] = stage.token_rows(job_of(store, spec_of(name, inputs), store.scratch / name))
    for split in ("train", "dev"):
        assert rows["sft"][split] == [
            {
                "input_ids": row["prompt_ids"] + row["chosen_ids"],
                "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
            }
            for row in rows["dpo"][split]
        ]
    trainer = trainer_of(sft, store, inputs)
    for row, batch in zip(
        trainer.train_dataset, trainer.get_train_dataloader().dataset, strict=True
    ):
        assert batch["labels"] == row["labels"]  # TRL left them as they are


def test_the_first_loss_of_sft_is_the_mean_over_the_tokens_of_the_step(store, llm_folder):
    inputs = put_world(store, llm_folder, dpo_dev_share=0)
    trainer = trainer_of(sft, store, inputs, device_batch_size=1)
    model = load_adapted(llm_folder, None, torch.float32).eval()
    tokens = []
    for row in list(trainer.train_dataset)[:4]:
        text = [label for label in row["labels"] if label >= 0]
        tokens.append(log_likelihoods(model, row["input_ids"][: -len(text)], text))
    assert len({len(each) for each in tokens}) > 1
    trainer.train()
    expected = -torch.cat(tokens).mean().item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_desirable_is_the_better_half_of_accepted_queries(store, llm_folder):
    """Of twelve queries the summed similarities of the best are 1.80, 1.79, ..., 1.69."""
    inputs = put_world(store, llm_folder, acceptance_value=1.705)
    assert inputs["pairs"].counts["accepted"] == 10
    found = {
        each.query_id: each
        for each in kto.judged(job_of(store, spec_of("kto", inputs), store.scratch))
    }
    pairs = pq.read_table(store.local(inputs["pairs"]) / "pairs.parquet").to_pylist()
    assert len(found) == 12
    for pair in pairs:
        each = found.pop(pair["query_id"])
        assert each.split == pair["split"]
        assert each.desirable == [True, True, True, False]  # rewards 2, 5/6, 5/6, 1/2
    assert [(id_, each.split, each.desirable) for id_, each in found.items()] == [
        (id_, "train", [False] * 4) for id_ in ("q10", "q11")
    ]


def test_queries_left_out_of_max_pairs_are_no_candidates_and_rejected_ones_are_fewer(
    store, llm_folder
):
    inputs = put_world(store, llm_folder, queries=40, acceptance_value=1.605, max_pairs=5)
    assert inputs["pairs"].counts["accepted"] == 20
    judged = list(kto.judged(job_of(store, spec_of("kto", inputs), store.scratch)))
    accepted = [each for each in judged if any(each.desirable)]
    assert len(accepted) == 5
    assert 1 <= len(judged) - len(accepted) <= 10  # about a quarter of twenty


def test_an_unrelated_text_is_of_another_query(store, llm_folder):
    inputs = put_world(store, llm_folder)
    rows = kto.token_rows(job_of(store, spec_of("kto", inputs), store.scratch))
    texts = {split: [row["completion_ids"] for row in own] for split, own in rows.items()}
    own: dict[tuple[int, ...], list] = {}
    for row in (row for split in rows.values() for row in split):
        own.setdefault(tuple(row["prompt_ids"]), []).append(row)
    assert len(own) == 12
    for group in own.values():
        assert len({tuple(row["KL_completion_ids"]) for row in group}) == 4
    everything = {tuple(text) for each in texts.values() for text in each}
    assert {tuple(row["KL_completion_ids"]) for row in rows["train"]} <= everything


def test_the_loss_of_kto_by_hand(store, llm_folder):
    """Eight texts in batches of two, and one reference point for all of them."""
    inputs = put_world(store, llm_folder, dpo_dev_share=0)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = trainer_of(kto, store, inputs, batch_size=8, device_batch_size=2, **weights)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=generator)
    rows = list(trainer.train_dataset)[:8]
    policy, reference = trainer.model.eval(), load_adapted(llm_folder, None, torch.float32).eval()

    def ratio(row: dict, text: str) -> float:
        pair = (
            log_likelihoods(each, row["prompt_ids"], row[text]).sum()
            for each in (policy, reference)
        )
        return torch.sub(*pair).item()

    point = max(0.0, sum(ratio(row, "KL_completion_ids") for row in rows) / 8)
    losses = []
    for row in rows:
        gain = 0.1 * (ratio(row, "completion_ids") - point) * (1 if row["label"] else -1)
        weight = 1.5 if row["label"] else 0.5
        losses.append(weight * (1 - torch.sigmoid(torch.tensor(gain)).item()))
    assert {row["label"] for row in rows} == {True, False}
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(sum(losses) / 8, rel=1e-4)
    assert first["kl"] == pytest.approx(point, abs=1e-4)


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [("sft", r"lower align\.sft_learning_rate"), ("kto", r"lower dpo\.learning_rate")],
)
def test_a_training_that_diverges_ends_and_keeps_nothing(store, llm_folder, stage, remedy):
    inputs = put_world(store, llm_folder)
    with pytest.raises(DataError, match=rf"diverged: .*{remedy}"):
        run_stage(spec_of(stage, inputs, learning_rate=1e30, epochs=5), store, no_progress)
    assert not store.keys(stage)


def test_kto_says_what_it_needs(store, llm_folder):
    inputs = put_world(store, llm_folder)
    with pytest.raises(DataError, match=r"two texts at a time: raise dpo\.device_batch_size"):
        run_stage(spec_of("kto", inputs, device_batch_size=1), store, no_progress)


def test_dpo_from_an_sft_adapter_is_one_adapter_of_the_same_model(store, llm_folder):
    inputs = put_world(store, llm_folder)
    tuned = run_stage(spec_of("sft", inputs, epochs=4), store, no_progress)
    assert tuned.counts["last/loss"] < tuned.counts["first/loss"]
    both = run_stage(spec_of("dpo", inputs | {"adapter": tuned}), store, no_progress)
    first, sum_of_both = (
        load_file(store.local(each) / "adapter_model.safetensors") for each in (tuned, both)
    )
    for name, weight in first.items():
        if "lora_A" in name:
            assert sum_of_both[name][: len(weight)].equal(weight)
            assert len(sum_of_both[name]) == 2 * len(weight)


@pytest.mark.parametrize("stage", ["sft", "kto"])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, llm_folder, caplog, stage):
    """Kill -9 the real child process as soon as it has a checkpoint, then run the stage again."""
    stores = [Store(str(tmp_path / name)) for name in ("killed", "whole")]
    settings = {"epochs": 5, "evaluation_steps": 2}
    specs = [spec_of(stage, put_world(store, llm_folder), **settings) for store in stores]
    checkpoints = stores[0].scratch / "work" / specs[0].key / "checkpoints"
    killer = threading.Thread(target=kill_at_checkpoint, args=(checkpoints, 2))
    killer.start()
    with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
        run_in_child(specs[0], stores[0], no_progress)
    killer.join()
    caplog.clear()
    with caplog.at_level(logging.INFO, "expandr_core"):
        resumed = run_stage(specs[0], stores[0], no_progress)
    assert "going on from checkpoint-" in caplog.text
    whole = run_stage(specs[1], stores[1], no_progress)
    assert resumed.files == whole.files
    assert resumed.counts == whole.counts
