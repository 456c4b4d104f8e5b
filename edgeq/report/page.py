"""The page: one HTML text without any reference to the outside."""

from collections.abc import Sequence
from html import escape
from typing import Any

from edgeq import __version__
from edgeq.bench.verdict import Point, verdict
from edgeq.report.attacks import attack_section
from edgeq.report.collect import Json, Network, Row
from edgeq.report.figures import curves, latencies, pareto
from edgeq.report.purifier import Purifier, purifier_section
from edgeq.report.sensitivity import sensitivity_section

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5c6670; --paper: #ffffff; --card: #f5f6f8; --line: #dfe3e8;
  --good: #00734f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --paper: #14181c; --card: #1d2329;
  --line: #333c45; --good: #4cc38a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 0 0 10px; } p { margin: 8px 0; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; margin: 20px 0; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  margin: 0; }
.card b { display: block; font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; margin: 18px 0; }
.row { grid-column: 1 / -1; }
.plot { width: 100%; height: auto; } .plot text { font-family: inherit !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } th:first-child, td:first-child, 
.left { text-align: left; }
td.text { text-align: left; white-space: normal; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 700; }
.verdict { border-left: 3px solid var(--line); padding: 4px 14px; margin: 18px 0; }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--soft); }
.heats { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px; margin: 18px 0; }
.heat td, .heat th { padding: 5px 8px; text-align: center; border: 0; } .heat td:first-child { text-align: left; }
.heat .own { outline: 2px solid var(--ink); outline-offset: -2px; } .pixels { image-rendering: pixelated; }
@media (max-width: 560px) { .figures { grid-template-columns: 1fr; } }
"""


def render(networks: Sequence[Network], *, purifiers: Sequence[Purifier] = (), title: str = "edgeq report") -> str:
    """Return the page."""
    body = "\n".join([*map(_network, networks), *map(purifier_section, purifiers)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f'<p class="soft">One shared backbone, shipped as integer-only models. Made by edgeq {__version__}.</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _network(network: Network) -> str:
    figures = [
        ("", "Accuracy and size", pareto(network.rows)),
        ("", "Training", curves(network)),
        (' class="row"', "Latency", latencies(network.rows)),
    ]
    drawn = "".join(f"<figure{kind}><h3>{name}</h3>{svg}</figure>" for kind, name, svg in figures if svg)
    return (
        f"<section><h2>{escape(network.model)} on {escape(network.data)}</h2>"
        f'<p class="soft">{escape(network.label)}</p>{_cards(network.rows)}{_table(network.rows)}{_verdict(network)}'
        f'<div class="figures">{drawn}</div>{attack_section(network.attacks, network.pictures)}'
        f"{sensitivity_section(network.sensitivity)}{_proofs(network.rows)}{_setup(network)}</section>"
    )


def _cards(rows: Sequence[Row]) -> str:
    cards = []
    known = [row for row in rows if row.accuracy is not None]
    reference = next((row for row in known if row.bits == 32), None)
    if reference is not None:
        cards.append((_percent(reference.accuracy), "float accuracy"))
    small = min((row for row in known if row.bits < 32), key=lambda row: row.bits, default=None)
    if small is not None:
        cards.append((_percent(small.accuracy), f"accuracy at {small.bits} bits"))
    sized = [row for row in rows if row.size_bytes]
    if len(sized) > 1:
        most, least = max(row.size_bytes or 0 for row in sized), min(row.size_bytes or 0 for row in sized)
        cards.append((f"{most / least:.1f} &times;", "smaller, largest to smallest"))
    proved = [row for row in rows if row.exact is not None]
    if proved:
        cards.append((f"{sum(bool(row.exact) for row in proved)} of {len(proved)}", "integer models proved exact"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{b}</b><span>{t}</span></div>' for b, t in cards)
        + "</div>"
    )


def _table(rows: Sequence[Row]) -> str:
    head = ("bits", "simulated", "integer", "model bytes", "p50 ms", "p99 ms", "exact")
    names = "".join(f"<th>{name}</th>" for name in head) + '<th class="left">artefact</th>'
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{names}</tr>{lines}</table></div>'


def _cells(row: Row) -> str:
    if row.latency is None:
        p50 = p99 = "&ndash;"
    else:
        p50 = f"{row.latency['p50_ms']:.3f} &plusmn; {100 * row.latency['noise']:.1f} %"
        p99 = f"{row.latency['p99_ms']:.3f}"
    size = "&ndash;" if row.size_bytes is None else f"{row.size_bytes:,}".replace(",", " ")
    plain = (row.name, _percent(row.simulated), _percent(row.integer), size, p50, p99)
    cells = "".join(f"<td>{cell}</td>" for cell in plain)
    return f'{cells}<td>{_exact(row)}</td><td class="text">{escape(row.artefact) or "&ndash;"}</td>'


def _exact(row: Row) -> str:
    if row.exact is None:
        return "&ndash;"
    return '<span class="good">yes</span>' if row.exact else '<span class="bad">NO</span>'


def _verdict(network: Network) -> str:
    points = [
        Point(row.bits, row.size_bytes, *(row.latency[key] for key in ("p50_ms", "low_ms", "high_ms")))
        for row in network.rows
        if row.latency is not None and row.size_bytes is not None
    ]
    sentence = verdict(points)
    return f'<p class="verdict">{escape(sentence[0].upper() + sentence[1:])}.</p>' if sentence else ""


def _proofs(rows: Sequence[Row]) -> str:
    proved = [(row, row.certificate) for row in rows if row.certificate is not None]
    if not proved:
        return ""
    head = (
        "bits",
        "claims that hold for every input",
        "cases tried",
        "codes compared",
        "mismatches",
        "engines",
        "verdict",
    )
    lines = "".join(f"<tr>{_proof(row, certificate)}</tr>" for row, certificate in proved)
    vnni = sorted({layer for _, certificate in proved for layer in certificate.get("needs_vnni", ())})
    note = (
        f"ONNX Runtime on x86 processors without VNNI or AMX may saturate in: {escape(', '.join(vnni))}."
        if vnni
        else ""
    )
    return (
        "<h2>Proof</h2><p>Each integer model was compared with the interpreter that defines it. The claims hold for "
        "every possible input; the codes were compared on random, extreme and real images.</p>"
        f'<div class="wide"><table><tr>{"".join(f"<th>{h}</th>" for h in head)}</tr>{lines}</table></div>'
        f'<p class="soft">{note}</p>'
    )


def _proof(row: Row, certificate: Json) -> str:
    proofs, runs = certificate["proofs"], certificate["runs"]
    held = sum(proof["exact"] for proof in proofs)
    cells = (
        row.name,
        f"{held} of {len(proofs)}",
        _count(sum(proof["cases"] for proof in proofs)),
        _count(certificate["codes"]),
        _count(certificate["mismatches"]),
        escape(", ".join(dict.fromkeys(run["engine"].split(":")[0] for run in runs))),
    )
    return "".join(f"<td>{cell}</td>" for cell in cells) + f"<td>{_exact(row)}</td>"


def _setup(network: Network) -> str:
    pairs = [*network.training.items(), *((f"version of {name}", text) for name, text in network.versions.items())]
    if network.machine is not None:
        pairs += [(f"measured on: {name}", value) for name, value in network.machine.items()]
    lines = "".join(
        f'<tr><td>{escape(str(name))}</td><td class="text">{escape(_value(value))}</td></tr>' for name, value in pairs
    )
    return f"<details><summary>Choices, versions and machine</summary><table>{lines}</table></details>"


def _value(value: Any) -> str:  # Any: JSON
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "none"
    return str(value)


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{100 * value:.2f} %"


def _count(value: int) -> str:
    return f"{value:,}".replace(",", " ")
