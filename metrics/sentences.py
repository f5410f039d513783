"""How near a sentence is to the one that was wanted."""

from __future__ import annotations

from functools import cache, lru_cache


class NoSynonyms:
    """Stands where METEOR asks WordNet, whose data would have to be downloaded: no word has a synonym."""

    def synsets(self, word: str) -> list:
        return []


@cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@lru_cache(maxsize=10_000)
def meteor(said: str, wanted: str) -> float:
    """METEOR of a sentence against one reference, in [0, 1], by equal words and equal stems, without synonyms.

    With P and R the precision and recall of matched words, in c chunks of m matches:
        ( 1 - 0.5 (c/m)^3 ) * P R / ( 0.9 P + 0.1 R )
    so that a sentence of n words that is right has 1 - 0.5 / n^3, a single word 0.5.

    Source: Banerjee and Lavie 2005; nltk's implementation with its defaults
    """
    from nltk.translate.meteor_score import single_meteor_score

    if not said or not wanted:
        return 0.0
    return float(single_meteor_score(wanted.split(), said.split(), stemmer=_stemmer(), wordnet=NoSynonyms()))
