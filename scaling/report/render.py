"""A report as a list of blocks, rendered as Markdown and as HTML."""

import base64
import html
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

_CODE = re.compile(r"(```.*?```|(?<!\\)`[^`\n]*`)", re.DOTALL)  # a block, or within a line
IMAGE_SCALE = 0.6  # CSS pixels per pixel of a PNG


class Table(NamedTuple):
  """A table of Markdown text; the first column names the row."""

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]


class Image(NamedTuple):
  """A figure of the workdir."""

  name: str
  caption: str


Block = str | Table | Image  # str: Markdown


def to_markdown(title: str, content: Iterable[Block]) -> str:
  """Renders a report as Markdown, with figures by relative path."""
  return "\n\n".join([_without_html(f"# {title}"), *map(_markdown, content)]) + "\n"


def _markdown(block: Block) -> str:
  """Renders a block; a tag in its text stays text."""
  return _without_html(_block(block))


def _without_html(text: str) -> str:
  """Writes a tag that is not in code as text."""
  parts = _CODE.split(text)
  parts[::2] = [re.sub("<(?=[A-Za-z/!?])", "&lt;", part) for part in parts[::2]]
  return "".join(parts)


def _block(block: Block) -> str:
  match block:
    case Table(columns, rows):
      lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
      escaped = (
        [" ".join(cell.replace("|", "&#124;").split("\n")) for cell in line] for line in lines
      )
      return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
    case Image(name, caption):
      return f"![{caption}](figures/{name}.png)\n\n*{caption}* ([PDF](figures/{name}.pdf))"
  return block


CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --line: #d9dce1; --page: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #9aa2ad; --line: #3a3f46; --page: #16181b }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem }
h1 { font-size: 1.5rem; margin: 0 0 1rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
table { border-collapse: collapse; font-size: .85rem; margin: .8rem 0; display: block;
  overflow-x: auto }
th, td { padding: .22rem .7rem; white-space: nowrap; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 } th:first-child { text-align: left }
figure { margin: 1.6rem 0 } figcaption { color: var(--soft); font-size: .85rem }
img { background: #fff; border-radius: 6px; padding: 8px; max-width: 100%; height: auto;
  box-sizing: border-box }
code, pre { font: .85em ui-monospace, monospace } pre { overflow-x: auto; padding: .8rem;
  border: 1px solid var(--line); border-radius: 6px }
h1 + p { font-size: 1.1rem; border-left: 4px solid #D55E00; padding-left: .9rem }
"""
PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body>
<h1>{title}</h1>
{content}
</body></html>
"""


def to_html(title: str, content: Iterable[Block], folder: Path) -> str:
  """Renders a report as one HTML page that holds the PNG files of `folder`."""
  markdown = MarkdownIt("js-default")  # tables, and no HTML out of the text
  parts = [
    _figure((folder / f"{block.name}.png").read_bytes(), block.caption)
    if isinstance(block, Image)
    else markdown.render(_markdown(block))
    for block in content
  ]
  return PAGE.format(title=html.escape(title), css=CSS, content="\n".join(parts))


def _figure(png: bytes, caption: str) -> str:
  width = round(IMAGE_SCALE * struct.unpack(">I", png[16:20])[0])
  source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
  image = f'<img width="{width}" alt="{html.escape(caption)}" src="{source}">'
  return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
