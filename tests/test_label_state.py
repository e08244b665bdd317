"""LabelState: saved and loaded bit for bit, never half, never by unpickling."""

import builtins
import pickle

import pytest
import torch

from hf_balancemix.label_state import FILE_NAME, LabelState

NAMES = ("cat", 'a "quoted"\n<b>', "Ωmega", "x", "y", "z", "seven", "eight", "nine")
RUN = {"seed": 3, "noise": [], "world_size": 1}


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


def test_digest_tells_every_part_apart():
    digests = {state().digest()}
    for name in ("labels", "probs", "class_confidence", "sampling_probability", "posterior", "confidence"):
        changed = state()
        value = getattr(changed, name)
        value.view(-1)[0] = 1 - value.view(-1)[0]
        digests.add(changed.digest())
    changed = state()
    changed.prepared_epoch = 5
    assert len(digests | {changed.digest()}) == 8


def test_posteriors_are_averaged_over_refreshes(tmp_path):
    first = state()
    for value in (1.0, 0.0, 0.5, 0.1):
        first.add_posterior(torch.full((5, 9), value))
    assert first.posterior_count.tolist() == [4]
    torch.testing.assert_close(first.posterior_mean, torch.full((5, 9), 0.4))
    assert first.posterior_mean.dtype == torch.float32
    assert (first.posterior == torch.tensor(0.1)).all()
    first.save(tmp_path, RUN)
    second = LabelState.load(tmp_path)[0]
    assert second.digest() == first.digest()
    for one in (first, second):
        one.add_posterior(torch.full((5, 9), 0.9))
    assert second.digest() == first.digest()
    torch.testing.assert_close(second.posterior_mean, torch.full((5, 9), 0.5))
    second.posterior_count = torch.tensor([1, 2])
    second.save(tmp_path, RUN)
    with pytest.raises(ValueError, match="`posterior_count` has shape"):
        LabelState.load(tmp_path)


def test_a_file_of_an_older_version_begins_its_mean_anew(tmp_path):
    state().save(tmp_path, RUN)
    old = LabelState.load(tmp_path)[0]
    assert old.posterior is not None
    assert old.posterior_mean is None
    new = torch.rand(5, 9)
    old.add_posterior(new)
    assert torch.equal(old.posterior_mean, new)


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
        first.posterior = torch.rand(4, 2)
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
        path.write_bytes(content.replace(b'"format":"1"', b'"format":"9"'))
    with pytest.raises(ValueError, match="Resume from another checkpoint") as caught:
        LabelState.load(tmp_path)
    assert ("found none" if damage == "missing" else "is damaged") in str(caught.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    first = state()
    first.save(tmp_path, RUN)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_balancemix.label_state.save_file", full)
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
