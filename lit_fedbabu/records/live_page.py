"""The page of a run while it goes on, as a Jinja template. A Flower app carries Python files, and no other page."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
{% if going %}
<meta http-equiv="refresh" content="{{ every_s }}">
{% endif %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ state }} · {{ title }}</title>
<style>
:root { --ink: #1c1c1c; --paper: #fff; --faint: #5c5c5c; --line: #ddd; --mark: #0072b2; --bad: #b03000; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --faint: #a8a8a8; --line: #3a3a3a; --mark: #4d8fe8; --bad: #ff9a70; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 0 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
a { color: var(--mark); } h1 { font-size: 1.5rem; margin: 1.2rem 0 0; } h2 { font-size: 1.15rem; margin: 2rem 0
  .4rem; }
p { margin: .2rem 0; } .faint { color: var(--faint); } .bad { color: var(--bad); }
dl { display: flex; flex-wrap: wrap; gap: .8rem 2.2rem; margin: 1rem 0; } dt { color: var(--faint); font-size:
  .875rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
progress { width: 100%; height: .8rem; accent-color: var(--mark); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .875rem; }
svg { width: 100%; height: auto; } polyline { fill: none; stroke: var(--mark); stroke-width: 2; }
circle { fill: var(--mark); } line { stroke: var(--line); } text { fill: var(--faint); font-size: 13px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric:
  tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { white-space: nowrap; overflow-wrap: normal; }
td.long { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
th.n, td.n { text-align: right; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="{{ 'faint' if going or not bad else 'bad' }}">{{ state }}</p>
{% if of %}
<progress value="{{ done }}" max="{{ of }}">{{ done }} of {{ of }}</progress>
{% endif %}
<dl>
{% for name, value in facts.items() %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% if curves %}
<div class="curves">
{% for curve in curves %}
<figure>
<figcaption>{{ curve.title }}</figcaption>
<svg viewBox="0 0 600 220" role="img" aria-label="{{ curve.title }}">
<line x1="60" y1="190" x2="590" y2="190"/><line x1="60" y1="10" x2="60" y2="190"/>
<text x="54" y="20" text-anchor="end">{{ curve.high }}</text><text x="54" y="190" text-anchor="end">{{
  curve.low }}</text>
<text x="60" y="210">{{ curve.first }}</text><text x="590" y="210" text-anchor="end">round {{ curve.last }}</text>
{% if curve.points | length == 1 %}
<circle cx="{{ curve.points[0][0] }}" cy="{{ curve.points[0][1] }}" r="3"/>
{% else %}
<polyline points="{% for x, y in curve.points %}{{ x }},{{ y }} {% endfor %}"/>
{% endif %}
</svg>
</figure>
{% endfor %}
</div>
{% endif %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="scroll">
<table>
<thead><tr>{% for name in table.columns %}<th scope="col"{% if name in table.right %} class="n"{% endif %}>{{
  name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for value in row %}<td{% if table.columns[loop.index0] in table.right %} class="n"{% elif value is
  string and value | length > 48 %} class="long"{% endif %}>{% if value is mapping %}<a href="{{ value.href |
    urlencode }}">{{ value.text }}</a>{% else %}{{ value }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.more %}
<p class="faint">{{ table.more }}</p>
{% endif %}
{% endfor %}
<p class="faint">Written {{ written }}. {% if going %}The page reads itself anew every {{ every_s }} seconds;
  if this time stands still for much longer than a round takes, the command is no longer running.{% endif %}</p>
</body>
</html>
"""
