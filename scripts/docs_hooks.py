"""MkDocs hooks: add the generated configuration page, and convert equations to MathML.

Equations are converted when the site is built, so that pages can show them without scripts and
without a network connection.
"""

import html
import re

from config_reference import reference
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# the output of pymdownx.arithmatex for $...$ and $$...$$
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the configuration reference to the pages."""
    files.append(File.generated(config, "configuration.md", content=reference()))
    return files


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert equations to MathML."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match.groups()
    return convert(html.unescape(latex), display="block" if tag == "div" else "inline")
