"""What MkDocs asks of us as it builds the documentation: the generated page, and equations.

Equations become MathML when the site is built, so that a page needs neither a script nor a network
to show them.
"""

import html
import re

from config_reference import reference
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# what pymdownx.arithmatex leaves of $...$ and $$...$$
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the configuration reference."""
    files.append(File.generated(config, "configuration.md", content=reference()))
    return files


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write equations as MathML."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match.groups()
    return convert(html.unescape(latex), display="block" if tag == "div" else "inline")
