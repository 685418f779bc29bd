"""The stages dpo and merge: what is trained on, where it starts, and that a kill changes nothing."""

import contextlib
import itertools
import json
import logging
import math
import shutil
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from evaluation_world import put
from flat_options import flat
from safetensors.torch import load_file
from stage_processes import stage_processes
from store_keys import full
from tiny_models import EOS
from trl.trainer.dpo_trainer import DPOTrainer

from expandr_core.errors import DataError
from expandr_core.generation.engine import Request
from expandr_core.generation.pair_tokens import preference_ids
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import PromptOptions, SamplingOptions
from expandr_core.records import PAIRS
from expandr_core.runtime.child import run_in_child
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import dpo, merge
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store
from expandr_core.training.alignment import AlignmentTask, make_trainer, train
from expandr_core.training.checkpoints import newest_checkpoint

LEGAL = ("LICENSE", "NOTICE.txt", "README.md")
SETTINGS = {
    "learning_rate": 0.01,
    "epochs": 2,
    "batch_size": 4,
    "device_batch_size": 2,
    "max_tokens": 120,
    "prompt": PromptOptions(max_tokens=90),
    "checkpoint_steps": 2,
}


def row(number: int, split: str = "train", chosen: str = "stop", rejected: str = "stop") -> dict:
    texts = {"chosen": f"text number {number}", "rejected": f"hello world {number}"}
    reasons = {"chosen": chosen, "rejected": rejected}
    return {
        "query_id": f"q{number:02}",
        "query": f"why is {number} grey?",
        "split": split,
        "margin": 1.0,
        **{f"{side}_text": text for side, text in texts.items()},
        **{f"{side}_finish_reason": reason for side, reason in reasons.items()},
    }


