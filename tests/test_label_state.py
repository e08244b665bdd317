"""LabelState: saved and loaded bit for bit, never half, never by unpickling."""

import builtins
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_balancemix import label_packing, label_state
from hf_balancemix.label_files import FILE_NAME
from hf_balancemix.label_state import LabelState
from hf_balancemix.method import refine
from hf_balancemix.training.refresh import state_bytes

NAMES = ("cat", 'a "quoted"\n<b>', "Ωmega", "x", "y", "z", "seven", "eight", "nine")
RUN = {"seed": 3, "noise": [], "world_size": 1}
ERROR, MEAN_ERROR = 0.79 / 510, 0.79 / 8190  # half a step where steps are widest, π/4


def state(n=5):
    generator = torch.Generator().manual_seed(1)
    k = len(NAMES)
    return LabelState(
        labels=torch.randint(0, 2, (n, k), generator=generator, dtype=torch.uint8),
        class_names=NAMES,
        prepared_epoch=4,
        probs=torch.rand(n, k, generator=generator),
        class_confidence=torch.rand(2, k, generator=generator, dtype=torch.float64),
        sampling_probability=torch.rand(n, generator=generator, dtype=torch.float64),
        posterior=torch.rand(n, k, generator=generator),
        confidence=torch.rand(n, k, generator=generator),
    )


