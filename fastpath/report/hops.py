"""The picture of a path in the HTML report: its hops, in boxes of where they are.

Boxes and arrows are the browser's own layout, not a drawing: they break into lines on
a phone, and take the colours of the page.
"""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastpath.report.model import Hop, PathFacts, PathResult

STYLE: Final = """
.ways { display: grid; gap: 12px; }
.way { display: flex; flex-wrap: wrap; gap: 10px 22px; margin: 10px 0 0; padding: 0;
  list-style: none; }
.way > li { position: relative; border: 1px dashed var(--rule); border-radius: 8px;
  padding: 4px 8px 8px; }
.way > li > small { color: var(--soft); }
.way ol { display: flex; flex-wrap: wrap; gap: 8px 22px; margin: 0; padding: 0;
  list-style: none; }
.hop { position: relative; border: 1.5px solid var(--soft); border-radius: 6px;
  padding: 3px 8px; font-size: .9rem; max-width: 15em; }
.hop.thread { border-color: var(--ink); font-weight: 600; }
.hop.stack { border-color: var(--bad); border-style: double; border-width: 4px; }
.hop + .hop::before, .way > li + li::before { content: "\\2192"; position: absolute;
  left: -19px; top: 50%; transform: translateY(-50%); color: var(--soft);
  font-weight: 400; }
.hop small { display: block; font-weight: 400; color: var(--soft); }
@media (max-width: 640px) { .way, .way ol { flex-direction: column; gap: 20px; }
  .hop { max-width: none; }
  .hop + .hop::before, .way > li + li::before { content: "\\2193"; left: 50%;
    top: -11px; } }
"""


def pictures(paths: Iterable[PathResult]) -> str:
    """Return the section with a picture for each path."""
    cards = "".join(_card(path) for path in paths)
    return (
        "<h2>The hops of each path</h2>"
        '<p class="soft">From the program to who answers. A double frame is a TCP/IP '
        "stack. In bold is a process, which a byte has to wake up where it sleeps. "
        "Copies by a CPU are counted where they are made: up is a byte of the "
        "program's, down one to it.</p>"
        f'<div class="ways">{cards}</div>'
    )


def totals(facts: PathFacts) -> str:
    """Sum up a path in a line."""
    wakes = sum(hop.thread for hop in facts.hops) - 1
    return (
        f"{_count(len(facts.stacks), 'TCP/IP stack')}, "
        f"{_count(len(facts.copies_up), 'copy', 'copies')} up, "
        f"{len(facts.copies_down)} down, "
        f"{_count(wakes, 'process', 'processes')} to wake"
    )


def _card(path: PathResult) -> str:
    places = "".join(
        f"<li><small>{escape(at)}</small><ol>{''.join(map(_hop, hops))}</ol></li>"
        for at, hops in itertools.groupby(path.facts.hops, key=lambda hop: hop.at)
    )
    return (
        f'<div class="card"><h3>{escape(path.facts.title)}</h3>'
        f"<small>{escape(totals(path.facts))}</small>"
        f'<ol class="way">{places}</ol></div>'
    )


def _hop(hop: Hop) -> str:
    marked = {"hop": True, "thread": hop.thread, "stack": bool(hop.stack)}
    kind = " ".join(name for name, is_one in marked.items() if is_one)
    made = {"up": hop.up, "down": hop.down}
    copies = [f"{len(each)} {way}" for way, each in made.items() if each]
    mark = ""
    if copies:
        tip = escape("; ".join((*hop.up, *hop.down)))
        mark = f'<small title="{tip}">copies: {", ".join(copies)}</small>'
    return f'<li class="{kind}">{escape(hop.name)}{mark}</li>'


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
