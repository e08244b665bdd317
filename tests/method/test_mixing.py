"""Eq. 5."""

import numpy as np
import pytest
import torch

from hf_balancemix.method import draw_lambda, fold_lambda, mix


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_vector_05(vectors):
    given, expected = vectors["05_eq5_mixing"]["inputs"], vectors["05_eq5_mixing"]["expected"]
    share = fold_lambda(tensor(given["lambda_prime"]))
    for actual, name in (
        (share, "lambda"),
        (mix(tensor(given["x_R"]), tensor(given["x_M"]), share), "x_mix"),
        (mix(tensor(given["y_R"]), tensor(given["y_M"]), share), "y_mix"),
    ):
        torch.testing.assert_close(actual, tensor(expected[name]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4, 5)])
def test_mix_broadcasts_over_trailing_dimensions_and_keeps_the_dtype(shape, dtype):
    g = torch.Generator().manual_seed(0)
    random_half, minority_half = torch.rand(2, *shape, generator=g, dtype=torch.float64).to(dtype)
    share = tensor([1.0, 0.6, 0.5])
    mixed = mix(random_half, minority_half, share)
    assert mixed.dtype == dtype
    for row in range(3):
        exact = share[row] * random_half[row].double() + (1 - share[row]) * minority_half[row].double()
        # Half precision is rounded once, at the end: a quarter of eps below 1. The others may round at each operation.
        roundings = 0.26 if dtype.itemsize == 2 else 1
        torch.testing.assert_close(mixed[row].double(), exact, atol=roundings * torch.finfo(dtype).eps, rtol=0)
    assert torch.equal(mixed[0], random_half[0])


def test_swapping_the_halves_matters_unless_lambda_is_one_half():
    g = torch.Generator().manual_seed(1)
    one, other = torch.rand(2, 2, 5, generator=g)
    share = torch.tensor([0.5, 0.8])
    forth, back = mix(one, other, share), mix(other, one, share)
    assert torch.equal(forth[0], back[0])
    assert (forth[1] != back[1]).all()


@pytest.mark.parametrize(("alpha", "mean"), [(1.0, 0.75), (2.0, 0.6875), (4.0, 0.6367), (8.0, 0.5982)])
def test_mean_of_lambda(alpha, mean):
    share = draw_lambda(alpha, range(4000))
    assert share.dtype == torch.float64
    assert ((share >= 0.5) & (share <= 1)).all()
    assert float(share.mean()) == pytest.approx(mean, abs=4 * float(share.std()) / 4000**0.5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_unfolded_lambda_is_the_beta_draw_itself(alpha):
    share = draw_lambda(alpha, range(4000), folded=False)
    assert share.dtype == torch.float64
    assert ((share >= 0) & (share <= 1)).all()
    assert torch.equal(fold_lambda(share), draw_lambda(alpha, range(4000)))
    assert float(share[7]) == np.random.default_rng(7).beta(alpha, alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(share.mean()) == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
    assert float(share.var()) == pytest.approx(variance, rel=0.1)
    assert abs(int((share < 0.5).sum()) - 2000) < 4 * 1000**0.5


def test_lambda_depends_on_its_own_seed_alone():
    share = draw_lambda(4.0, [5, 9, 2**62])
    assert share.unique().numel() == 3
    assert torch.equal(draw_lambda(4.0, [2**62, 5]), share[[2, 0]])
    assert draw_lambda(4.0, []).shape == (0,)


def test_alpha_zero_mixes_nothing():
    for folded in (True, False):
        assert draw_lambda(0.0, [1, 2], folded).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_impossible_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="mix_alpha"):
        draw_lambda(alpha, [0])


def test_mix_refuses_what_it_would_mix_wrongly():
    with pytest.raises(ValueError, match=r"\(2, 3\) for the random half and \(2, 1\)"):
        mix(torch.ones(2, 3), torch.ones(2, 1), torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2,\), got \(3,\)"):
        mix(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="int64"):
        mix(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3), torch.ones(2))
