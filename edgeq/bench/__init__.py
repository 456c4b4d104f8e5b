"""Latency, measured: one timing function for everything, and the machine that a number belongs to."""

from edgeq.bench.machine import Machine as Machine
from edgeq.bench.machine import describe as describe
from edgeq.bench.timing import Latency as Latency
from edgeq.bench.timing import Plan as Plan
from edgeq.bench.timing import measure as measure
from edgeq.bench.timing import noisy as noisy
