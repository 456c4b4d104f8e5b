"""`edgeq export`: integer-only models with their proofs, of a run or of another tool's quantized ONNX file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, AllWidths, Document, Folder, MaybeData
from edgeq.cli.talk import Talk
from edgeq.errors import InputError
from edgeq.export import TARGETS
from edgeq.export.dialects import dialect

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from edgeq.export import IntegerGraph

Numbers = Annotated[tuple[float, ...], arg(metavar="X …")]
Target = Annotated[str, arg(metavar="|".join(TARGETS))]

PROOF_IMAGES = 16  # real images that the quick verification may choose from


@dataclass(frozen=True, kw_only=True)
class Export(AbstractCommand):
    """Lower widths of a run to integer-only models and write artefact folders, each with its proof.

    Attributes:
        folder: A run folder, of a classifier or a purifier; or an ONNX file that ONNX Runtime's tools or Brevitas
            quantized.
        out: Artefact folder to make; with several widths OUT-b8, OUT-b4 and so on.
        bits: Widths below 32. Of a purifier any from 2 to 8, by default 8: they are calibrated here, on its data.
        target: The dialect of the model: packed ONNX for ONNX Runtime, integers alone for auditors and compilers,
            signed Q/DQ for TensorRT, or Quant operators of any width for the qonnx package and FINN.
        mean: For an ONNX file: it was made for x = (pixel / 255 - mean) / std; one number, or one per channel.
        std: For an ONNX file: see mean.
        data: For an ONNX file: count differences from the original on test images of this data, and take its class
            names. For a purifier: calibrate and measure on other data.
        passes: For a purifier: what improves the calibration, as for edgeq calibrate.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN|FILE")]]
    out: Folder
    bits: AllWidths = ()
    target: Target = "ort"
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    data: MaybeData = ""
    passes: tuple[Literal["equalise", "rounding", "bias"], ...] = ()

    def run(self, talk: Talk) -> Document:
        """Lower everything first, so that a width that cannot be lowered leaves nothing behind."""
        dialect(self.target)  # a wrong one is refused before anything is loaded
        purifier = self.folder.is_dir() and _is_purifier(self.folder)
        if self.passes and not purifier:
            raise InputError(
                f"expected --passes with a purifier's run, got {self.folder}; use edgeq calibrate --passes"
            )
        if self.folder.is_file():
            return self._file(talk)
        if (self.data and not purifier) or self.mean != (0.0,) or self.std != (1.0,):
            raise InputError(
                f"expected --data, --mean and --std with an ONNX file only, got {self.folder}; a run knows its own"
            )
        if purifier:
            from edgeq.cli.purify_export import exported_purifier

            return exported_purifier(self, talk)
        with talk.busy("loading torch"):
            from edgeq.cli.artefacts import origin
            from edgeq.cli.measure import check_widths, load_fitting
            from edgeq.data import batches
            from edgeq.export.lower import lower
            from edgeq.runs import load_run
        info, net = load_run(self.folder)
        widths = check_widths(self.bits, net.bits) if self.bits else net.quantized_bits()
        places = self.places(widths)
        graphs = {b: lower(net, bits=b, classes=info.classes, name=info.model) for b in widths}
        dataset = load_fitting(info.data, info.classes, info.image_shape)
        images = next(iter(batches(dataset.test, PROOF_IMAGES)))[0].numpy()
        rows = self.write(talk, graphs, places, lambda out: origin(self.folder, info, out), images)
        return {"run": str(self.folder), "artefacts": rows}

    def write(
        self,
        talk: Talk,
        graphs: "Mapping[int, IntegerGraph]",
        places: Mapping[int, Path],
        origin: Callable[[Path], dict[str, object]],
        images: "UInt8[np.ndarray, 'n c h w']",
    ) -> list[dict[str, Any]]:
        """Write and prove each width's artefact, and show them; `origin` says where it comes from."""
        from edgeq.cli.artefacts import model_sha256
        from edgeq.export import load, save

        rows = []
        for bits, graph in graphs.items():
            out = places[bits]
            with talk.busy(f"writing and proving {out}"):
                save(graph, path=out, target=self.target, origin=origin(out), inputs=images)
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
        return rows

    def places(self, widths: tuple[int, ...]) -> dict[int, Path]:
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


def _is_purifier(folder: Path) -> bool:
    """Tell whether a run folder is that of a purifier; what is damaged is refused where it is read."""
    from edgeq.files import read_json
    from edgeq.runs import CONFIG

    body = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return isinstance(body, dict) and "purifier" in body
