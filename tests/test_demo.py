import json
from pathlib import Path

import pytest

from edgeq.bench import Plan
from edgeq.cli.talk import Talk
from edgeq.demo import Tour, tour
from edgeq.errors import InputError

SMALL = Tour(
    bits=(32, 8, 2), epochs=2, train=200, test=100, batch_size=50, plan=Plan(seconds=0.02, rounds=20, attempts=1)
)


@pytest.mark.ci_slow
def test_the_tour_is_exact_at_every_width_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeq.training import Interrupted

    with pytest.raises(Interrupted):
        tour(SMALL, out=tmp_path / "demo", talk=Talk(), stop=lambda: True)
    first = tour(SMALL, out=tmp_path / "demo", talk=Talk())
    assert [row["bits"] for row in first["bits"]] == [8, 2]
    for row in first["bits"]:
        assert row["exact"] is True
        assert row["integer_accuracy"] == row["sim_accuracy"]
        assert row["p50_ms"] > 0
    assert first["bits"][0]["size_bytes"] > 2 * first["bits"][1]["size_bytes"]
    assert (tmp_path / "demo/report.html").read_text().count("<svg") == 3
    json.dumps(first, allow_nan=False)

    again = tour(SMALL, out=tmp_path / "demo", talk=Talk())
    assert "using the trained network" in capsys.readouterr().err
    assert [row["sim_accuracy"] for row in again["bits"]] == [row["sim_accuracy"] for row in first["bits"]]
    with pytest.raises(InputError, match="same choices"):
        tour(Tour(bits=(32, 4)), out=tmp_path / "demo", talk=Talk())
