"""A hundred contents of messages that have broken a client or server somewhere, and a few more for later."""

import itertools
import json

LARGE_BYTES = 50 * 1024

JSON_TEXTS = (
    '{"text": "👋🏽 👨‍👩‍👧‍👦 ❤️ 🇩🇪"}',
    r'{"text": "\ud83d\udc4b in escapes"}',
    r'{"text": "\"double\" and \u0027single\u0027 and `back`"}',
    r'{"text": "C:\\new\\rows\\cache\\\\n\\\\r\\\\c"}',
    r'{"text": "line\nline\r\nline\ttab\\n\\r\\c\\:"}',
    r'{"text": "before\u0000after", "\u0000": "\u0000\u0001\u001f\u007f"}',
    r'{"text": "MESSAGE\ndestination:/events\n\nbody\u0000\n"}',
    '{\n  "text": "lines between",\n\n  "list": [\n\n  ]\n}',
    '{\r\n  "text": "and of the other kind"\r\n}\r\n',
    '{"text": "Zażółć gęślą jaźń — наконец — 終わり — \u202eעברית\u202c — e\u0301\u2028\u2029\u0085\ufeff"}',
    "[[[[[]]], {}, [null, true, false, 1e400, -0, 12345678901234567890.5]]]",
    '{"": "", " ": " ", ":": ":", "__proto__": {"constructor": 1}}',
    f'{{"text": "{"x" * LARGE_BYTES}"}}',
)
PLAIN_TEXTS = (
    "",
    " ",
    "123",
    "null",
    '"',
    'it\'s a "quote"',
    r"C:\new\rows\cache \n \r \c \\ \: \0 \u0000",
    "\\",
    "{not json}",
    "a\0b",
    "\n\n\0\n",
    "CONNECTED\nversion:1.2\n\n\0",
    "line\r\nline\rline\n",
    "🙂" * (LARGE_BYTES // 4),
    "\ufeffbyte order mark",
    "</script><!-- & &amp; %00 %0A",
)
STORED = tuple(itertools.islice(itertools.cycle((*JSON_TEXTS, *PLAIN_TEXTS)), 120))
"""The contents that the application writes, in order."""
BEFORE_THE_CRASH = 100


def meaning(stored: str) -> object:
    """Return the content as a client should understand it: the value of stored JSON, otherwise the text itself."""
    return json.loads(stored) if stored in JSON_TEXTS else stored
