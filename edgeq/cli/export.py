"""`edgeq export`: integer-only models with their proofs, of a run or of another tool's quantized ONNX file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, AllWidths, Document, Folder, MaybeData
from edgeq.cli.talk import Talk
from edgeq.errors import InputError
from edgeq.export import TARGETS
from edgeq.export.dialects import dialect

Numbers = Annotated[tuple[float, ...], arg(metavar="X …")]
Target = Annotated[str, arg(metavar="|".join(TARGETS))]

PROOF_IMAGES = 16  # real images that the quick verification may choose from


@dataclass(frozen=True, kw_only=True)
class Export(AbstractCommand):
    """Lower widths of a run to integer-only models and write artefact folders, each with its proof.

    Attributes:
        folder: A run folder; or an ONNX file that ONNX Runtime's tools or Brevitas quantized.
        out: Artefact folder to make; with several widths OUT-b8, OUT-b4 and so on.
        bits: Widths below 32.
        target: The dialect of the model: packed ONNX for ONNX Runtime, integers alone for auditors and compilers,
            signed Q/DQ for TensorRT, or Quant operators of any width for the qonnx package and FINN.
        mean: For an ONNX file: it was made for x = (pixel / 255 - mean) / std; one number, or one per channel.
        std: For an ONNX file: see mean.
        data: For an ONNX file: count differences from the original on test images of this data, and take its class
            names.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN|FILE")]]
    out: Folder
    bits: AllWidths = ()
    target: Target = "ort"
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    data: MaybeData = ""

    def run(self, talk: Talk) -> Document:
        """Lower everything first, so that a width that cannot be lowered leaves nothing behind."""
        dialect(self.target)  # a wrong one is refused before anything is loaded
        if self.folder.is_file():
            return self._file(talk)
        if self.data or self.mean != (0.0,) or self.std != (1.0,):
            raise InputError(
                f"expected --data, --mean and --std with an ONNX file only, got {self.folder}; a run knows its own"
            )
        with talk.busy("loading torch"):
            from edgeq.cli.artefacts import model_sha256, origin
            from edgeq.cli.measure import check_widths, load_fitting
            from edgeq.data import batches
            from edgeq.export import load, save
            from edgeq.export.lower import lower
            from edgeq.runs import load_run
        info, net = load_run(self.folder)
        widths = check_widths(self.bits, net.bits) if self.bits else net.quantized_bits()
        places = self._places(widths)
        graphs = {b: lower(net, bits=b, classes=info.classes, name=info.model) for b in widths}
        dataset = load_fitting(info.data, info.classes, info.image_shape)
        images = next(iter(batches(dataset.test, PROOF_IMAGES)))[0].numpy()
        rows = []
        for bits, graph in graphs.items():
            out = places[bits]
            with talk.busy(f"writing and proving {out}"):
                save(graph, path=out, target=self.target, origin=origin(self.folder, info, out), inputs=images)
            artefact = load(out)
            rows.append(
                {
                    "artefact": str(out),
                    "bits": bits,
                    "target": self.target,
                    "size_bytes": len(artefact.model),
                    "model_sha256": model_sha256(artefact),
                    "exact": True,  # save() refuses to write anything else
                }
            )
        talk.table(
            f"{self.folder}: integer models for {self.target}",
            ("artefact", "bits", "bytes", "exact"),
            [(r["artefact"], str(r["bits"]), str(r["size_bytes"]), "yes") for r in rows],
        )
        return {"run": str(self.folder), "artefacts": rows}

    def _places(self, widths: tuple[int, ...]) -> dict[int, Path]:
        """Return each width's folder, all of them checked before the first is written."""
        from edgeq.export.artefact import check_place

        if len(widths) == 1:
            places = {widths[0]: self.out}
        elif self.out.name in ("", ".."):
            raise InputError(
                f"expected a folder name for --out, which -b{widths[0]} and so on are added to, got {self.out}; name "
                "one, for example --out art"
            )
        else:
            places = {b: self.out.with_name(f"{self.out.name}-b{b}") for b in widths}
        for place in places.values():
            check_place(place)
        return places

    def _file(self, talk: Talk) -> Document:
        """Import a quantized ONNX file, and say what that changes."""
        if self.bits:
            raise InputError(f"expected no --bits with an ONNX file, got {self.bits}; it has the widths that it has")
        from edgeq.cli.imports import imported_file

        return imported_file(self, talk)
