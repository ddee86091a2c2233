"""File names that Hugging Face's ImageFolder doesn't take for splits.

It takes a word such as `train` or `test` between separators, in the name of a file or of a folder, for a split, and
then drops all columns of the metadata without a word (datasets.data_files, SPLIT_KEYWORDS and NON_WORDS_CHARS).
"""

import re

_WORDS = "train|training|validation|valid|dev|val|test|testing|eval|evaluation"
_SPLIT_WORD = re.compile(rf"(?:^|(?<=[-._ 0-9/]))x*(?:{_WORDS})(?=[-._ 0-9/]|$)")


def has_split_word(name: str) -> bool:
    """Whether ImageFolder would take a part of a file name for a split."""
    return any(not match.group().startswith("x") for match in _SPLIT_WORD.finditer(name))


def without_split_words(name: str) -> str:
    """The name with an x before each such word; names that differ stay different (xtest becomes xxtest)."""
    return _SPLIT_WORD.sub(lambda match: f"x{match.group()}", name)
