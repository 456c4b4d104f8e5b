"""What was proved and what was run, and the one verdict: `exact`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.errors import InputError

FORMAT = 1


class NotExact(InputError):
    """A model does not compute its integer graph; the message names the layer."""


@dataclass(frozen=True)
class Proof:
    """One statement about one layer, for every input.

    Attributes:
        layer: Node of the integer graph.
        claim: What is shown: `inequality`, `int32`, `requantizer`, `table`, `codewords`,
            `translation`, `weights`, `bias`, `sums` or `lint`.
        cases: Channels, accumulators or codes tried.
        exact: Whether it holds.
        detail: What failed and where; empty where it holds.
    """

    layer: str
    claim: str
    cases: int
    exact: bool
    detail: str = ""


@dataclass(frozen=True)
class Divergence:
    """The first tensor, in topological order, in which an engine differs."""

    layer: str
    codes: int
    largest: int
    image: int


@dataclass(frozen=True)
class Run:
    """One engine compared with the interpreter, code by code.

    Attributes:
        engine: Name and setting, for example `onnxruntime:all`.
        version: Version of its package.
        images: Number of images.
        tensors: Edges compared per image.
        codes: Codes compared.
        mismatches: Codes that differ.
        first: Where they first differ.
        error: Why the engine did not run, if it did not.
    """

    engine: str
    version: str
    images: int
    tensors: int
    codes: int
    mismatches: int
    first: Divergence | None = None
    error: str = ""

    @property
    def exact(self) -> bool:
        """Whether the engine ran and every code agreed."""
        return not self.mismatches and not self.error


@dataclass(frozen=True)
class Certificate:
    """The whole result of a verification.

    Attributes:
        name: The graph's name.
        bits: Its width.
        target: Dialect of the model.
        quick: Whether it was the short form that `save` makes.
        model_sha256: The model.
        inputs: Images by kind: random, extreme, given.
        proofs: Statements that hold for every input.
        runs: Engines compared on the inputs.
        needs_vnni: Layers whose 8-bit products may saturate in ONNX Runtime on x86 processors without VNNI.
        ordered: Layers of the `trt` dialect whose partial sums an engine might round if it ran Q/DQ in float, unfused;
            the engines here ran them with sums in integers.
        versions: Packages that took part.
    """

    name: str
    bits: int
    target: str
    quick: bool
    model_sha256: str
    inputs: Mapping[str, int]
    proofs: tuple[Proof, ...]
    runs: tuple[Run, ...]
    needs_vnni: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every proof holds, some engine ran, and every run agrees."""
        return bool(self.codes) and all(proof.exact for proof in self.proofs) and all(run.exact for run in self.runs)

    @property
    def codes(self) -> int:
        """Codes compared in all runs."""
        return sum(run.codes for run in self.runs)

    @property
    def mismatches(self) -> int:
        """Codes that differ in all runs."""
        return sum(run.mismatches for run in self.runs)

    @property
    def first_divergence(self) -> str | None:
        """Return the first layer of the first run that differs, else of the first proof that fails."""
        runs = [run.first.layer for run in self.runs if run.first]
        proofs = [proof.layer for proof in self.proofs if not proof.exact]
        return (runs + proofs + [None])[0]

    def failures(self) -> tuple[str, ...]:
        """Return one line per failed proof, run that differs and engine that did not run."""
        lines = [f"layer {p.layer!r}: {p.claim} fails: {p.detail}" for p in self.proofs if not p.exact]
        for run in self.runs:
            if run.first:
                lines.append(
                    f"{run.engine}: {run.mismatches} of {run.codes} codes differ, first at layer {run.first.layer!r} "
                    f"({run.first.codes} codes, by up to {run.first.largest})"
                )
        stopped = [f"{run.engine}: did not run: {run.error}" for run in self.runs if run.error]
        if not stopped and not self.codes:
            stopped.append("no engine ran, so nothing was compared")
        return (*lines, *stopped)

    def require_exact(self) -> "Certificate":
        """Return self, or raise what failed first.

        Raises:
            NotExact: Some proof or run failed.
        """
        if not self.exact:
            lines = self.failures()
            raise NotExact(
                f"expected a model that computes its integer graph exactly, got {len(lines)} failed checks, the first: "
                f"{lines[0]}; lower the network with short multipliers, or export it again if the file was changed"
            )
        return self

    def as_dict(self) -> dict[str, Any]:  # Any: JSON
        """Return the certificate as plain JSON."""
        totals = {"exact": self.exact, "codes": self.codes, "mismatches": self.mismatches}
        totals["first_divergence"] = self.first_divergence
        runs = [{**dataclasses.asdict(run), "exact": run.exact} for run in self.runs]
        proofs = [dataclasses.asdict(proof) for proof in self.proofs]
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": "edgeq certificate", "format": FORMAT, **totals, **plain, "proofs": proofs, "runs": runs}
