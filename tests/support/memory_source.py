"""A text source of documents in memory."""

import random

from mcframe.data.cache import fingerprint
from mcframe.data.split import split_documents
from mcframe.hookspecs import TextSource


class MemorySource(TextSource):
    def __init__(self, texts, streaming=False, shuffled=False, positions=False):
        self.texts = list(texts)
        self.streaming = streaming
        self.shuffled = shuffled
        self.positions = positions
        self.read = 0

    @property
    def identity(self):
        return fingerprint(self.texts)

    def documents(self, epoch=0):
        return (text for text, _ in self._read(epoch, 0))

    def positioned_documents(self, epoch=0, after=None):
        return self._read(epoch, after or 0) if self.positions else None

    def _read(self, epoch, passed):
        texts = list(self.texts)
        if self.shuffled:
            random.Random(epoch).shuffle(texts)
        for number, text in enumerate(texts[passed:], passed + 1):
            self.read += 1
            yield text, number


def some_texts(count, seed=0, longest=60):
    """Return documents of one to `longest` characters, most of them distinct."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh é\n", k=rng.randint(1, longest))) for _ in range(count)]


def documents_in(source, split, fraction):
    """Return the source's documents in `split`."""
    return list(split_documents(source, source.texts, split, fraction))
