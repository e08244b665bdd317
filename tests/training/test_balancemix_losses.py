"""BalanceMix with another loss than BCE: the pair rule, and the losses that refinement excludes."""

import pytest
import torch

from tests import tiny
from tests.training.baselines import TRAIN, K, asl, make, multi_hot, recorded


@pytest.mark.parametrize("refinement", ["full", "relabelled", "clean"])
def test_refined_pairs_take_the_pair_rule_and_the_random_halfs_weights(tmp_path, refinement):
    options = {"loss": "asl", "relabel_views": "epoch", "relabel_threshold": 0.55, "refinement": refinement}
    trainer = make(tmp_path, "balancemix", learning_rate=0.05, **options)
    statistics, prepare = {}, trainer.prepare_epoch

    def prepare_epoch(epoch, final=False):
        prepare(epoch, final)
        statistics[epoch] = (trainer.label_state.posterior, trainer.label_state.confidence)

    trainer.prepare_epoch = prepare_epoch
    given, met = multi_hot(TRAIN), set()
    for step in recorded(trainer):
        (batch,) = step["batches"]
        pixels, shares = batch["pixel_values"][:, :, 0], batch["mix_lambda"].tolist()
        mixed = [share * x[0] + (1 - share) * x[1] for share, x in zip(shares, pixels, strict=True)]
        logits = step["model"](pixel_values=torch.stack(mixed)).logits.double()
        posterior, confidence = statistics[step["epoch"]] if step["epoch"] else (None, None)
        loss = 0.0
        for i, rows in enumerate(batch["index"].tolist()):
            for k in range(K):
                targets, weight = [], None
                for row in rows:
                    target, own = float(given[row, k]), 1.0
                    if posterior is not None and posterior[row, k] <= 0.5:
                        if refinement != "clean" and confidence[row, k] > 0.55:
                            target = 1.0
                        elif refinement != "clean" and confidence[row, k] < 0.45:
                            target = 0.0
                        else:
                            own = float(posterior[row, k]) if refinement == "full" else 0.0
                    met |= {"weighed"} if own < 1 else set()
                    met |= {"changed"} if target != given[row, k] else set()
                    weight = own if weight is None else weight  # the random half's
                    targets.append(target)
                one, other = (asl(logits[i, k], target) for target in targets)
                loss += weight * (shares[i] * one + (1 - shares[i]) * other)
        assert batch["loss"] == pytest.approx(float(loss.detach()) / 8, rel=1e-4)
    assert met == ({"weighed"} if refinement == "clean" else {"weighed", "changed"})


@pytest.mark.parametrize("loss", ["ll_r", "ll_ct"])
def test_large_losses_and_refinement_exclude_each_other(tmp_path, loss):
    parts = ("Expected `loss` bce, focal or asl", "refinement='full'", f"found '{loss}'", "refinement='none'")
    tiny.refused(ValueError, parts, make(tmp_path, "balancemix", loss=loss).train)
    make(tmp_path, "minority", loss=loss).train()  # without refinement it is a loss like others
