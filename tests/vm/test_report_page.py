"""The page of `compare --html` in a browser: nothing runs into anything, at any width.

Needs Debian's chromium (or chromium-headless-shell): with what it needs more than
300 MB, so that it is no part of `make test`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import subprocess
from html import unescape

import pytest

from fastpath.commands.compare import facts
from fastpath.report import html
from tests.support.limits import LIMIT_S
from tests.unit.fastpath import report_sample as sample

pytestmark = pytest.mark.nightly

MEASURE = """<script>
const boxes = svg => [...svg.querySelectorAll("text.tick")]
  .map(text => text.getBoundingClientRect()).sort((a, b) => a.left - b.left);
const shown = [...document.querySelectorAll("svg")].filter(s => s.clientWidth > 0);
const met = shown.flatMap(svg => boxes(svg).filter(
  (box, i, all) => i > 0 && box.left < all[i - 1].right + 2));
const hops = [...document.querySelectorAll(".hop")].map(h => h.getBoundingClientRect());
const texts = shown.flatMap(svg => [...svg.querySelectorAll("text")]);
document.body.dataset.found = JSON.stringify({
  window: window.innerWidth,
  page: document.documentElement.scrollWidth,
  pictures: shown.length,
  labels_that_meet: met.length,
  cut: texts.filter(t => t.getBoundingClientRect().left < 0
    || t.getBoundingClientRect().right > window.innerWidth).length,
  hops: hops.length,
  hops_outside: hops.filter(h => h.left < 0 || h.right > window.innerWidth).length,
  hops_that_meet: hops.filter((a, i) => hops.some((b, k) => k > i && a.left < b.right
    && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length,
  smallest: Math.min(...texts.map(t => t.getBoundingClientRect().height)),
});
</script>"""


@pytest.fixture(scope="module")
def browser():
    for name in ("chromium", "chromium-headless-shell"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium: apt-get install chromium")


def report():
    """Connections from 3 us to 1 s: more than five decades."""
    rng = random.Random(1)

    def spread(path):
        own = tuple(
            dataclasses.replace(
                each,
                times_ns={
                    **each.times_ns,
                    "connect": tuple(int(10 ** rng.uniform(3.5, 9)) for _ in range(80)),
                },
            )
            for each in path.rounds
        )
        known = facts.TSI if path.name == "tsi" else facts.STANDARD[path.name]
        return dataclasses.replace(path, rounds=own, facts=known)

    own = sample.report()
    paths = {name: spread(path) for name, path in own.paths.items()}
    return dataclasses.replace(own, paths=paths)


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_nothing_runs_into_anything(browser, width, tmp_path):
    page = tmp_path / "page.html"
    frame = tmp_path / "frame.html"
    text = html.render(report())
    page.write_text(text.replace("</body>", f"{MEASURE}</body>"))
    # A window has a least width of its own; a frame has what it is given.
    frame.write_text(
        f'<iframe id="f" src="page.html" width="{width}" height="900"></iframe>'
        "<script>f.onload = () => { document.body.dataset.found ="
        " f.contentDocument.body.dataset.found; };</script>"
    )
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile"),
            *("--window-size=1400,1000", "--virtual-time-budget=5000", frame.as_uri()),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(unescape(found[1]))
    assert seen["window"] == width
    assert seen["page"] <= width
    assert seen["pictures"] == 5
    assert seen["labels_that_meet"] == 0
    assert seen["cut"] == 0
    assert seen["hops"] == 8
    assert (seen["hops_outside"], seen["hops_that_meet"]) == (0, 0)
    assert seen["smallest"] >= 9
