#!/usr/bin/env bash
# Guess: the log shows when training diverges: the loss rises and then becomes NaN.
# Seen (transformers 5.23.0): under `logging_nan_inf_filter`, the Trainer replaces a loss that is not finite with the
# mean of the losses since the last log line. If all of them are NaN, that mean is 0. Once every weight is NaN, the
# log therefore reports a loss of exactly 0 until the end, the lowest of the run. Only `grad_norm` shows the NaN.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, features, labels):
        return {"loss": ((self.layer(features)[:, 0] - labels) ** 2).mean()}


torch.manual_seed(0)
rows = [{"features": row, "labels": row.sum()} for row in torch.randn(80, 4)]
model = Regression()
options = TrainingArguments(
    "out", max_steps=200, per_device_train_batch_size=8, learning_rate=2, lr_scheduler_type="constant", optim="sgd",
    max_grad_norm=0, logging_steps=40, logging_nan_inf_filter=True, save_strategy="no", report_to=[], use_cpu=True,
)
trainer = Trainer(model, options, train_dataset=rows)
trainer.remove_callback(ProgressCallback)
trainer.train()
lines = [line for line in trainer.state.log_history if "loss" in line]
for line in lines:
    print("step {step}: loss {loss}, grad_norm {grad_norm}".format(**line))
dead = all(parameter.isnan().all() for parameter in model.parameters())
print("every weight is NaN:", dead)
assert dead and lines[-1]["loss"] == 0.0 and lines[0]["loss"] > 0, "the behaviour has changed"
PYTHON
