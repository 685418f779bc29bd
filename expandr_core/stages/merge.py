"""Merge the adapter into the language model, and check that the logits stay the same."""

import logging
import shutil

from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions
from expandr_core.runtime.job import Job
from expandr_core.runtime.model_folders import INDEX, model_files

log = logging.getLogger(__name__)
VERSION = 2
ROLE = "train"
ISOLATION = "always"


class MergeOptions(Options):
    """How the prompt of the check is rendered."""

    chat: ChatOptions = ChatOptions()


OPTIONS = MergeOptions


def run(job: Job) -> None:
    """Write the merged model of `llm` and `adapter`, with all other files of `llm`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    from expandr_core.generation.chat_templates import load_tokenizer
    from expandr_core.generation.prompts import prompt_ids

    options: MergeOptions = job.options
    base = AutoModelForCausalLM.from_pretrained(
        job.inputs["llm"],
        local_files_only=True,
        trust_remote_code=False,
        dtype="auto",
        generation_config=GenerationConfig(),  # its file is copied below, whatever it says
    )
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    adapted = PeftModel.from_pretrained(base, str(job.inputs["adapter"])).eval()
    ids = torch.tensor([prompt_ids(tokenizer, "Please write a passage about the moon.")])
    with torch.inference_mode():
        before = adapted(ids).logits.float()
        merged = adapted.merge_and_unload(safe_merge=True)
        after = merged(ids).logits.float()
    difference = float((after - before).norm() / before.norm())
    tolerance = 1e-4 if base.dtype == torch.float32 else 2e-2  # merged weights are rounded
    if not difference < tolerance:
        raise RuntimeError(
            f"the merged model's logits differ from base + adapter by a relative {difference:.1e} "
            f"(at most {tolerance:.0e} is allowed); the merge is wrong"
        )
    merged.save_pretrained(job.out)
    for name in model_files(job.inputs["llm"]):  # the tokenizer, licence, notice, model card
        path = job.inputs["llm"] / name
        if path.suffix != ".safetensors" and name not in (INDEX, "config.json") and "/" not in name:
            shutil.copyfile(path, job.out / name)
    job.counts["relative_logit_difference"] = difference
    log.info("merged; the relative difference of the logits is %.1e", difference)
