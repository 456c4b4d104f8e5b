"""One training step of the shared backbone beside five passes of the same network built from Brevitas layers.

    pip install 'edgeq[brevitas]' && python benchmarks/training_step.py --out docs/results/training_step.json

ResNet-20, batch 128, widths 32/8/5/4/2, forward and backward and optimizer step. The contenders run interleaved in one
process, each round in another order; figures are medians over rounds with the spread, and ratios round by round.
Brevitas: QuantConv2d / QuantReLU / QuantIdentity / QuantLinear with per-channel weight scales and learned activation
scales ("parameter from statistics"), its float pass at 32 bits being plain PyTorch layers; both memory formats.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from provenance import commit
from torch import nn

from edgeq import runs
from edgeq.defenses import Standard, StandardObjective
from edgeq.files import write_json
from edgeq.models import build
from edgeq.optimizer import make_optimizer, update
from edgeq.quant.convert import multibit

BITS = (32, 8, 5, 4, 2)
BATCH = 128


def shared_step(precision: str) -> Callable[[], None]:
    """Return one step of edgeq's shared backbone at all widths."""
    net = multibit(build("resnet20", classes=10), bits=BITS).to(memory_format=torch.channels_last).train()
    objective = StandardObjective(net, Standard())
    optimizer = make_optimizer(net, lr=0.01, weight_decay=1e-4)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(images, labels, BITS)["loss"]
        loss.backward()
        update(net, optimizer)

    return step


def brevitas_steps(memory: torch.memory_format, precision: str) -> Callable[[], None]:
    """Return one step of each of five networks, one per width, built from Brevitas layers."""
    nets = [_brevitas_resnet20(bits).to(memory_format=memory).train() for bits in BITS]
    optimizers = [torch.optim.SGD(net.parameters(), 0.01, momentum=0.9) for net in nets]
    images = (torch.rand(BATCH, 3, 32, 32) * 4 - 2).contiguous(memory_format=memory)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()

    return step


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, bits: int) -> None:
        super().__init__()
        conv, relu, identity = _layers(bits)
        self.conv1, self.bn1, self.relu1 = conv(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), relu()
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.add = identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride, 0), nn.BatchNorm2d(outputs))
        self.relu2 = relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(y) + self.add(self.shortcut(x)))


def _layers(bits: int):
    if bits == 32:
        return (
            lambda i, o, k, s, p: nn.Conv2d(i, o, k, s, p, bias=False),
            nn.ReLU,
            nn.Identity,
        )
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    def conv(i: int, o: int, k: int, s: int, p: int) -> nn.Module:
        quant = Int8WeightPerChannelFloat
        return qnn.QuantConv2d(i, o, k, s, p, bias=False, weight_quant=quant, weight_bit_width=bits)

    return (
        conv,
        lambda: qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=bits),
        lambda: qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8),
    )


def _brevitas_resnet20(bits: int) -> nn.Module:
    conv, relu, _ = _layers(bits)
    layers: list[nn.Module] = [conv(3, 16, 3, 1, 1), nn.BatchNorm2d(16), relu()]
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64)):
        for index in range(3):
            layers.append(_Block(inputs, outputs, 2 if stage and index == 0 else 1, bits))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per contender and round, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    names = list(steps)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times = measure(
        {
            "edgeq, float32": shared_step("32"),
            "edgeq, bf16": shared_step("bf16"),
            "Brevitas, float32, NCHW": brevitas_steps(torch.contiguous_format, "32"),
            "Brevitas, float32, channels last": brevitas_steps(torch.channels_last, "32"),
            "Brevitas, bf16, channels last": brevitas_steps(torch.channels_last, "bf16"),
        },
        args.rounds,
    )
    ours = times["edgeq, float32"]
    table = {
        name: {
            "median_ms": round(statistics.median(t), 1),
            "min_ms": round(min(t), 1),
            "max_ms": round(max(t), 1),
            "times_edgeq_float32": round(statistics.median(a / b for a, b in zip(t, ours, strict=True)), 2),
        }
        for name, t in times.items()
    }
    for name, row in table.items():
        print(f"{name:36s}" + "".join(f"  {key} {value}" for key, value in row.items()))
    if args.out:
        body = {"batch": BATCH, "bits": BITS, "rounds": args.rounds, "table": table}
        write_json(args.out, {**body, "commit": commit(), "versions": runs.versions(), "hardware": runs.hardware()})


if __name__ == "__main__":
    main()
