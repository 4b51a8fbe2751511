"""One HTML file with the captures, the viewer and its style. It loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>{viewers}</main>
<script>{script}</script>
<script>
for (const data of document.querySelectorAll("script[type='application/json']"))
  VLBertViewer.mount(data.previousElementSibling, JSON.parse(data.textContent));
</script>
</body>
</html>
"""
VIEWER = '<section class="viewer"></section>\n<script type="application/json">{data}</script>'


def render_report(captures: Sequence[dict[str, Any]]) -> str:
    """The page with the captures below each other."""
    # A "</script>" inside the data would end the script.
    parts = [VIEWER.format(data=json.dumps(capture).replace("<", "\\u003c")) for capture in captures]
    return PAGE.format(
        title=html.escape(captures[0]["title"] or "attention"),
        style=(STATIC / "viewer.css").read_text(encoding="utf-8"),
        script=(STATIC / "viewer.js").read_text(encoding="utf-8"),
        viewers="\n".join(parts),
    )
