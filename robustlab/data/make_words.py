"""Make the shipped table of words: ``python -m robustlab.data.make_words [--wordnet /usr/share/wordnet] [--check]``.

Nothing here runs when robustlab is used; the script is kept so that ``files/words.npz`` can be made again. It needs the
database of WordNet 3.0 as Debian's package ``wordnet-base`` installs it. The words are those that stand at least three
times in the training parts of the shipped texts. Of each the table has

* the *synonyms*: words of a common synset, and what inflection by -s, -ed and -ing makes of both (films, movies);
* the *antonyms* of WordNet, inflected likewise;
* a *vector*: positive pointwise mutual information with the words at most four places away in the training texts,

      PPMI_ij = max(0, log(n_ij · Σ n^0.75 · n / (n_i· · n_·j^0.75 · n))),

  whose 50 leading left singular vectors, times the roots of the singular values, are divided by their lengths and
  stored as int8. (Levy, Goldberg and Dagan, "Improving distributional similarity with lessons learned from word
  embeddings", 2015, for the exponents 0.75 and ½.)
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlab.data.embedded import FOLDER
from robustlab.data.spam import sms_spam
from robustlab.data.texts import Vocabulary, load_texts
from robustlab.geometry.keyed import Noise

WINDOW, SIZE = 4, 50
PARTS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
Pairs = set[tuple[str, str]]


def all_texts() -> list[str]:
    """The training texts of all shipped sets."""
    return [*load_texts("sentence_polarity").texts_train, *load_texts("banking77").texts_train, *sms_spam().texts_train]


def read_wordnet(folder: Path) -> tuple[Pairs, Pairs]:
    """The pairs of synonyms and of antonyms among single words in lower case, in both orders."""
    synonyms: Pairs = set()
    antonyms: Pairs = set()
    words: dict[tuple[str, str], list[str]] = {}
    opposite: list[tuple[list[str], int, tuple[str, str], int]] = []
    for part in dict.fromkeys(PARTS.values()):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):  # the license
                continue
            field = line.split(" | ")[0].split()
            count = int(field[3], 16)
            said = [word.partition("(")[0].lower() for word in field[4 : 4 + 2 * count : 2]]
            words[part, field[0]] = said
            plain = [word for word in said if word.isalpha()]
            synonyms |= {(a, b) for a in plain for b in plain if a != b}
            pointers = field[5 + 2 * count :]
            for symbol, offset, kind, ends in zip(*(pointers[i::4] for i in range(4)), strict=False):
                if symbol == "!":  # between the two words whose numbers are the halves of ``ends``
                    opposite.append((said, int(ends[:2], 16), (PARTS[kind], offset), int(ends[2:], 16)))
    for said, source, there, target in opposite:
        a, b = said[source - 1], words[there][target - 1]
        antonyms |= {(a, b), (b, a)}
    return synonyms, antonyms


def inflected(pairs: Pairs, known: set[str]) -> dict[str, set[str]]:
    """The pairs among the known words, and those of their forms with one and the same ending."""
    found: dict[str, set[str]] = defaultdict(set)
    for a, b in pairs:
        for ending in ("", "s", "ed", "ing"):
            one, other = _with(a, ending), _with(b, ending)
            if one in known and other in known and one != other:
                found[one].add(other)
    return found


def _with(word: str, ending: str) -> str:
    if ending == "s":
        if word.endswith(("s", "x", "ch", "sh")):
            return word + "es"
        return word[:-1] + "ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else word + "s"
    return (word.removesuffix("e") if ending else word) + ending


def vectors(texts: list[str], vocabulary: Vocabulary) -> Tensor:
    """Unit vectors (V, 50) by the singular vectors of the PPMI matrix."""
    size = len(vocabulary)
    tokens = vocabulary.encode(texts)
    n = torch.zeros(size * size)
    for gap in range(1, WINDOW + 1):
        here, there = tokens[:, :-gap].flatten(), tokens[:, gap:].flatten()
        both = (here > 1) & (there > 1)
        place = here[both] * size + there[both]
        n.index_add_(0, place, torch.ones(len(place)))
    n = n.reshape(size, size)
    n = n + n.T
    rows = n.sum(dim=1).clamp_min(1)
    context = rows**0.75 / (rows**0.75).sum()
    ppmi = (n / rows[:, None] / context[None]).log().clamp_min(0)  # log 0 is −∞, and becomes 0
    basis = Noise(0, torch.arange(size)).normal(0, (SIZE + 20,))
    for _ in range(8):  # subspace iteration, for a symmetric count but a matrix that is not
        basis = torch.linalg.qr(ppmi @ (ppmi.T @ basis)).Q
    u, s, _ = torch.linalg.svd(basis.T @ ppmi, full_matrices=False)
    found = (basis @ u)[:, :SIZE] * s[:SIZE].sqrt()
    return found / found.norm(dim=1, keepdim=True).clamp_min(1e-9)


def make(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the table."""
    texts = all_texts()
    vocabulary = Vocabulary.of(texts, least=3)
    known, ids = set(vocabulary.words), {word: i for i, word in enumerate(vocabulary.words)}
    synonyms, antonyms = read_wordnet(folder)

    def packed(pairs: Pairs) -> np.ndarray:
        found = inflected(pairs, known)
        return np.array(sorted((ids[a], ids[b]) for a, others in found.items() for b in others), dtype=np.int16)

    words = np.frombuffer("\n".join(vocabulary.words).encode(), dtype=np.uint8)
    stored = (vectors(texts, vocabulary) * 127).round().to(torch.int8).numpy()
    return {"words": words, "synonyms": packed(synonyms), "antonyms": packed(antonyms), "vectors": stored}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m robustlab.data.make_words", description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's database")
    parser.add_argument("--check", action="store_true", help="write nothing: compare with the shipped file")
    arguments = parser.parse_args()
    arrays, path = make(arguments.wordnet), FOLDER / "words.npz"
    if arguments.check:
        with np.load(path, allow_pickle=False) as stored:
            near = {k: np.abs(stored[k].astype(int) - arrays[k]).max() <= (k == "vectors") for k in arrays}
        print(", ".join(f"{key}: {'equal to' if same else 'DIFFERENT from'} the shipped" for key, same in near.items()))
        return
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take every name for allow_pickle
    print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print({key: value.shape for key, value in arrays.items()})


if __name__ == "__main__":
    main()
