"""Draws the three circuits of this folder: `python samples/draw_circuits.py [DIR]`.

Needs schemdraw and matplotlib (requirements-dev.txt). The pictures are MIT, like rsd itself. The
truth in `truth/` is written here too, next to the drawing that it describes, so that the two cannot
drift apart unseen. Pins: 1 is the left or upper end of a part with two ends, 2 the other; B, C and
E of a transistor; +, - and OUT of an amplifier. A net of several pins is a chain, in reading order.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import schemdraw
import schemdraw.elements as elm

#: Resolution of the PNG files; one element is about 150 pixels long.
DPI = 100
#: Two ends, and the pins that a reader sees on the others.
ENDS = ("1", "2")
OPAMP = ("+", "-", "OUT")
NPN = ("B", "C", "E")

Net = tuple[str, ...]
Part = tuple[str, str, tuple[str, ...]]  # designator, value, pins


def rc_low_pass() -> tuple[schemdraw.Drawing, list[Part], list[str], list[Net]]:
    """A resistor in series, a capacitor to ground."""
    with schemdraw.Drawing(show=False) as d:
        d.config(fontsize=14)
        elm.Dot(open=True).label("IN", "left")
        elm.Resistor().right().label("R1").label("4.7k", "bottom")
        node = elm.Dot()
        elm.Line().right().length(2)
        elm.Dot(open=True).label("OUT", "right")
        elm.Capacitor().down().at(node.center).label("C1", "top").label("100n", "bottom")
        elm.Ground().label("GND", "right")
    parts = [("R1", "4.7k", ENDS), ("C1", "100n", ENDS)]
    nets = [("IN", "R1.1"), ("R1.2", "OUT", "C1.1"), ("C1.2", "GND")]
    return d, parts, ["IN", "OUT", "GND"], nets


def non_inverting_amplifier() -> tuple[schemdraw.Drawing, list[Part], list[str], list[Net]]:
    """An operational amplifier whose feedback divider sets a gain of eleven."""
    with schemdraw.Drawing(show=False) as d:
        d.config(fontsize=14)
        amp = elm.Opamp(leads=True).flip().label("U1", "center", ofst=(-0.1, 0))
        elm.Line().left().at(amp.in2).length(2)
        elm.Dot(open=True).label("IN", "left")
        elm.Line().down().at(amp.in1).length(2)
        feedback = elm.Dot()
        elm.Resistor().down().at(feedback.center).label("R1").label("1k", "bottom")
        elm.Ground().label("GND", "right")
        elm.Resistor().right().at(feedback.center).tox(amp.out).label("R2").label("10k", "bottom")
        elm.Line().toy(amp.out)
        out = elm.Dot()
        elm.Line().right().at(out.center).length(1.5)
        elm.Dot(open=True).label("OUT", "right")
    parts = [("U1", "", OPAMP), ("R1", "1k", ENDS), ("R2", "10k", ENDS)]
    nets = [
        ("IN", "U1.+"),
        ("U1.-", "R2.1", "R1.1"),
        ("R1.2", "GND"),
        ("R2.2", "U1.OUT", "OUT"),
    ]
    return d, parts, ["IN", "OUT", "GND"], nets


def common_emitter() -> tuple[schemdraw.Drawing, list[Part], list[str], list[Net]]:
    """A transistor stage with base divider, emitter resistor and both coupling capacitors."""
    with schemdraw.Drawing(show=False) as d:
        d.config(fontsize=14)
        q = elm.BjtNpn(circle=True).label("Q1", "right")
        elm.Line().left().at(q.base).length(1.5)
        base = elm.Dot()
        elm.Capacitor().left().label("10u", "bottom").label("C1", "top")
        elm.Dot(open=True).label("IN", "left")
        elm.Line().up().at(q.collector).length(0.6)
        collector = elm.Dot()
        elm.Resistor().up().at(collector.center).label("4.7k", "bottom").label("R3", "top")
        supply = elm.Dot()
        elm.Vdd().label("VCC")
        elm.Line().left().at(supply.center).tox(base.center)
        elm.Resistor().down().toy(base.center).label("R1", "top").label("47k", "bottom")
        elm.Capacitor().right().at(collector.center).label("C2", "top").label("10u", "bottom")
        elm.Dot(open=True).label("OUT", "right")
        elm.Line().down().at(q.emitter).length(0.6)
        elm.Resistor().down().label("1k", "bottom").label("R4", "top")
        ground = elm.Dot()
        elm.Ground().label("GND", "right")
        divider = elm.Resistor().down().at(base.center).toy(ground.center)
        divider.label("R2", "top").label("10k", "bottom")
        elm.Line().right().tox(ground.center)
    parts = [
        ("Q1", "", NPN),
        ("R1", "47k", ENDS),
        ("R2", "10k", ENDS),
        ("R3", "4.7k", ENDS),
        ("R4", "1k", ENDS),
        ("C1", "10u", ENDS),
        ("C2", "10u", ENDS),
    ]
    nets = [
        ("VCC", "R1.1", "R3.1"),
        ("IN", "C1.1"),
        ("C1.2", "R1.2", "R2.1", "Q1.B"),
        ("R3.2", "Q1.C", "C2.1"),
        ("C2.2", "OUT"),
        ("Q1.E", "R4.1"),
        ("R2.2", "R4.2", "GND"),
    ]
    return d, parts, ["IN", "OUT", "VCC", "GND"], nets


CIRCUITS = {
    "circuit_rc_low_pass": rc_low_pass,
    "circuit_amplifier": non_inverting_amplifier,
    "circuit_common_emitter": common_emitter,
}


def truth(name: str, parts: list[Part], ports: list[str], nets: list[Net]) -> dict[str, Any]:
    """The same form as the other files of `truth/`."""
    nodes: list[dict[str, Any]] = []
    for part, value, pins in parts:
        node: dict[str, Any] = {"id": part, "label": part, "type": "component"}
        nodes.append(node | ({"value": value} if value else {}) | {"pins": list(pins)})
    nodes += [{"id": port, "label": port, "type": "port"} for port in ports]
    edges = [{"from": a, "to": b} for net in nets for a, b in pairwise(net)]
    return {
        "image": f"{name}.png",
        "kind": "circuit",
        "directed": False,
        "nodes": nodes,
        "edges": edges,
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    for name, draw in CIRCUITS.items():
        drawing, parts, ports, nets = draw()
        drawing.save(str(folder / f"{name}.png"), transparent=False, dpi=DPI)
        data = truth(name, parts, ports, nets)
        (folder / f"truth/{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        print(f"{name}: {len(parts)} parts, {len(data['edges'])} connections")


if __name__ == "__main__":
    main()
