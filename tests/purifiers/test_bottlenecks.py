import pytest
import torch

from edgeq.purifiers.codebook import FSQ, AbstractBottleneck, Codebook


def _codebook() -> Codebook:
    torch.manual_seed(0)
    book = Codebook(12, 5, beta=0.25, vectors=128).train()
    for _ in range(3):
        book.learn(torch.randn(8, 5, 4, 4))
    return book.eval()


def _bottlenecks() -> list[AbstractBottleneck]:
    with torch.random.fork_rng(devices=[]):
        return [_codebook(), FSQ((3, 4, 5)).eval()]


def _latent(dim: int) -> torch.Tensor:
    return torch.randn(4, dim, 3, 2, generator=torch.Generator().manual_seed(1))


def test_the_chosen_codeword_is_the_packages_and_the_nearest() -> None:
    book, latent = _bottlenecks()[0], _latent(5)
    assert isinstance(book, Codebook)
    theirs, index, _ = book.quantizer(latent)
    torch.testing.assert_close(book.choose(latent, 0.0), theirs, atol=1e-6, rtol=0)  # z + (e - z) rounds once
    torch.testing.assert_close(book.indices(latent), index)
    distances = torch.cdist(latent.permute(0, 2, 3, 1).reshape(-1, 5), book.words)
    torch.testing.assert_close(book.indices(latent).flatten(), distances.argmin(1))


def test_fsq_is_the_packages() -> None:
    quantizer = _bottlenecks()[1]
    assert isinstance(quantizer, FSQ)
    assert quantizer.codes == 60
    indices = quantizer.indices(_latent(3))
    assert int(indices.min()) >= 0
    assert int(indices.max()) < 60
    torch.testing.assert_close(quantizer.choose(_latent(3), 0.0), quantizer.quantizer(_latent(3))[0])


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_pass_straight_through_and_soft_choices_become_hard(which: int) -> None:
    bottleneck = _bottlenecks()[which]
    latent = _latent(bottleneck.dim).requires_grad_()
    hard = bottleneck.choose(latent, 0.0)
    (grad,) = torch.autograd.grad(hard.sum(), latent)
    assert bool((grad != 0).any())
    if which == 0:
        torch.testing.assert_close(grad, torch.ones_like(grad))
    soft = bottleneck.choose(latent, 1e-4)
    assert float((soft - hard).detach().abs().median()) < 1e-3
    (grad,) = torch.autograd.grad(bottleneck.choose(latent, 1.0).square().sum(), latent)
    assert bool(grad.isfinite().all())
    assert bool((grad != 0).any())


def test_a_soft_choice_has_the_right_derivative() -> None:
    for bottleneck in _bottlenecks():
        bottleneck.double()
        latent = _latent(bottleneck.dim)[:1, :, :1, :1].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, b=bottleneck: b.choose(z, 0.7), latent)


def test_training_uses_dead_codes_again() -> None:
    with torch.random.fork_rng(devices=[]):
        book = _codebook().train()
        buffers = dict(book.quantizer.named_buffers())
        buffers["_codebook.embed"][0, 3:] = 1000.0  # so far off that nothing chooses them
        buffers["_codebook.cluster_size"][0, 3:] = 0.0
        for _ in range(3):
            book.learn(torch.randn(8, 5, 4, 4))
        assert float(book.words.abs().max()) < 100
