"""Eq. 8–10: states, targets and weights of labels."""

import pytest
import torch

from hf_balancemix.method import AMBIGUOUS, CLEAN, REFINEMENTS, RELABELLED, refine, view_confidence

LETTERS = {"C": CLEAN, "R": RELABELLED, "U": AMBIGUOUS}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_case(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 9, generator=g) < 0.4).long()
    posterior, confidence = torch.rand(2, 200, 9, generator=g, dtype=dtype)
    return labels, posterior, confidence


@pytest.mark.parametrize(("case", "threshold"), [("0.975", 0.975), ("0.55", 0.55), ("boundary_epsilon_0.75", 0.75)])
def test_vector_06(vectors, case, threshold):
    vector = vectors["06_eq8_9_label_states"]
    expected = vector["expected"][case]
    given = expected if "view1" in expected else vector["inputs"]
    view1, view2 = tensor(given["view1"]), tensor(given["view2"])
    torch.testing.assert_close((view1 + view2) / 2, tensor(expected["mean_confidence"]), atol=1e-9, rtol=0)
    from_logits = view_confidence(view1.logit(), view2.logit())
    torch.testing.assert_close(from_logits.double(), tensor(expected["mean_confidence"]), atol=1e-6, rtol=0)
    found = refine(torch.tensor(given["given_labels"]), tensor(given["posterior"]), (view1 + view2) / 2, threshold)
    assert found.targets.tolist() == expected["refined_labels"]
    assert found.state.tolist() == [[LETTERS[letter] for letter in row] for row in expected["state"]]
    torch.testing.assert_close(found.entry_weights, tensor(expected["loss_weight"]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_invariants_of_the_states(dtype):
    labels, posterior, confidence = random_case(dtype)
    found = refine(labels, posterior, confidence, 0.8)
    assert found.targets.dtype == found.entry_weights.dtype == dtype
    assert found.state.dtype == torch.uint8
    clean, relabelled, ambiguous = (found.state == s for s in (CLEAN, RELABELLED, AMBIGUOUS))
    assert clean.any()
    assert relabelled.any()
    assert ambiguous.any()
    assert (clean.int() + relabelled.int() + ambiguous.int() == 1).all()
    assert torch.equal(clean, posterior > 0.5)
    assert (found.targets == labels)[clean | ambiguous].all()
    assert torch.equal(found.targets[relabelled], (confidence[relabelled] > 0.5).to(dtype))
    assert (found.targets != labels)[relabelled].any()
    assert (found.targets == labels)[relabelled].any()  # confirmed labels count as re-labelled
    assert (found.entry_weights[clean | relabelled] == 1).all()
    assert torch.equal(found.entry_weights[ambiguous], posterior[ambiguous])
    assert found.entry_weights[ambiguous].max() <= 0.5


def test_all_clean_posteriors_leave_the_given_labels():
    labels, posterior, confidence = random_case()
    found, plain = (refine(labels, torch.ones_like(posterior), confidence, 0.8, name) for name in ("full", "none"))
    for one, other in ((found.targets, plain.targets), (found.entry_weights, plain.entry_weights)):
        assert torch.equal(one, other)
    assert (found.state == CLEAN).all()


def test_ends_of_the_threshold():
    labels, posterior, confidence = random_case()
    assert (refine(labels, posterior, confidence, 1.0).state != RELABELLED).all()
    confidence[0] = 0.5
    state = refine(labels, torch.zeros_like(posterior), confidence, 0.5).state
    assert torch.equal(state == AMBIGUOUS, confidence == 0.5)


def test_steps_of_the_ablation():
    labels, posterior, confidence = random_case()
    found = {name: refine(labels, posterior, confidence, 0.8, name) for name in REFINEMENTS}
    full, clean = found["full"], posterior > 0.5
    assert torch.equal(found["relabelled"].targets, full.targets)
    assert torch.equal(found["relabelled"].state, full.state)
    assert torch.equal(found["relabelled"].entry_weights, (full.state != AMBIGUOUS).double())
    for name in ("clean", "none"):
        assert torch.equal(found[name].targets, labels.double())
        without = refine(labels, posterior, None, 0.8, name)
        assert torch.equal(without.entry_weights, found[name].entry_weights)
    assert torch.equal(found["clean"].entry_weights, clean.double())
    assert torch.equal(found["clean"].state, torch.where(clean, CLEAN, AMBIGUOUS).to(torch.uint8))
    assert (found["none"].entry_weights == 1).all()
    assert (found["none"].state == CLEAN).all()


def test_states_follow_their_rows():
    labels, posterior, confidence = random_case()
    whole = refine(labels, posterior, confidence, 0.8)
    rows = torch.tensor([5, 3, 100])
    part = refine(labels[rows], posterior[rows], confidence[rows], 0.8)
    assert torch.equal(part.state, whole.state[rows])
    assert torch.equal(part.targets, whole.targets[rows])


def test_inputs_are_not_changed():
    case = random_case()
    kept = [part.clone() for part in case]
    for name in REFINEMENTS:
        refine(*case, 0.8, name)
    assert all(torch.equal(one, other) for one, other in zip(case, kept, strict=True))


def test_view_confidence_is_float32_and_symmetric():
    view1, view2 = torch.tensor([[20.0, -1.0]]).half(), torch.tensor([[20.0, 3.0]]).half()
    found = view_confidence(view1, view2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[1.0, (0.26894142 + 0.95257413) / 2]]))
    assert torch.equal(found, view_confidence(view2, view1))


def test_wrong_calls_are_refused():
    labels, posterior, confidence = random_case()
    with pytest.raises(ValueError, match="full, relabelled, clean, none; got 'all'"):
        refine(labels, posterior, confidence, 0.8, "all")
    for name in ("full", "relabelled"):
        with pytest.raises(ValueError, match="confidence is None"):
            refine(labels, posterior, None, 0.8, name)
