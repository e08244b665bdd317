"""Schedule "carry": one view per pass, and the prediction that the last pass made of its own as the second."""

from types import SimpleNamespace

import numpy as np
import torch

from hf_balancemix import BalanceMixTrainer
from hf_balancemix.label_state import LabelState
from hf_balancemix.training import balancemix
from hf_balancemix.training.checkpoints import FINAL_STATE
from hf_balancemix.training.statistics import refresh_statistics, views_of_pass
from tests import tiny

ROWS, STEPS = 24, 3
TRAIN = tiny.tiny_dataset(ROWS)


def make(folder, **changes):
    options = {"relabel_views": "carry", "num_train_epochs": 4, "learning_rate": 0.01, "relabel_threshold": 0.55}
    args = tiny.arguments(folder, **options, **changes)
    return BalanceMixTrainer(tiny.tiny_vit(), args, train_dataset=TRAIN, processing_class=tiny.processor())


def arguments(**changes):
    values = {"relabel_views": "carry", "refinement": "full", "second_sampler": "minority", "minority_score": "eq3"}
    values |= {
        "needs_views": True,
        "streams": False,
        "relabel_threshold": 0.975,
        "min_fit": 4,
        "trust_positives": False,
    }
    values |= {"monotone_posterior": False, "mixture_separation": 0.0, "mixture_disagreement": 0.0}
    return SimpleNamespace(**{**values, "world_size": 1, "process_index": 0, **changes})


def fresh_state(rows, seed=0):
    labels = torch.randint(0, 2, (rows, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return LabelState(labels, tuple("abcde"))


def parts(logits):
    return zip(torch.arange(len(logits)).split(7), logits.split(7), strict=True)


def test_a_refresh_by_hand(tmp_path, monkeypatch):
    """Of each pass of a run the confidences of labels and classes."""
    passes, original = [], balancemix.refresh_statistics

    def recorded(state, args, batches, refines, final):
        batches = list(batches)
        found = original(state, args, batches, refines, final)
        passes.append((torch.cat([logits for _, logits in batches]).double().numpy(), state.statistics()))
        return found

    monkeypatch.setattr(balancemix, "refresh_statistics", recorded)
    trainer = make(tmp_path)
    trainer.train()
    labels = trainer.label_state.labels.numpy()
    assert [logits.shape[1] for logits, _ in passes] == [2, 1, 1, 2]
    for i, (logits, found) in enumerate(passes):
        first = logits[:, 0]
        second = logits[:, 1] if i in (0, 3) else passes[i - 1][0][:, 0].astype(np.float16)
        probs = [1 / (1 + np.exp(-view.astype(np.float64))) for view in (first, second)]
        mean = (probs[0] + probs[1]) / 2
        np.testing.assert_allclose(found["confidence"], mean, atol=0.005)
        presence = [mean[labels[:, k] == 1, k].mean() for k in range(5)]
        absence = [(1 - mean)[labels[:, k] == 0, k].mean() for k in range(5)]
        np.testing.assert_allclose(found["class_confidence"], [absence, presence], atol=1e-6)
        if i in (1, 2):
            np.testing.assert_array_equal(found["carried"], first.astype(np.float16))
            assert np.abs(second - passes[i - 1][0][:, 0]).max() > 0  # it is rounded
    moved = np.abs(passes[2][0][:, 0] - passes[1][0][:, 0]).max()
    assert moved > 0.05  # else the pass before last would do as well


def test_one_view_and_the_carried_one_are_two():
    """Statistics are those of "reuse" whose second view has the logits that were carried."""
    generator = torch.Generator().manual_seed(3)
    views = 3 * torch.randn(4, 40, 1, 5, generator=generator)
    carry, reuse = fresh_state(40), fresh_state(40)
    assert views_of_pass(carry, arguments(), True, False) == (False, 2)
    refresh_statistics(carry, arguments(), parts(torch.cat([views[0], views[1]], dim=1)))
    refresh_statistics(reuse, arguments(relabel_views="reuse"), parts(torch.cat([views[0], views[1]], dim=1)))
    assert torch.equal(carry.carried, views[0, :, 0].half())
    for one, before in ((2, 0), (3, 2)):
        assert views_of_pass(carry, arguments(), True, False) == (False, 1)
        refresh_statistics(carry, arguments(), parts(views[one]))
        both = torch.cat([views[one], views[before].half().float()], dim=1)
        refresh_statistics(reuse, arguments(relabel_views="reuse"), parts(both))
        expected = reuse.statistics()
        assert {"posterior", "posterior_mean", "confidence", "sampling_probability"} < expected.keys()
        found = carry.statistics()
        assert found.pop("carried").shape == (40, 5)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert views_of_pass(carry, arguments(), True, True) == (False, 2)
    refresh_statistics(carry, arguments(), parts(views[:2, :, 0].transpose(0, 1)), final=True)
    assert carry.carried is None


def test_what_half_precision_cannot_hold_is_its_largest():
    state = fresh_state(40)
    huge = torch.linspace(-1e6, 1e6, 40).view(40, 1, 1).expand(40, 2, 5)
    refresh_statistics(state, arguments(), parts(huge))
    assert state.carried.abs().max() == 65504
    refresh_statistics(state, arguments(), parts(huge[:, :1]))
    assert all(value.isfinite().all() for value in state.statistics().values())


def test_resumed_anywhere_is_the_same_run(tmp_path):
    alone = make(tmp_path / "alone", save_strategy="steps", save_steps=1)
    alone.train()
    weights, final = tiny.weights_of(alone.model), LabelState.load(tmp_path / "alone" / FINAL_STATE)[0].digest()
    for step in range(1, 4 * STEPS):
        held, _ = LabelState.load(tmp_path / "alone" / f"checkpoint-{step}")
        assert (held.carried is not None) == (step > STEPS)  # epoch 0 is warm-up
        resumed = make(tmp_path / f"resumed-{step}")
        resumed.train(resume_from_checkpoint=tmp_path / "alone" / f"checkpoint-{step}")
        assert tiny.same_weights(tiny.weights_of(resumed.model), weights)
        assert resumed.label_state.digest() == final
