"""Hostile strings in files, and parsers that find what they do in an output."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

NAMES = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "entity": "&lt;script&gt;&#60;b&#62;",
    "link": "[free](https://evil.example) ![x](https://evil.example/x.png) <https://evil.example>",
    "bare link": "see https://evil.example or www.evil.example",
    "table": "a | b | c\\| d",
    "rows": "a\n| x | y |\n| --- | --- |\nb",
    "fence": "a\n```\n```toml lorsmerge-recipe\nbase = 'evil'\n```\n~~~",
    "ticks": "`a` ``b`` ````c```` `",
    "heading": "a\n# Owned\n===\n---\n> b\n1. c\n- d",
    "yaml": "a\n---\nlicense: mit\n---\n'\": [x] {y} & *z !!python/object:os.system",
    "python": "'); __import__('os').system('touch owned'); print('",
    "python lines": '"""\nimport os\nos.system("touch owned")\n"""',
    "braces": "{repo} {0} {{}} %s $HOME ${HOME} $(touch owned)",
    "jinja": "{{ 7 * 7 }} {% for x in y %} {# gone #} {{ self.__init__.__globals__ }} <<x>> <% if %> <# c #>",
    "shell": "a; touch owned && `touch owned` | sh > /dev/null 2>&1 # b",
    "latex": r"\input{/etc/passwd} \end{tabular} % & $x$ # _ { } ~ ^ \write18{ls}",
    "escapes": "\x1b[31mred\x1b]0;title\x07\x9b31m\x00\x7f\r\t",
    "bidi": "safe\u202egnp.exe\u2066\u2069\u200e\u200f\u061c\u200b\ufeff\u2028\u2029",
    "surrogate": "half \udc80\ud800 of a pair",
    "tags": "\U000e0041\U000e0042 invisible",
    "looks like us": "x\nerror: nothing is wrong\nnote: go on",
    "long": "é" * 300,
}  # fmt: skip
STEERS = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def links_and_html(text: str) -> list[str]:
    """Every link, picture and piece of HTML in a page of Markdown, by an independent reader."""
    found = []
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        for token in (block, *(block.children or ())):
            if token.type in ("html_block", "html_inline"):
                found.append(token.content)
            elif token.type in ("link_open", "image"):
                found.append(str(token.attrs.get("href") or token.attrs.get("src")))
    return found


def shape(text: str) -> list[str]:
    """The kinds of blocks in a page of Markdown, in order, without their text."""
    parsed = MarkdownIt("commonmark").enable("table").parse(text)
    return [f"{token.type} {token.info}".strip() for token in parsed]


def text_of(markdown: str) -> str:
    """What a reader sees of one paragraph of Markdown."""
    (inline,) = (t for t in MarkdownIt("commonmark").enable("table").parse(markdown) if t.children)
    return "".join(token.content for token in inline.children or ())


class Dom(HTMLParser):
    """A page's elements, attributes and text in order, less the layout of its source."""

    INLINE = frozenset({"td", "th", "p", "li", "h1", "h2", "title", "a", "strong", "sup", "span"})
    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, sorted(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.found.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.found.append(data.split())
        elif data.strip() or (self.open and self.open[-1] in self.INLINE):
            self.found.append(data)


class Elements(HTMLParser):
    """The elements and attributes of a page of HTML."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))
