"""Student text and questions as delimited data: cleaned, cut to size, and fenced with a mark that the text
cannot contain.

The mark is a hash of the text itself, so equal texts give equal prompts (the reply cache depends on it) and
nobody can write a text that contains its own mark. What a teacher quotes is looked up in the original text,
so evidence is verbatim or it is nothing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

REPLACEMENT = "\ufffd"
MAX_QUOTE_CHARS = 4000
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")
# Control, format (zero-width, bidirectional, tag characters), surrogate, private use: invisible, or not text
# at all.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})
_BLOCK = re.compile(
    r"<<<data-(?P<mark>[0-9a-f]{16}) (?P<name>[a-z_ 0-9]+)>>>\n(?P<text>.*?)\n<<<end-(?P=mark)>>>", re.DOTALL
)


def clean(text: str) -> str:
    """`text` with every invisible character replaced one for one, so that positions stay the same.

    >>> clean("a\\x00b\\u200bc\\td")
    'a\ufffdb\ufffdc\\td'
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_visible, text))


def _visible(one: str) -> str:
    if one in "\n\t\r":
        return " " if one == "\r" else one
    return REPLACEMENT if unicodedata.category(one) in _INVISIBLE else one


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
    return [(found["name"], found["text"]) for found in _BLOCK.finditer(prompt)]


def quoted(text: str, quote: str) -> str | None:
    """The part of `text` that `quote` repeats, up to differences of white space; `None` when there is none.

    >>> quoted("so  2 + 2\\n= 5.", "2 + 2 = 5"), quoted("2 + 2 = 5", "2 + 2 = 4"), quoted("2 + 2", " ")
    ('2 + 2\\n= 5', None, None)
    """
    words = clean(quote).split()
    if not words or len(quote) > MAX_QUOTE_CHARS:
        return None
    found = re.search(r"\s+".join(map(re.escape, words)), clean(text))
    return text[found.start() : found.end()] if found else None


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
