import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from edgeq.errors import InputError
from edgeq.purifiers import VAE, Draw
from edgeq.purifiers.vae import LOG_VARIANCES, VAEPurifier, divergence
from tests.purifiers.conftest import SIDE, TINY_VAE, images, labels


@given(st.floats(-5, 5), st.floats(-6, 6))
def test_the_divergence_is_that_of_torch(mean: float, log_variance: float) -> None:
    m, v = torch.tensor([mean], dtype=torch.float64), torch.tensor([log_variance], dtype=torch.float64)
    expected = kl_divergence(Normal(m, (v / 2).exp()), Normal(torch.zeros_like(m), 1.0)).mean()
    torch.testing.assert_close(divergence(m, v), expected)


def test_the_mean_is_the_latent_and_no_draw_changes_it() -> None:
    vae = _untrained().eval()
    x = images().float() / 127.5 - 1
    mean, log_variance = vae.posterior(x)
    assert mean.shape == log_variance.shape == (6, 4, SIDE // 4, SIDE // 4)
    assert torch.equal(vae.encode(x), mean)
    assert torch.equal(vae(images(), draw=Draw(0)), vae(images(), draw=Draw(1)))
    assert vae.bits_per_image((3, SIDE, SIDE)) == math.inf
    assert vae.not_exportable() == ""
    assert "GroupNorm" in VAE(channels=8, form="paper").build((3, SIDE, SIDE), 4).not_exportable()


def test_a_log_variance_out_of_range_leaves_the_loss_finite() -> None:
    vae = _untrained()
    with torch.no_grad():
        vae.encoder.get_parameter("3.bias")[4:] = 1e4
    log_variance = vae.posterior(images().float() / 127.5 - 1)[1]
    assert float(log_variance.detach().max()) == LOG_VARIANCES[1]
    step = TINY_VAE.objective(vae, 1e-3).step(images(), labels(), done=0.5, draw=Draw(0, shared=False))
    assert math.isfinite(step["loss"])


def test_a_step_draws_from_the_posterior_and_is_a_function_of_the_draw() -> None:
    def losses(seed: int) -> dict[str, float]:
        return TINY_VAE.objective(_untrained(), 1e-3).step(images(), labels(), done=0.5, draw=Draw(seed, shared=False))

    assert losses(0) == losses(0)
    assert losses(0)["kl"] == losses(1)["kl"]
    assert losses(0)["reconstruction"] != losses(1)["reconstruction"]


def test_the_price_of_divergence_lowers_it() -> None:
    reached = []
    for kl in (0.0, 1.0):
        config = VAE(channels=8, blocks=1, latent=4, kl=kl)
        objective = config.objective(_untrained(config), 1e-3)
        objective.optimizers[0].param_groups[0]["lr"] = 3e-3
        for k in range(15):
            values = objective.step(images(16), labels(16), done=0.5, draw=Draw(k, shared=False))
        reached.append(values["kl"])
    assert reached[1] < 0.5 * reached[0]


@pytest.mark.parametrize("wrong", [{"latent": 0}, {"kl": -1.0}, {"kl": math.nan}, {"channels": 7}])
def test_wrong_choices_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        VAE(**wrong)


def _untrained(config: VAE = TINY_VAE) -> VAEPurifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build((3, SIDE, SIDE), 4).train()
