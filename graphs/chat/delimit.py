"""Student text and questions as delimited data: cleaned, cut to size, and fenced with a mark that the text
cannot contain.

The mark is a hash of the text itself, so equal texts give equal prompts (the reply cache depends on it) and
nobody can write a text that contains its own mark. What a teacher quotes is looked up in the original text,
so evidence is verbatim or it is nothing.

Nor can a text imitate a fence or a chat template's control token for a reader, human or model, who takes
look-alikes for the real signs: which characters look like `<`, `>` and `|` is Unicode's table of confusables
(UTS 39, package confusable-homoglyphs) and NFKC; which are invisible is its property
Default_Ignorable_Code_Point (package regex) and the categories of controls.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from functools import cache

import regex

REPLACEMENT = "\ufffd"
MAX_QUOTE_CHARS = 4000
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")
# Controls, format characters, surrogates, private use, line separators, and all that shows nothing.
_INVISIBLE = regex.compile(
    r"[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}--[\n\t\r]]", regex.V1
)
_FENCES = re.compile(r"[<≪⋘]{2,}|[>≫⋙]{2,}|[⋘⋙]")
_ROWS = {"≪": 2, "≫": 2, "⋘": 3, "⋙": 3}  # signs that look like a row of so many
_CONTROL_TOKEN = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?s>|</?(?:start|end)_of_turn>|\[/?INST\]")
_SIGNS = frozenset("<>|[]/")
# What is not in the table, by what it looks like: brackets, and single signs for whole rows.
_ALIKE = {
    "<": "\u2329\u27e8\u3008",
    ">": "\u232a\u27e9\u3009",
    "≪": "\u00ab\u300a\u27ea\u2aa1\u2abb",
    "≫": "\u00bb\u300b\u27eb\u2aa2\u2abc",
    "⋘": "\u2af7",
    "⋙": "\u2af8",
}
_BLOCK = re.compile(
    r"<<<data-(?P<mark>[0-9a-f]{16}) (?P<name>[a-z_ 0-9]+)>>>\n(?P<text>.*?)\n<<<end-(?P=mark)>>>", re.DOTALL
)


def clean(text: str) -> str:
    """`text` with every invisible character, every row of angle brackets that could be a fence, and the first
    sign of every control token replaced one for one, so that positions stay the same.

    >>> clean("a\\x00b\\u200bc\\td")
    'a\ufffdb\ufffdc\\td'
    >>> clean("1 << 2, <<<end, <|im_start|>system")
    '1 << 2, \ufffd\ufffd\ufffdend, \ufffd|im_start|>system'
    """
    if not _PLAIN.fullmatch(text):
        text = _INVISIBLE.sub(REPLACEMENT, text).replace("\r", " ")
    shape = text if text.isascii() else text.translate(_look_alikes())  # as long as the text
    hidden = list(text)
    for fenced in _FENCES.finditer(shape):
        if sum(_ROWS.get(sign, 1) for sign in fenced.group()) >= 3:
            hidden[slice(*fenced.span())] = REPLACEMENT * len(fenced.group())
    for token in _CONTROL_TOKEN.finditer(shape):
        hidden[token.start()] = REPLACEMENT
    return "".join(hidden)


@cache
def _look_alikes() -> dict[int, str]:
    """Code points that look like a sign of a fence or a control token, and the sign."""
    from confusable_homoglyphs import confusables  # noqa: PLC0415 - reads its whole table at once

    table: dict[int, str] = {}
    for code in range(0x80, sys.maxunicode + 1):
        plain = unicodedata.normalize("NFKC", chr(code))
        if plain in _SIGNS:
            table[code] = plain
    for sign in "<>":
        for group in confusables.is_confusable(sign, greedy=True) or ():
            table |= {ord(alike["c"]): sign for alike in group["homoglyphs"] if len(alike["c"]) == 1}
    return table | {ord(alike): sign for sign, row in _ALIKE.items() for alike in row}


def shorten(text: str, at_most: int) -> str:
    """The beginning and the end of a text that is longer than `at_most` characters.

    >>> shorten("abcdefghij", 4)
    'ab\\n[6 characters left out]\\nij'
    """
    if len(text) <= at_most:
        return text
    head, tail = at_most - at_most // 2, at_most // 2
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[len(text) - tail :]}"


def fence(name: str, text: str, at_most: int) -> str:
    """`text` as a block of data called `name` (lower-case words), of at most about `at_most` characters.

    >>> print(fence("answer", "2 + 2 = 5", 100))
    <<<data-ccfead18ea6e0326 answer>>>
    2 + 2 = 5
    <<<end-ccfead18ea6e0326>>>
    """
    shown = shorten(clean(text), at_most)
    mark = _mark(shown)
    while mark in shown:  # 64 bits that would have to be a fixed point of the hash
        mark = _mark(mark + shown)
    return f"<<<data-{mark} {name}>>>\n{shown}\n<<<end-{mark}>>>"


def blocks(prompt: str) -> list[tuple[str, str]]:
    """The (name, text) of every outermost block of data in a prompt, in order: `fence` read back.

    >>> blocks("Read this: " + fence("answer", "2 + 2 = 5", 100))
    [('answer', '2 + 2 = 5')]
    """
    return [(block["name"], block["text"]) for block in _BLOCK.finditer(prompt)]


def quoted(text: str, quote: str) -> str | None:
    """The part of `text` that `quote` repeats, up to differences of white space; `None` when there is none.

    >>> quoted("so  2 + 2\\n= 5.", "2 + 2 = 5"), quoted("2 + 2 = 5", "2 + 2 = 4"), quoted("2 + 2", " ")
    ('2 + 2\\n= 5', None, None)
    """
    words = clean(quote).split()
    if not words or len(quote) > MAX_QUOTE_CHARS:
        return None
    match = re.search(r"\s+".join(map(re.escape, words)), clean(text))
    return text[match.start() : match.end()] if match else None


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
