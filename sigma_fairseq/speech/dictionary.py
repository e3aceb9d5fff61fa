"""Letters, the word boundary and the CTC blank as a fairseq dictionary."""

from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

BLANK = "<blank>"
WORD_BOUNDARY = "|"


class LetterDictionary(Dictionary):
    """The CTC blank, at 0, and after it the symbols of a `dict.txt`: 29 with English letters.

    CTC has neither a beginning nor an end of a sentence, and its labels are never the blank: the
    blank also stands where fairseq asks for bos, eos, padding and the unknown, so that a model has
    no outputs that nothing trains.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(add_special_symbols=False)
        self.bos_word = self.pad_word = self.eos_word = self.unk_word = BLANK
        index = self.add_symbol(BLANK)
        self.bos_index = self.pad_index = self.eos_index = self.unk_index = index
        self.nspecial = 1

    @classmethod
    def read(cls, path: Path) -> "LetterDictionary":
        """Reads a `dict.txt`, a symbol and a count in each line.

        Raises:
            ValueError: it is missing or malformed, or a symbol is not one character, or the word
                boundary is not among them.
        """
        try:
            dictionary: LetterDictionary = cls.load(str(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        long = [symbol for symbol in dictionary.symbols[1:] if len(symbol) != 1]
        if long:
            raise ValueError(f"{path}: {long[0]!r} is not one character; labels are letters")
        if WORD_BOUNDARY not in dictionary:
            raise ValueError(f"{path}: the word boundary {WORD_BOUNDARY!r} is not in it")
        return dictionary

    def labels(self, text: str) -> list[int]:
        """Label numbers of words between spaces: `the cat` is t h e | c a t.

        Raises:
            ValueError: a character is not in the dictionary, or the text has no words.
        """
        letters = WORD_BOUNDARY.join(text.split())
        if not letters:
            raise ValueError("the transcript is empty")
        unknown = sorted(set(letters) - self.indices.keys())
        if unknown:
            raise ValueError(f"not in the dictionary: {' '.join(unknown)}")
        return [self.index(letter) for letter in letters]

    def words(self, letters: str) -> str:
        """Words between spaces from letters between spaces: the inverse of `string(labels(...))`.

        Text that is in words already stays as it is.
        """
        symbols = letters.split()
        if any(len(symbol) > 1 for symbol in symbols):
            return letters
        return " ".join("".join(symbols).replace(WORD_BOUNDARY, " ").split())
