"""What all pages that need JavaScript share: one file that works offline, with its data inside."""

import json
from importlib.resources import files
from string import Template
from typing import Any


def fill_frame(name: str, title: str, data: Any, libraries: str = "") -> str:
    """The HTML of a page.

    Args:
        name: of its files, such as `samples` for `samples.html` and `samples.js`.
        title: as HTML.
        data: what its script reads, see `embed_json`.
        libraries: JavaScript that its script needs.
    """
    text = {
        key: read_asset(file)
        for key, file in {
            "main": f"{name}.html",
            "style": "page.css",
            "crystals": "crystals.js",
            "shared": "shared.js",
            "script": f"{name}.js",
        }.items()
    }
    return Template(read_asset("frame.html")).substitute(
        text, title=title, data=embed_json(data), libraries=libraries
    )


def read_asset(name: str) -> str:
    """The text of a file beside this module, such as `charts.js`."""
    return files("src.report").joinpath(name).read_text("utf-8")


def embed_json(content: Any) -> str:
    """Serialize to JSON for a `<script>` element, escaped so that no text can close the element.

    Raises:
        ValueError: for non-finite numbers, which JSON does not support.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
