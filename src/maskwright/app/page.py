"""The look of the run report and of comparisons: one style sheet and a page's frame. No script, nothing fetched."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark;
  --ground: #fbfbf9; --panel: #f2f2ee; --ink: #1c1e21; --soft: #565b62; --line: #d9d9d3; --accent: #17567f;
  --good: #1d6440; --raw: #a9bccb; --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --c0: #0b6aa8; --c1: #cf5a00; --c2: #00805e; --c3: #b0548f; --c4: #a67c00; --c5: #3f8fc4;
  --c6: #6d4fa0; --c7: #6f7378;
  --mono: ui-monospace, "Cascadia Code", "Source Code Pro", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #15171a; --panel: #1e2125; --ink: #e7e7e3; --soft: #a9aeb5; --line: #353a40; --accent: #8cc3ea;
  --good: #86d3a8; --raw: #4a5b69;
  --c0: #5aaee8; --c1: #f08a3c; --c2: #3cc79a; --c3: #e08fc4; --c4: #e0b640; --c5: #9fd0f2; --c6: #b49be0;
  --c7: #a4a8ad; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.6 var(--sans); }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.5rem; }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .04em; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); margin: .3rem 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { max-width: 44rem; margin: .5rem 0; }
a { color: var(--accent); text-underline-offset: .15em; }
.soft, figcaption, caption, .note { color: var(--soft); font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem 2rem;
  margin: 1.5rem 0 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-family: var(--serif); overflow-wrap: anywhere; }
.claim { max-width: none; margin: 0 0 1rem; padding: .75rem 1rem; border-left: .25rem solid var(--accent);
  background: var(--panel); font-size: 1.1rem; }
.claim.none { border-color: var(--good); }
.claim.none strong { color: var(--good); }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: .3rem; font: .9rem/1.5 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .75rem 0; }
code { font-family: var(--mono); font-size: .9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem 1.5rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .85rem; }
td.n, th.n { text-align: right; }
table.wide { width: 100%; }
td.name, td.long { overflow-wrap: anywhere; min-width: 8rem; }
td.graph { width: 45%; min-width: 6rem; padding-right: 0; vertical-align: middle; color: var(--accent); }
.swatch { display: inline-block; width: .95em; height: .95em; margin-right: .5em; vertical-align: -.1em;
  border: 1px solid color-mix(in srgb, var(--ink) 45%, transparent); border-radius: .15em; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
  gap: 1.5rem 1.25rem; }
figure { margin: 0; min-width: 0; }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.trio img { width: 100%; height: auto; display: block; background: var(--panel); }
figure a { text-decoration: none; color: inherit; display: block; }
figure a:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figcaption { margin-top: .35rem; overflow-wrap: anywhere; display: flex; flex-wrap: wrap; gap: 0 .9em; }
figcaption b { color: var(--ink); font-weight: 600; }
figcaption span.part { white-space: nowrap; }
figure .back { display: none; }
figure:target { grid-column: 1 / -1; }
figure:target .back { display: inline; color: var(--accent); text-decoration: underline; }
.strips { display: grid; gap: 1.25rem; margin: 1.5rem 0; }
.strip > div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(8.5rem, 45%), 1fr)); gap: 4px; }
.strip > div > div { min-width: 0; max-width: 17.5rem; }
.strip img { width: 100%; height: auto; display: block; background: var(--panel); }
.strip > div span { display: block; color: var(--soft); font-size: .8rem; line-height: 1.4; }
img.sheet { width: 100%; height: auto; display: block; margin: 1rem 0 0; background: var(--panel); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.25rem 2rem; }
svg.curve { width: 100%; height: auto; display: block; overflow: visible; }
svg.curve text { font: 11px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.curve polyline { fill: none; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
svg.curve .raw { stroke: var(--raw); stroke-width: 1; }
svg.curve .smooth { stroke: var(--accent); stroke-width: 2; }
svg.curve .grid { stroke: var(--line); } svg.curve .axis { stroke: var(--soft); }
svg.curve .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
svg.bar { display: block; width: 100%; height: .7rem; }
svg.bar .track { fill: var(--panel); } svg.bar .value.plain { fill: var(--accent); }
svg.bar .value { stroke: color-mix(in srgb, var(--ink) 45%, transparent); stroke-width: 1;
  vector-effect: non-scaling-stroke; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); } .c6 { --own: var(--c6); } .c7 { --own: var(--c7); }
svg.curve .each { stroke: var(--own); stroke-width: 1; opacity: .4; }
svg.curve .mean { stroke: var(--own); stroke-width: 2; }
svg.curve .again { stroke-dasharray: 5 3; }
svg.bar .of { fill: var(--own, var(--accent)); } svg.bar .tick { fill: var(--ink); }
.key { display: inline-block; width: 1.3em; height: 0; margin-right: .5em; vertical-align: .25em;
  border-top: 3px solid var(--own, var(--accent)); }
.key.again { border-top-style: dashed; }
ul.keys { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: .5rem 0 1rem; padding: 0; }
ul.notes { max-width: 44rem; margin: .5rem 0; padding-left: 1.2rem; } ul.notes li { margin: .3rem 0; }
td.nowrap { white-space: nowrap; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); padding: .4rem 0; }
dl.record { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: .5rem 0; }
dl.record dt { color: var(--soft); } dl.record dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; } th, td { padding-right: .9rem; }
  dl.record { grid-template-columns: 1fr; gap: 0; } dl.record dd { margin-bottom: .6rem; }
  figure:target .trio { grid-template-columns: 1fr; } }
@media print { details > * { display: block; } figure, tr { break-inside: avoid; } }
"""


def frame(title: str, body: str) -> str:
    """The whole page around its body (HTML). The policy in its head keeps browsers from fetching anything."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
