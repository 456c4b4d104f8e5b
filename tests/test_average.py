"""The moving average of the weights."""

import torch

from edgeq.average import Average
from edgeq.models import build
from edgeq.quant.convert import multibit


def test_an_average_forgets_the_start_and_adopts_widths_that_enter() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 8, 4))
    average = Average(net, 0.999)
    first = {name: t.clone() for name, t in average.tensors.items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    for updates in range(50):
        average.update(net, updates)
    name = "units.fc.weight"
    torch.testing.assert_close(average.tensors[name], first[name] + 1.0, atol=1e-3, rtol=0)  # 0.999^50 would leave 95 %
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    average.adopt(net, 4)
    now = net.state_dict()
    same = {name for name, t in average.tensors.items() if torch.equal(t, now[name]) and "num_batches" not in name}
    assert {name for name in same if "norms" in name or "steps" in name} >= {
        name for name, _ in net.named_parameters() if name.endswith(".4") or ".norms.4." in name
    }
    assert not any(".8" in name and "running" not in name for name in same)