def test_round_trip_is_exact(tmp_path):
    first = state()
    first.save(tmp_path, RUN)
    second, run = LabelState.load(tmp_path)
    assert second.digest() == first.digest()
    assert second.class_names == NAMES
    assert run == LabelState.read_run(tmp_path) == RUN
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def tables(n=600, seed=0):
    """Labels and probabilities, many of them near 0, ½, 1 and the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    shape = n, len(NAMES)
    labels = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
    centres = torch.tensor([0.0, 0.025, 0.5, 0.975, 1.0, 0.3])
    near = centres[torch.randint(0, 6, shape, generator=generator)] + 2e-3 * torch.randn(shape, generator=generator)
    spread = torch.rand(shape, generator=generator)
    exact = centres[torch.randint(0, 6, shape, generator=generator)]
    return labels, *(torch.cat([near, spread, exact])[k::3].clamp(0, 1) for k in range(3))


def test_every_table_keeps_its_values_beside_the_others(monkeypatch):
    labels, posterior, confidence, mean = tables()
    for entries in (label_state._CHUNK_ENTRIES, 9 * 7):
        monkeypatch.setattr(label_state, "_CHUNK_ENTRIES", entries)
        packed = LabelState(labels, NAMES)
        packed.posterior_mean, packed.confidence, packed.posterior = mean, confidence, posterior
        assert torch.equal(packed.labels, labels)
        torch.testing.assert_close(packed.posterior, posterior, atol=2 * ERROR, rtol=0)
        torch.testing.assert_close(packed.confidence, confidence, atol=2 * ERROR, rtol=0)
        torch.testing.assert_close(packed.posterior_mean, mean, atol=2 * MEAN_ERROR, rtol=0)
        rows = torch.tensor([[5, 0], [599, 5]])
        assert torch.equal(packed.labels_of(rows), labels[rows])
        assert torch.equal(packed.probabilities_of("posterior", rows), packed.posterior[rows])
        before = packed.labels, packed.posterior, packed.posterior_mean
        packed.confidence = None
        assert packed.confidence is None
        assert packed.probabilities_of("confidence", rows) is None
        assert all(map(torch.equal, before, (packed.labels, packed.posterior, packed.posterior_mean)))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_ends_and_the_middle_are_exact(value):
    packed = LabelState(torch.ones(2, 9), NAMES, posterior=torch.full((2, 9), value))
    packed.posterior_mean = packed.confidence = torch.full((2, 9), value)
    assert all((table == value).all() for table in (packed.posterior, packed.posterior_mean, packed.confidence))


@pytest.mark.parametrize("relabel_threshold", [0.5, 0.5005, 0.501, 0.55, 0.9, 0.975, 0.999, 1.0])
@pytest.mark.parametrize("refinement", ["full", "relabelled", "clean"])
def test_states_and_targets_are_not_rounded(relabel_threshold, refinement):
    labels, posterior, confidence, _ = tables()
    edge = torch.tensor([relabel_threshold, 1 - relabel_threshold])
    edges = torch.cat([edge, torch.nextafter(edge, torch.zeros(2)), torch.nextafter(edge, torch.ones(2))])
    confidence[:6], posterior[:6] = edges[:, None], 0.1
    exact = refine(labels.float(), posterior, confidence, relabel_threshold, refinement)
    packed = LabelState(labels, NAMES, posterior=posterior)
    packed.set_confidence(confidence, relabel_threshold)
    found = refine(packed.labels.float(), packed.posterior, packed.confidence, relabel_threshold, refinement)
    assert torch.equal(found.state, exact.state)
    assert torch.equal(found.targets, exact.targets)
    torch.testing.assert_close(found.entry_weights, exact.entry_weights, atol=2 * ERROR, rtol=0)
    assert torch.equal(found.entry_weights == 1, exact.entry_weights == 1)


def test_a_mean_over_many_refreshes_stays_near_the_exact_one():
    packed, exact = LabelState(torch.zeros(500, 9), NAMES), torch.zeros(500, 9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for refresh in range(300):
        posterior = torch.rand(500, 9, generator=generator) ** 3
        exact += (posterior - exact) / (refresh + 1)
        packed.add_posterior(posterior)
    assert (packed.posterior_mean - exact).abs().max() < 3e-3
    assert (packed.posterior_mean - exact).abs().mean() < 6e-4


def test_memory():
    n, k = 70, 9
    packed = LabelState(torch.zeros(n, k), NAMES)
    assert [tensor.numel() for tensor in packed.stored().values()] == [n * 2]  # bytes of eight labels
    packed.class_confidence = torch.zeros(2, k, dtype=torch.float64)
    packed.sampling_probability = torch.zeros(n, dtype=torch.float64)
    packed.add_posterior(torch.zeros(n, k))
    packed.set_confidence(torch.zeros(n, k), 0.9)
    packed.check_shapes()
    found = sum(tensor.numel() * tensor.element_size() for tensor in packed.stored().values())
    assert found == state_bytes(n, k) == 4 * n * k + 8 * n + 16 * k + 8


@pytest.mark.parametrize("steps", [510, 8190])
def test_what_was_rounded_is_not_rounded_again(steps):
    values = label_packing.decoded_values(steps)
    assert (values.diff() > 0).all()
    assert values[[0, steps // 2, -1]].tolist() == [0, 0.5, 1]
    assert torch.equal(label_packing.encoded(values, steps, 0.5), torch.arange(steps + 1, dtype=torch.int32))


def test_a_file_of_format_1_is_read(tmp_path):
    labels, posterior, confidence, mean = tables()
    bits = torch.from_numpy(np.packbits(labels.numpy(), axis=1))
    statistics = {"posterior": posterior, "confidence": confidence, "posterior_mean": mean, "probs": mean.clone()}
    statistics["posterior_count"] = torch.tensor([3])
    facts = RUN | {"relabel_threshold": 0.975}
    metadata = {"format": "1", "num_rows": "600", "prepared_epoch": "7", "class_names": json.dumps(NAMES)}
    save_file({"labels": bits} | statistics, tmp_path / FILE_NAME, metadata | {"run": json.dumps(facts)})
    old, run = LabelState.load(tmp_path)
    assert (run, old.prepared_epoch, old.class_names, len(old)) == (facts, 7, NAMES, 600)
    new = LabelState(labels, NAMES, 7, **statistics)
    new.set_confidence(confidence, 0.975)
    assert old.digest() == new.digest()
    old.save(tmp_path, run)
    assert LabelState.load(tmp_path)[0].digest() == new.digest()


def test_what_is_no_statistic_or_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="found posteriors"):
        LabelState(torch.zeros(2, 9), NAMES, posteriors=torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"`confidence` has shape \(2, 3\), expected \(2, 9\)"):
        LabelState(torch.zeros(2, 9), NAMES, confidence=torch.zeros(2, 3))
    packed = LabelState(torch.zeros(2, 9), NAMES)
    for tensors, message in [
        ({"labels": torch.zeros(2, 9, dtype=torch.uint8)}, "expected torch.uint8"),
        ({"labels+posterior": torch.zeros(2, 9)}, "expected torch.int32"),
        ({"labels+other": torch.zeros(2, 9, dtype=torch.int32)}, "unknown tensors"),
        ({"labels": torch.zeros(2, 2, dtype=torch.uint8), "other": torch.zeros(1)}, "unknown tensors"),
    ]:
        with pytest.raises(ValueError, match=message):
            packed.restore(tensors)


def test_digest_tells_every_part_apart():
    digests = {state().digest()}
    for name in ("labels", "probs", "class_confidence", "sampling_probability", "posterior", "confidence"):
        changed = state()
        value = getattr(changed, name)
        value.view(-1)[0] = 1 - value.view(-1)[0]
        if name == "labels":
            changed = LabelState(value, NAMES, 4, **changed.statistics())
        else:
            setattr(changed, name, value)
        digests.add(changed.digest())
    changed = state()
    changed.prepared_epoch = 5
    assert len(digests | {changed.digest()}) == 8


def test_posteriors_are_averaged_over_refreshes(tmp_path):
    first = state()
    for value in (1.0, 0.0, 0.5, 0.1):
        first.add_posterior(torch.full((5, 9), value))
    assert first.posterior_count.tolist() == [4]
    torch.testing.assert_close(first.posterior_mean, torch.full((5, 9), 0.4), atol=MEAN_ERROR, rtol=0)
    assert first.posterior_mean.dtype == torch.float32
    torch.testing.assert_close(first.posterior, torch.full((5, 9), 0.1), atol=ERROR, rtol=0)
    first.save(tmp_path, RUN)
    second = LabelState.load(tmp_path)[0]
    assert second.digest() == first.digest()
    for one in (first, second):
        one.add_posterior(torch.full((5, 9), 0.9))
    assert second.digest() == first.digest()
    torch.testing.assert_close(second.posterior_mean, torch.full((5, 9), 0.5), atol=2 * MEAN_ERROR, rtol=0)
    second.posterior_count = torch.tensor([1, 2])
    second.save(tmp_path, RUN)
    with pytest.raises(ValueError, match="`posterior_count` has shape"):
        LabelState.load(tmp_path)


def test_a_file_of_an_older_version_begins_its_mean_anew(tmp_path):
    state().save(tmp_path, RUN)
    old = LabelState.load(tmp_path)[0]
    assert old.posterior is not None
    assert old.posterior_mean is None
    new = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    old.add_posterior(new)
    torch.testing.assert_close(old.posterior_mean, new, atol=MEAN_ERROR, rtol=0)


def test_reset_keeps_the_labels_only(tmp_path):
    fresh = state()
    fresh.reset()
    assert fresh.statistics() == {}
    assert fresh.prepared_epoch == -1
    fresh.save(tmp_path, RUN)
    assert LabelState.load(tmp_path)[0].digest() == fresh.digest()


def test_assign_keeps_the_object():
    first, second = state(), state(6)
    first.assign(second)
    assert first.digest() == second.digest()
    assert len(first) == 6


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "other format", "wrong shape"])
def test_damage_is_one_clear_error(tmp_path, damage):
    first = state()
    if damage == "wrong shape":
        first.probs = torch.rand(4, 2)
    first.save(tmp_path, RUN)
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\x00" * 100)
    elif damage == "other format":
        path.write_bytes(content.replace(b'"format":"2"', b'"format":"9"'))
    with pytest.raises(ValueError, match="Resume from another checkpoint") as caught:
        LabelState.load(tmp_path)
    assert ("found none" if damage == "missing" else "is damaged") in str(caught.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    first = state()
    first.save(tmp_path, RUN)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_balancemix.label_files.save_file", full)
    changed = state()
    changed.prepared_epoch = 9
    with pytest.raises(OSError, match="No space left"):
        changed.save(tmp_path, RUN)
    assert LabelState.load(tmp_path)[0].digest() == first.digest()
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    state().save(tmp_path, RUN)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    LabelState.load(tmp_path)
