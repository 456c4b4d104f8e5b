"""One thread, run-time shape checks, reproducible random examples, and a plotting backend without a screen."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# before torch is imported, and for the processes that tests start: a sum over another number of threads has other last
# bits, and workers beside each other have a core each
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# before any test imports edgeq: beartype then checks each annotated argument of edgeq, the shapes included
install_import_hook("edgeq", "beartype.beartype")

# the same examples every time, so that a failure is the change's; EDGEQ_EXAMPLES=new looks for others
settings.register_profile("same", deadline=None, max_examples=25, derandomize=True, database=None)
settings.register_profile("new", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("EDGEQ_EXAMPLES", "same"))


@pytest.fixture(scope="session", autouse=True)
def _signs_are_drawn_once() -> Iterator[None]:
    """Half a second for each data set; the tests of the drawing itself call it, not what stands here."""
    from edgeq.data import specs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specs, "signs", functools.cache(specs.signs))
        yield


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny training at 32 and 4 bits; tests copy it before they change it."""
    from edgeq.quant.network import QuantConfig
    from edgeq.training import TrainConfig, train

    out = tmp_path_factory.mktemp("made") / "run"
    config = TrainConfig(
        data="signs:train=200,test=100", quant=QuantConfig(bits=(32, 4)), epochs=1, batch_size=50, deployed=0.0
    )
    train(config, out=out)
    return out


@pytest.fixture(scope="session")
def made_artefact(made_run: Path) -> Path:
    """The 4-bit artefact of made_run, beside it."""
    from edgeq.cli.artefacts import origin
    from edgeq.export import save
    from edgeq.export.lower import lower
    from edgeq.runs import load_run

    info, net = load_run(made_run)
    art = made_run.parent / "art"
    graph = lower(net, bits=4, classes=info.classes, name=info.model)
    return save(graph, path=art, origin=origin(made_run, info, art))
