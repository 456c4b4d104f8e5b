"""`edgeq verify`: prove an exported artefact again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, Document, Failed, MaybeData
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from edgeq.export import Artefact


@dataclass(frozen=True, kw_only=True)
class Verify(AbstractCommand):
    """Check an artefact's hashes, prove its model again, and compare every engine with the interpreter code by code.

    Attributes:
        folder: An artefact folder.
        data: Compare on test images of this data too, besides random and extreme ones.
        images: How many of them.
    """

    folder: Positional[Annotated[Path, arg(metavar="ART")]]
    data: MaybeData = ""
    images: int = 64

    def run(self, talk: Talk) -> Document:
        """Verify; what is not exact is a failure that names the layer."""
        if self.images < 1:
            raise InputError(f"expected at least 1 image, got {self.images}; leave --data out to use none")
        with talk.busy("loading torch"):
            from edgeq.export import load, verify
        artefact = load(self.folder)
        inputs = self._inputs(artefact) if self.data else None
        with talk.busy(f"proving {self.folder} ({len(artefact.graph.nodes)} layers)"):
            certificate = verify(artefact, inputs=inputs)
        document = {"artefact": str(self.folder), **certificate.as_dict()}
        talk.table(
            f"{self.folder}: {certificate.bits} bits, {certificate.target}",
            ("checked", "cases", "result"),
            [*_proof_rows(certificate), *_run_rows(certificate)],
        )
        if certificate.needs_vnni:
            talk.note(f"x86 processors without VNNI may saturate in: {', '.join(certificate.needs_vnni)}")
        if certificate.ordered:
            talk.note(
                f"sums of {len(certificate.ordered)} layers may pass what float32 holds: ONNX Runtime got them in "
                f"integers, as int8 kernels add: {', '.join(certificate.ordered)}"
            )
        if not certificate.exact:
            raise Failed(
                f"expected {self.folder} to compute its integer graph exactly, got: {certificate.failures()[0]}; "
                "export it again",
                document,
            )
        return document

    def _inputs(self, artefact: "Artefact") -> "np.ndarray":
        """Return test images; those before a purifier may be of any classes."""
        from edgeq.cli.measure import load_fitting
        from edgeq.data import batches, load

        shape = artefact.graph.input_shape
        if artefact.graph.draws:
            dataset = load(self.data, seed=0, image_size=shape[1])
        else:
            dataset = load_fitting(self.data, artefact.labels, shape)
        return next(iter(batches(dataset.test, self.images)))[0].numpy()


def _proof_rows(certificate) -> list[tuple[str, str, str]]:
    claims = dict.fromkeys(proof.claim for proof in certificate.proofs)
    rows = []
    for claim in claims:
        proofs = [proof for proof in certificate.proofs if proof.claim == claim]
        verdict = "holds" if all(proof.exact for proof in proofs) else "FAILS"
        rows.append((f"{claim}, {len(proofs)} layers", str(sum(proof.cases for proof in proofs)), verdict))
    return rows


def _run_rows(certificate) -> list[tuple[str, str, str]]:
    return [
        (f"{run.engine}, {run.images} images", str(run.codes), "equal" if run.exact else f"{run.mismatches} differ")
        for run in certificate.runs
    ]
