"""From raw text to whole sentences of a fitting length."""

import re
from collections.abc import Iterator

_ABBREVIATIONS = r"e\.g|i\.e|etc|vs|cf|Fig|fig|al|No|no|Inc|Ltd|Corp|Co|U\.S|St|Dr|Mr|Mrs|approx|resp|eq|Eq|Sec|[A-Z]"
_END = re.compile(r"(?<!\b[A-Z]\.)(?<=[.!?])\s+(?=[\"(']?[A-Z0-9])")
_ABBREVIATED = re.compile(rf"(?:^|[\s(])(?:{_ABBREVIATIONS})\.$")
_MARKUP = re.compile(r"https?:|www\.|[<>|{}\\$`~^*#@=\[\]]|::|__|--|\.\.\.|…|\d{3,}-\d|\uFFFD|&\w+;")

_ENGLISH = re.compile(
    r"\b(the|of|and|is|are|to|for|that|with|by|in|from|or|as|be|a|an|this|you|it|not|on|was|has)\b", re.I
)
#: words that lean on a sentence before them, with which a passage cannot begin
_LEANING = re.compile(
    r"(This|That|These|Those|Such|It|Its|They|Their|He|She|Both|However|But|And|Or|So|Thus|Therefore|Hence|Otherwise"
    r"|Also|Additionally|Furthermore|Moreover|Instead|Here|There|Then|Where|In (summary|addition|this|that|such)"
    r"|For (example|instance|this|these)|Other|Others|Another|Finally|Note)\b"
)


def flatten(text: str) -> str:
    """One line, single blanks, plain quotation marks."""
    for curly, plain in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("\u00a0", " "), ("\u200b", "")):
        text = text.replace(curly, plain)
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """Split flattened text after full stops, but not after an abbreviation."""
    result: list[str] = []
    for piece in _END.split(text):
        if result and _ABBREVIATED.search(result[-1]):
            result[-1] += " " + piece
        else:
            result.append(piece)
    return [sentence for sentence in result if sentence]


def is_clean(text: str) -> bool:
    """A whole English sentence in running words: no markup, address or table, brackets and quotes in pairs."""
    letters = [character for character in text if character.isalpha()]
    return (
        bool(re.match(r"[\"'(]?[A-Z0-9]", text))
        and text.endswith((".", "!", "?", '."', ".)", '?"'))
        and not _MARKUP.search(text)
        and text.count("(") == text.count(")")
        and text.count('"') % 2 == 0
        and len(_ENGLISH.findall(text)) >= 0.12 * len(text.split())
        and len(letters) + text.count(" ") >= 0.88 * len(text)
        and sum(letter.isascii() for letter in letters) >= 0.97 * len(letters)
        and sum(letter.isupper() for letter in letters) <= 0.2 * len(letters)
    )


def passages(text: str, shortest: int, longest: int, rejected: str = r"$^") -> Iterator[str]:
    """Runs of whole sentences with ``shortest`` to ``longest`` characters, clean ones only, without overlap.

    A run ends before a sentence that matches ``rejected``, and does not begin with one that leans on what came before.
    """
    passage = ""
    for sentence in sentences(flatten(text)):
        joined = f"{passage} {sentence}".strip()
        usable = is_clean(sentence) and not re.search(rejected, sentence)
        if usable and len(joined) <= longest and (passage or not _LEANING.match(sentence)):
            passage = joined
            continue
        if shortest <= len(passage) <= longest:
            yield passage
        passage = sentence if usable and not _LEANING.match(sentence) else ""
    if shortest <= len(passage) <= longest:
        yield passage
