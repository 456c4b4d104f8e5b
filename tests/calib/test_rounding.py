from itertools import product as every
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.calib import calibrate, learn_rounding, rounding
from edgeq.calib.rounding import choose_codes, input_moments
from edgeq.calib.walk import deployed_units, evaluating, unpacked
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.weighted import WeightedUnit


def errors(q: torch.Tensor, z: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ri,ij,rj->r", q - z, h, q - z)


@pytest.mark.parametrize("steps", [0, 100])
def test_a_layer_whose_optimum_is_known(steps: int) -> None:
    """Inputs that are nearly one and the same: only the sum of a row matters. 4 * 0.4 = 1.6 is best rounded to 2."""
    h = torch.ones(4, 4) + 0.01 * torch.eye(4)
    z = torch.full((3, 4), 0.4)
    codes = choose_codes(z, h, (-7, 7), steps=steps)
    assert codes.sum(1).tolist() == [2, 2, 2]


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_near_the_best_of_all_and_never_worse_than_nearest(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 6, generator=generator) + 1
    h, z = x.T @ x / 20, 3 * torch.randn(2, 6, generator=generator)
    lo, hi = -3, 3
    codes = choose_codes(z, h, (lo, hi), steps=60)
    base = z.floor().clamp(lo, hi - 1)
    assert ((codes == base) | (codes == base + 1)).all()
    got, nearest = errors(codes, z, h), errors(z.round().clamp(lo, hi), z, h)
    best = torch.stack([errors(base + torch.tensor(ups), z, h) for ups in every((0.0, 1.0), repeat=6)]).amin(0)
    assert (got <= nearest * (1 + 1e-4) + 1e-5).all()  # float32 forms, compared in another order
    assert (got >= best * (1 - 1e-4) - 1e-5).all()
    assert (got <= best * 3 + 0.5).all()  # a local search: near, not equal


def test_groups_at_once_are_groups_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 9, 40, generator=generator).relu()
    h, z = x @ x.mT / 40, 3 * torch.randn(5, 2, 9, generator=generator)
    together = choose_codes(z, h, (-7, 7), steps=50)
    assert torch.equal(together, torch.stack([choose_codes(*one, (-7, 7), steps=50) for one in zip(z, h, strict=True)]))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_the_form_is_the_layers_error(images, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, **options), nn.Flatten(), nn.LazyLinear(2))
    model = nn.Sequential(*layers).eval()
    model(torch.zeros(1, 3, 8, 8))
    net = multibit(model, image_shape=(3, 8, 8), bits=(32, 4))
    calibrate(net, images)
    with evaluating(net, 4):
        for _, unit, batches in deployed_units(net, images, bits=4, batch_size=10):
            if tuple(unit.state_dict().get("weight", torch.zeros(0)).shape)[:1] != (6,):
                continue
            assert isinstance(unit, WeightedUnit)
            h = input_moments(unit, [x for (x,) in batches], centred=False)
            delta = torch.randn_like(unit.weight)
            rows = delta.flatten(1).chunk(len(h))
            form = torch.cat([errors(r, torch.zeros_like(r), m) for r, m in zip(rows, h, strict=True)])
            x = torch.cat([unpacked(x).codes for (x,) in batches])
            y = F.conv2d(x, delta, None, **{"padding": 0, **options})
            torch.testing.assert_close(form, y.square().mean((0, 2, 3)), rtol=1e-4, atol=0)  # float32 sums
            return
    raise AssertionError("the layer was not found")


def test_every_layer_gains_and_the_shared_weights_stay(net, images) -> None:
    calibrate(net, images)
    weights = {name: unit.weight.clone() for name, unit in net.weighted().items()}
    with at_bits(net, 8):
        eight = net.predict(images)
    layers = learn_rounding(net, images, bits=2, steps=40)
    assert [layer.name for layer in layers] == list(net.weighted())
    assert all(layer.learned <= layer.nearest for layer in layers)
    assert any(layer.learned < 0.95 * layer.nearest for layer in layers)
    assert all(torch.equal(unit.weight, weights[name]) for name, unit in net.weighted().items())
    with at_bits(net, 8):
        assert torch.equal(net.predict(images), eight)


@pytest.mark.parametrize("when", [1, 3])
def test_stopped_on_the_way_it_leaves_the_network_as_it_was(net, images, monkeypatch, when: int) -> None:
    calibrate(net, images)
    learn_rounding(net, images, bits=4, steps=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = iter(range(100))

    def stop(*args, **kwargs):
        if next(calls) == when:
            raise KeyboardInterrupt
        return choose_codes(*args, **kwargs)

    monkeypatch.setattr(rounding, "choose_codes", stop)
    with pytest.raises(KeyboardInterrupt):
        learn_rounding(net, images, bits=4, steps=0)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_bad_choices_are_refused(net, images) -> None:
    with pytest.raises(InputError, match="0 steps or more"):
        learn_rounding(net, images, bits=4, steps=-1)
    with pytest.raises(InputError, match=r"\[3\]"):
        learn_rounding(net, images, bits=3)
