"""What a step of each defence costs, in time and memory, beside patch-at's and the standard step.

    python benchmarks/defense_step.py --out docs/results/defense_step.json

ResNet-20, batch 128, widths 32/8/5/4/2, forward and backward and optimizer step, half of the images patched (from a
pool, unless the name says online). The contenders run interleaved in one process, each round in another order; figures
are medians over rounds with the spread, and ratios round by round. `--cpu-time` counts the processor's time instead of
the wall's: on one thread the two agree, but the former stands a machine that is busy otherwise.

Peak memory: on a GPU, torch's own count; on a CPU (Linux), how far the resident set of a process of its own grows
beyond what it held before its first step.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import commit

from edgeq import runs
from edgeq.attacks import EOT, PatchPool
from edgeq.defenses import (
    DWQ,
    AbstractObjective,
    DWQObjective,
    PatchATObjective,
    Patches,
    Setting,
    Standard,
    StandardObjective,
    TriQDef,
    TriQDefObjective,
)
from edgeq.files import write_json
from edgeq.models import build
from edgeq.optimizer import make_optimizer, update
from edgeq.perceptual import Alignment
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet

BITS = (32, 8, 5, 4, 2)
BATCH = 128
POOL = Patches()
MEAN = TriQDef(alignment=Alignment(channels="mean"))

CONTENDERS: dict[str, Callable[[MultiBitNet], AbstractObjective]] = {
    "standard": lambda net: StandardObjective(net, Standard()),
    "patch-at": lambda net: PatchATObjective(net, POOL),
    "patch-at, online": lambda net: PatchATObjective(net, Patches(online=1.0)),
    "triqdef, FDP alone": lambda net: TriQDefObjective(net, POOL, TriQDef(lambda_gpdp=0.0)),
    "triqdef": lambda net: TriQDefObjective(net, POOL, TriQDef()),
    "triqdef, channel mean": lambda net: TriQDefObjective(net, POOL, MEAN),
    "triqdef, one pair a step": lambda net: TriQDefObjective(net, POOL, TriQDef(pairs=1)),
    "triqdef, all patched images": lambda net: TriQDefObjective(net, POOL, TriQDef(share=1.0)),
    "dwq": lambda net: DWQObjective(net, DWQ()),
}


@dataclass
class Step:
    """One contender: its network, its optimizer, and how many steps it took."""

    objective: AbstractObjective
    device: str
    precision: str
    taken: int = 0

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.objective.net, lr=0.001, weight_decay=1e-4)
        self.images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, device=self.device)
        self.labels = torch.randint(0, 10, (BATCH,), device=self.device)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.objective(self.images, self.labels, BITS, (0, 0, self.taken, 0))["loss"]
        loss.backward()
        update(self.objective.net, self.optimizer, clip=self.objective.clip)
        self.taken += 1
        if self.device == "cuda":
            torch.cuda.synchronize()


def make(name: str, device: str, precision: str) -> Step:
    """Return a contender that is ready to step; its pool holds noise, which is pasted as fast as patches are."""
    torch.manual_seed(0)
    net = multibit(build("resnet20", classes=10), bits=BITS).to(device).to(memory_format=torch.channels_last)
    objective = CONTENDERS[name](net.train())
    if isinstance(objective, (PatchATObjective, TriQDefObjective)):
        pool = PatchPool({6: torch.rand(10, 3, 6, 6)}, {6: torch.arange(10)}, EOT())
        objective.patcher.pool = pool if objective.patcher.choices.pooled else None
        objective.prepare(Setting(9, 10, Path(), _no_images, BITS))
    return Step(objective, device, precision)


def _no_images(_count: int) -> Any:
    raise AssertionError("the pool is there")


def measure(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return milliseconds per contender and round, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    names = list(steps)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = clock()
            steps[name]()
            times[name].append(1e3 * (clock() - start))
    return times


def peak_mib(name: str, device: str, precision: str, threads: int) -> float:
    """Return the memory that two steps need beyond the network and its images."""
    if device == "cuda":
        step = make(name, device, precision)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    command = [sys.executable, __file__, "--peak-of", name, "--precision", precision, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _own_peak(name: str, precision: str) -> float:
    step = make(name, "cpu", precision)
    before = _status("VmRSS")
    for _ in range(2):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """Return a line of /proc/self/status in kB; getrusage's maximum would be that of the parent process, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def table(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians, spread, and the median over rounds of the ratios to patch-at and standard."""
    rows: dict[str, dict[str, float]] = {}
    for name, t in times.items():
        row = {"median_ms": statistics.median(t), "min_ms": min(t), "max_ms": max(t)}
        for base in ("patch-at", "standard"):
            if base in times:
                row[f"times_{base}"] = statistics.median(a / b for a, b in zip(t, times[base], strict=True))
        rows[name] = {key: round(value, 2) for key, value in row.items()}
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--peak-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(_own_peak(args.peak_of, args.precision))
        return
    steps = {name: make(name, args.device, args.precision) for name in args.only}
    rows = table(measure(steps, args.rounds, time.process_time if args.cpu_time else time.perf_counter))
    del steps
    for name, row in rows.items():
        if not args.no_memory:
            row["peak_mib"] = round(peak_mib(name, args.device, args.precision, args.threads), 1)
        print(f"{name:30s}" + "".join(f"  {key} {value}" for key, value in row.items()), flush=True)
    if args.out:
        body = {"batch": BATCH, "bits": BITS, "rounds": args.rounds, "threads": args.threads, "table": rows}
        body |= {"device": args.device, "precision": args.precision, "clock": "cpu" if args.cpu_time else "wall"}
        write_json(args.out, {**body, "commit": commit(), "versions": runs.versions(), "hardware": runs.hardware()})


if __name__ == "__main__":
    main()
