"""The losses of pairs: two by hand, all as TRL has them, and what is measured is what is trained."""

from math import exp, log
from typing import get_args

import pytest
import torch
from alignment_world import put_world
from pydantic import ValidationError
from test_sft_and_kto import trainer_of

from expandr_core.options.training import DPOTrainingOptions, PairLoss
from expandr_core.stages import dpo
from expandr_core.store.store import Store
from expandr_core.training.pair_losses import LOSSES, Pairs


def pairs(beta: float = 0.1) -> Pairs:
    rewards = torch.tensor([[0.5, -0.5], [0.1, 0.3]], dtype=torch.float64)
    return Pairs(rewards, torch.tensor([[5, 10], [2, 3]]), beta)


def test_two_losses_on_two_pairs_by_hand():
    sigmoid, hinge = (LOSSES[name](pairs()).tolist() for name in ("sigmoid", "hinge"))
    assert sigmoid == pytest.approx([log(1 + exp(-1.0)), log(1 + exp(0.2))])  # margins 1 and -0.2
    assert hinge == pytest.approx([0.0, 1.2])


def test_beta_is_the_tau_of_ipo():
    """Log ratios per token: 5/5 - -5/10 = 1.5 and 1/2 - 3/3 = -0.5; with tau 0.1, 1/(2 tau) is 5."""
    assert LOSSES["ipo"](pairs(beta=0.1)).tolist() == pytest.approx([3.5**2, 5.5**2])
    halved = pairs(beta=0.2)  # the same rewards from half the log ratios; 1/(2 tau) is 2.5
    assert LOSSES["ipo"](halved).tolist() == pytest.approx([1.75**2, 2.75**2])


@pytest.mark.parametrize("ld_alpha", [1.0, 0.25])
def test_every_loss_on_the_dev_pairs_is_trl_s_however_many_are_scored_at_once(
    tmp_path, llm_folder, ld_alpha
):
    store = Store(str(tmp_path))
    inputs = put_world(store, llm_folder, dpo_dev_share=0.5)
    weights = tuple(1 + 0.1 * n for n in range(len(get_args(PairLoss))))
    trainer = trainer_of(
        dpo, store, inputs, loss=get_args(PairLoss), loss_weights=weights, label_smoothing=0.1,
        ld_alpha=ld_alpha, device_batch_size=2,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(7))
    dev = list(trainer.eval_dataset)
    assert len(dev) % 2, "the last batch is smaller"
    names, all_weights = trainer.loss_types, trainer._weights
    trainer.model.eval()
    for chosen in [[name] for name in names] + [names]:
        trainer.loss_types = chosen
        trainer._weights = [all_weights[names.index(name)] for name in chosen]
        batch = trainer.data_collator(dev)
        trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        trainer.loss_weights = trainer._weights
        with torch.no_grad():
            expected = trainer.compute_loss(trainer.model, batch).item()  # all of them in one batch
        trainer._metrics["eval"].clear()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4), chosen


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": ["aot"]}, "aot compares the sorted pairs of a batch"),
        ({"loss": "aot"}, "aot compares the sorted pairs of a batch"),
        ({"loss": ["aot_unpaired", "sft"]}, "aot_unpaired compares the sorted pairs"),
        ({"loss": ["simpo"]}, "Input should be 'sigmoid'"),
        ({"loss": []}, "at least 1 item"),
        ({"loss": ["sft", "sft"]}, "names a loss twice"),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 weights for 2 losses"),
        ({"loss_weights": [0.0]}, "greater than 0"),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0, -1.0]}, "greater than 0"),
        ({"loss": ["exo_pair"]}, "exo_pair needs a label_smoothing above 0"),
        ({"label_smoothing": 0.1}, "only on the losses robust and exo_pair"),
    ],
)
def test_losses_that_cannot_be_trained_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        DPOTrainingOptions(**wrong)


def test_the_name_of_a_loss_alone_is_taken():
    assert DPOTrainingOptions(loss="ipo") == DPOTrainingOptions(loss=("ipo",))  # type: ignore[arg-type]
