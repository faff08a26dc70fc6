"""Data sets: images, a table, messages, spoken digits and graphs that ship here, torchvision's beside them, toys."""

from __future__ import annotations

from pathlib import Path

from robustlab.data.augment import gaussian_noise, random_shift
from robustlab.data.citations import Citations, citations
from robustlab.data.dataset import Dataset
from robustlab.data.embedded import SOURCES, Source, load_embedded
from robustlab.data.external import EXTERNAL, load_external
from robustlab.data.faces import PERSONS, faces_in_the_wild, rendered_faces
from robustlab.data.notes import encode, notes
from robustlab.data.parts import hide_labels, hold_out
from robustlab.data.people import People, people
from robustlab.data.photographs import Photos, backgrounds, photos
from robustlab.data.sentences import sentences
from robustlab.data.signs import ROAD_SIGNS, road_signs, sign_faces
from robustlab.data.spam import Messages, TextMap, mapped, sms_spam, text_map
from robustlab.data.spoken import Recordings, Strings, digit_strings, said_anew, spoken_digits, spoken_strings
from robustlab.data.tabular import RegressionData, diabetes
from robustlab.data.texts import TEXT_SOURCES, Texts, Vocabulary, load_texts, load_tokens, vocabulary_of
from robustlab.data.tinted import tinted
from robustlab.data.toy import gaussians, two_moons
from robustlab.data.words import WORDS, WordTable, synonyms, word_table, word_vectors

__all__ = [
    "PERSONS",
    "ROAD_SIGNS",
    "SOURCES",
    "TEXT_SOURCES",
    "WORDS",
    "Citations",
    "Dataset",
    "Messages",
    "People",
    "Photos",
    "Recordings",
    "RegressionData",
    "Source",
    "Strings",
    "TextMap",
    "Texts",
    "Vocabulary",
    "WordTable",
    "backgrounds",
    "citations",
    "diabetes",
    "digit_strings",
    "encode",
    "faces_in_the_wild",
    "gaussian_noise",
    "gaussians",
    "hide_labels",
    "hold_out",
    "load",
    "load_texts",
    "load_tokens",
    "mapped",
    "names",
    "notes",
    "people",
    "photos",
    "random_shift",
    "rendered_faces",
    "road_signs",
    "said_anew",
    "sentences",
    "sign_faces",
    "sms_spam",
    "spoken_digits",
    "spoken_strings",
    "synonyms",
    "text_map",
    "tinted",
    "two_moons",
    "vocabulary_of",
    "word_table",
    "word_vectors",
]


RENDERED = {"road_signs": road_signs, "rendered_faces": rendered_faces}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows: the embedded sets first, then rendered ones, then those of torchvision."""
    return (*SOURCES, *RENDERED, *EXTERNAL)


def load(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """Load a data set as float32 tensors in [0, 1].

    What ships with robustlab is never unpickled. The files of CIFAR-10 are pickles, which can hold code; torchvision
    unpickles them after a check of their MD5 sums.

    Args:
        name: ``"mnist5k"`` (4,000 training and 1,000 test images, 1x28x28), ``"fashion"`` (10,000 and 2,000)
            and ``"sign_digits32"`` (1,647 and 415 photographs of hands, 3x32x32, by different students) ship with
            robustlab and need neither network nor torchvision, as do ``"road_signs"`` (4,000 and 480, 3x48x48) and
            ``"rendered_faces"`` (2,400 and 500, 3x48x48), which are rendered when they are asked for.
            ``"mnist_full"``, ``"fashion_full"`` and ``"cifar10"`` are read through torchvision.
        root: for torchvision's sets, the folder that holds them, or will.
        download: for torchvision's sets, whether a set that is not in `root` is downloaded into it.

    Raises:
        ValueError: if `name` is unknown, a shipped file was changed, `root` is missing where it is needed, or
            `root` or `download` is given where it means nothing.
        FileNotFoundError: if a torchvision set is not in `root` and `download` is False.
        ImportError: if a torchvision set is asked for and torchvision is not installed.
    """
    if name in SOURCES or name in RENDERED:
        if root is not None or download:
            raise ValueError(f"root, download: want neither for {name!r}, which ships here, got {root!r}, {download}")
        return load_embedded(name) if name in SOURCES else RENDERED[name]()
    if name in EXTERNAL:
        return load_external(name, root=root, download=download)
    raise ValueError(f"name: want one of {', '.join(names())}, got {name!r}")