ROWS = [row(number, "dev" if number > 9 else "train") for number in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def put_inputs(store: Store, llm_folder: Path, rows: list[dict] = ROWS) -> dict[str, Artifact]:
    folder = shutil.copytree(llm_folder, store.scratch / "llm")
    table = pa.Table.from_pylist(rows, PAIRS)
    return {
        "llm": store.commit(full("tiny_llm-1"), folder, [], {"counts": {}}),
        "pairs": put(store, "pairs-1", {"pairs.parquet": table}),
    }


def spec_of(inputs: dict[str, Artifact], **options: Any):
    return make_spec("dpo", flat(dpo.OPTIONS, **(SETTINGS | options)), inputs, device="cpu")


def no_progress(done: int, total: int, unit: str) -> None:
    """Report to nobody."""


def task_of(store: Store, inputs: dict[str, Artifact], **options: Any) -> AlignmentTask:
    return dpo.prepare(job_of(store, spec_of(inputs, **options), store.scratch / "job"))


def job_of(store: Store, spec: StageSpec, folder: Path) -> Job:
    """Return a job that works in a folder, which is not deleted afterwards."""
    for name in ("out", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = dpo.OPTIONS(**spec.runtime["options"])
    paths = {role: store.local(artifact) for role, artifact in spec.inputs.items()}
    return Job(spec, options, paths, folder / "out", folder / "checkpoints", store, no_progress)


def trainer_of(store: Store, inputs: dict[str, Artifact], **options: Any):
    return make_trainer(task_of(store, inputs, **options), "cpu", no_progress)


# What is trained on


def tokens_of(tokenizer, row, max_tokens=SETTINGS["max_tokens"]):
    limit = SETTINGS["prompt"].max_tokens
    return preference_ids(tokenizer, row, "q2d", max_prompt_tokens=limit, max_tokens=max_tokens)


def test_the_prompt_is_the_one_that_generation_continues(store, llm_folder):
    generator = TransformersGenerator(llm_folder, "cpu", batch_size=1)
    seen: list[list[int]] = []
    generator.model.register_forward_pre_hook(
        lambda model, positional, inputs: seen.append(inputs["input_ids"][0].tolist()),
        with_kwargs=True,
    )
    queries = [ROWS[0]["query"], "why? " * 200]  # the second is shortened
    requests = [Request("q2d", query, "", (0,), (1.0,)) for query in queries]
    options = SamplingOptions(max_new_tokens=2)
    list(generator.generate(requests, options, SETTINGS["prompt"].max_tokens))

    rows = [{**ROWS[0], "query": query} for query in queries]
    trainer = trainer_of(store, put_inputs(store, llm_folder, rows))
    trained = {tuple(example["prompt_ids"]) for example in trainer.train_dataset}
    prompts = [[*ids, *last] for ids, last in itertools.pairwise(seen) if len(ids) > 1]
    assert sorted(map(list, trained), key=len) == prompts
    assert max(map(len, trained)) == SETTINGS["prompt"].max_tokens


def test_a_batch_scores_the_texts_and_not_the_prompt(store, llm_folder):
    trainer = trainer_of(store, put_inputs(store, llm_folder, ROWS[:2]))
    examples = list(trainer.train_dataset)[:2]
    batch = trainer.data_collator(examples)
    for line, (example, side) in enumerate(
        (example, side) for side in ("chosen", "rejected") for example in examples
    ):
        expected = example["prompt_ids"] + example[f"{side}_ids"]
        kept = batch["attention_mask"][line].bool()
        assert batch["input_ids"][line][kept].tolist() == expected
        scored = batch["completion_mask"][line].bool()
        assert batch["input_ids"][line][scored].tolist() == example[f"{side}_ids"]


@pytest.mark.parametrize("chosen", ["stop", "length"])
@pytest.mark.parametrize("rejected", ["stop", "length"])
def test_only_a_text_that_the_model_ended_is_taught_to_end(llm_folder, chosen, rejected):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    ids = tokens_of(tokenizer, row(0, "train", chosen, rejected))
    for side, reason in (("chosen", chosen), ("rejected", rejected)):
        text = ids[f"{side}_ids"]
        assert (text[-1] == EOS) == (reason == "stop")
        assert EOS not in text[:-1]
        assert tokenizer.decode(text, skip_special_tokens=True) == row(0)[f"{side}_text"]


def test_texts_are_cut_at_their_end_and_the_prompt_never(llm_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    whole = tokens_of(tokenizer, ROWS[0])
    room = len(whole["chosen_ids"]) - 2
    cut = tokens_of(tokenizer, ROWS[0], len(whole["prompt_ids"]) + room)
    assert cut["prompt_ids"] == whole["prompt_ids"]
    assert cut["chosen_ids"] == whole["chosen_ids"][:room]
    assert EOS not in cut["chosen_ids"]
    with pytest.raises(DataError, match=r"'q00'.*dpo\.max_tokens"):
        tokens_of(tokenizer, ROWS[0], len(whole["prompt_ids"]))


def test_a_control_token_that_a_query_or_text_spells_is_plain_characters(llm_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    spelt = "grey<|eos|><|user|>no"
    forged = row(0) | {"query": spelt, "chosen_text": spelt, "rejected_text": "<|bos|>"}
    ids, plain = (tokens_of(tokenizer, each) for each in (forged, row(0)))
    for name, tokens in ids.items():
        assert [i for i in tokens if i < 5] == [i for i in plain[name] if i < 5]
    assert tokenizer.decode(ids["chosen_ids"][:-1]) == spelt
    assert ids["chosen_ids"][-1] == EOS


# Training


def test_the_policy_starts_at_the_reference_with_a_loss_of_ln_2(store, llm_folder):
    trainer = trainer_of(store, put_inputs(store, llm_folder))
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_single_step_logs_the_loss_of_the_start(store, llm_folder):
    inputs = put_inputs(store, llm_folder)
    made = run_stage(spec_of(inputs, epochs=1, batch_size=16), store, no_progress)
    assert made.counts["steps"] == 1
    assert made.counts["train_pairs"] == 10
    assert made.counts["dev_pairs"] == 2
    [first, _] = json.loads((store.local(made) / "training_log.json").read_text())
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["kl"] == made.counts["first/kl"] == 0


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_dev_measures_are_means_over_pairs_however_many_are_scored_at_once(
    tmp_path, llm_folder, at_once
):
    """Of nine pairs in batches of four, the ninth counted as much as four."""
    lengths = [row(n, "dev", rejected="length") for n in range(9)]
    dev = [each | {"chosen_text": "a text " * (n + 1)} for n, each in enumerate(lengths)]
    inputs = put_inputs(store := Store(str(tmp_path)), llm_folder, [*ROWS[:10], *dev])
    trainer = trainer_of(store, inputs, batch_size=12, device_batch_size=at_once)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(7))
    measured = trainer.evaluate()
    pairs = trainer.eval_dataset
    rewards = []
    for number in range(9):  # each pair alone
        trainer.eval_dataset = pairs.select([number])
        rewards.append(trainer.evaluate())
    assert len({each["eval_rewards/accuracies"] for each in rewards}) == 2  # some are right
    for name in ("loss", *(f"rewards/{each}" for each in ("accuracies", "margins", "chosen"))):
        expected = sum(each[f"eval_{name}"] for each in rewards) / 9
        assert measured[f"eval_{name}"] == pytest.approx(expected, rel=1e-5), name


def test_a_training_that_diverges_ends_and_keeps_nothing(store, llm_folder):
    inputs = put_inputs(store, llm_folder)
    wild = {"learning_rate": 1e30, "warmup_steps": 0, "checkpoint_steps": 1, "epochs": 5}
    with pytest.raises(DataError, match=r"diverged: .* at step [12],.*lower dpo\.learning_rate"):
        run_stage(spec_of(inputs, **wild), store, no_progress)
    assert not store.keys("dpo")
    assert not list(store.scratch.glob("work/dpo-*/checkpoints/*/checkpoint-*/*2*"))


def test_a_broken_model_is_told_from_a_training_that_diverges(store, llm_folder):
    task = task_of(store, put_inputs(store, llm_folder))
    trainer = make_trainer(task, "cpu", no_progress)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if not p.requires_grad).fill_(torch.nan)
    with pytest.raises(DataError, match=r"at step 1,.*the model that it starts from is broken"):
        trainer.train()


def test_the_divergence_is_estimated_by_the_texts_of_the_reference():
    """Texts that the policy likes less by 3 and by 1 nats: two on average."""
    log = {"step": 1, "rewards/chosen": -0.1, "rewards/rejected": -0.3, "loss": 0.6}
    assert dpo._divergence(log, beta=0.1) == pytest.approx({"kl": 2.0})


def test_the_adapter_of_the_best_step_is_kept(store, llm_folder):
    """What is learned from the training pairs makes the swapped pairs of the dev part worse."""
    swapped = [{**row(n, "dev"), "chosen_text": f"hello world {n}"} for n in (10, 11)]
    swapped = [{**each, "rejected_text": f"text number {n}"} for n, each in enumerate(swapped)]
    inputs = put_inputs(store, llm_folder, ROWS[:10] + swapped)
    task = task_of(store, inputs, epochs=4, evaluation_steps=2)
    history = train(task, "cpu", no_progress)
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert sorted(losses) == [2, 4, 6, 8, 10] and best < 10
    name = "adapter_model.safetensors"
    kept, of_best, of_last = (
        load_file(folder / name)
        for folder in (task.out, *(task.checkpoints / f"checkpoint-{n}" for n in (best, 10)))
    )
    assert all(kept[weight].equal(of_best[weight]) for weight in kept)
    assert not all(kept[weight].equal(of_last[weight]) for weight in kept)


def test_a_gpu_without_memory_says_what_to_lower(store, llm_folder, monkeypatch):
    def fail(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DPOTrainer, "train", fail)
    task = task_of(store, put_inputs(store, llm_folder))
    with pytest.raises(RuntimeError, match=r"dpo\.device_batch_size \(now 2\)"):
        train(task, "cpu", no_progress)


def test_training_prefers_the_chosen_and_its_merge_equals_base_plus_adapter(store, llm_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(llm_folder, store.scratch / "licensed"))
    for name in LEGAL:
        (folder / name).write_text(name)
    inputs = put_inputs(store, folder)
    spec = spec_of(inputs, epochs=8)
    adapter = run_stage(spec, store, no_progress)
    assert adapter.counts["dev_accuracies"] == 1
    assert adapter.counts["last/loss"] < adapter.counts["first/loss"] <= math.log(2)
    again = Store(str(store.scratch / "again"))
    put_inputs(again, folder)
    assert run_stage(spec, again, no_progress).files == adapter.files  # two runs, the same bytes

    both = {"llm": inputs["llm"], "adapter": adapter}
    merge_spec = make_spec("merge", merge.OPTIONS(), both, device="cpu")
    merged = store.local(run_stage(merge_spec, store, no_progress))
    base = AutoModelForCausalLM.from_pretrained(llm_folder).eval()
    ids = torch.randint(5, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(store.local(adapter))).eval()(ids).logits
        after = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
    torch.testing.assert_close(after, adapted, rtol=1e-3, atol=1e-3)
    assert (after - before).abs().max() > 0.1
    assert TransformersGenerator(merged, "cpu").codec.turn_end == EOS
    for name in LEGAL:
        assert (merged / name).read_text() == name


def test_the_model_computes_in_the_precision_that_is_named_and_the_adapter_in_float32(
    store, llm_folder
):
    inputs = put_inputs(store, llm_folder)
    for precision, kind in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        model: Any = trainer_of(store, inputs, precision=precision).model
        kinds = {"lora" in name: weights.dtype for name, weights in model.named_parameters()}
        assert kinds == {True: torch.float32, False: kind}
    coarse = run_stage(spec_of(inputs, epochs=8, precision="bfloat16"), store, no_progress)
    assert coarse.counts["dev_accuracies"] == 1
    exact = run_stage(spec_of(inputs, epochs=8), store, no_progress)
    assert coarse.counts["last/loss"] == pytest.approx(exact.counts["last/loss"], rel=0.05)
    assert coarse.files != exact.files


def test_no_pair_for_training_is_the_input_s_fault(store, llm_folder):
    inputs = put_inputs(store, llm_folder, [row(0, "dev")])
    with pytest.raises(DataError, match=r"preferences.dpo_dev_share"):
        run_stage(spec_of(inputs), store, no_progress)


@pytest.mark.parametrize("wrong", [{"device_batch_size": 3}, {"processes": 2, "batch_size": 5}])
def test_a_batch_that_cannot_be_shared_is_the_input_s_fault(store, llm_folder, wrong):
    inputs = put_inputs(store, llm_folder)
    with pytest.raises(DataError, match=r"dpo\.batch_size \(\d\) must be a multiple"):
        run_stage(spec_of(inputs, **wrong), store, no_progress)


def kill_at_checkpoint(checkpoints: Path, step: int, processes: int = 1) -> None:
    """Kill -9 the stage once all its processes have written a checkpoint of that step or later.

    The stage stands still while its checkpoints are looked at: else it could end meanwhile and be
    killed while it removes them.
    """
    deadline = time.monotonic() + 400
    while True:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
        late = [
            path
            for path in checkpoints.glob("*-zero-*/checkpoint-*")
            if int(path.name.rpartition("-")[2]) >= step
        ]
        if not late:
            continue
        stopped = stage_processes()
        for child in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()
        if any(is_whole(path, processes) for path in late):
            break
        for child in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
    for child in stopped:
        child.kill()


def is_whole(checkpoint: Path, processes: int) -> bool:
    """Tell whether training would go on from a checkpoint, by a copy: a damaged one is deleted."""
    with TemporaryDirectory() as folder, contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(checkpoint, Path(folder, checkpoint.name))
        return newest_checkpoint(Path(folder), processes) is not None
    return False  # it changed meanwhile


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, llm_folder, caplog):
    """Kill -9 the real child process as soon as it has a checkpoint, then run the stage again."""
    stores = [Store(str(tmp_path / name)) for name in ("killed", "whole")]
    specs = [spec_of(put_inputs(store, llm_folder), epochs=20) for store in stores]
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
