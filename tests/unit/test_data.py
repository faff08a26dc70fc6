"""The data sets: what ships is what was meant to ship and is never unpickled; CIFAR-10 is, after a check of its MD5."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlab import data
from robustlab.data import embedded, external, make_embedded

EMBEDDED = {"mnist5k": (4000, 1000), "fashion": (10000, 2000)}
SIGNS = "sign_digits32"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_shapes_ranges_and_labels(name: str) -> None:
    d = data.load(name)
    n_train, n_test = EMBEDDED[name]
    for x, y, n in ((d.x_train, d.y_train, n_train), (d.x_test, d.y_test, n_test)):
        assert x.shape == (n, 1, 28, 28) and x.dtype == torch.float32
        assert y.shape == (n,) and y.dtype == torch.int64
        assert x.min() == 0 and x.max() == 1
        assert torch.equal((x * 255).round() / 255, x), "every pixel is a multiple of 1/255"
    assert len(d.classes) == 10 and d.name == name and d.sample_shape == (1, 28, 28)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_split_is_stratified_and_every_block_of_ten_is_balanced(name: str) -> None:
    d = data.load(name)
    for y in (d.y_train, d.y_test):
        blocks = y.reshape(-1, 10)
        assert torch.equal(blocks.sort(dim=1).values, torch.arange(10).expand_as(blocks))
        assert len(torch.unique(blocks, dim=0)) > 50, "the classes are not always in the same order"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_training_and_test_images_are_disjoint(name: str) -> None:
    arrays = embedded.read_arrays(name)
    for part in ("train", "test"):
        rows = arrays[f"rows_{part}"]
        assert len(np.unique(rows)) == len(rows), "no row of the source is taken twice"
    if name == "mnist5k":  # both parts come from one source, sorted by digit, 500 a digit
        both = np.concatenate([arrays["rows_train"], arrays["rows_test"]])
        assert np.array_equal(np.sort(both), np.arange(5000))
        assert np.array_equal(both // 500, np.concatenate([arrays["y_train"], arrays["y_test"]]))
    seen = {image.tobytes() for image in arrays["x_train"]}
    assert not any(image.tobytes() in seen for image in arrays["x_test"])


def test_embedded_images_look_like_their_classes() -> None:
    """A nearest-class-mean classifier, fitted here in closed form, is far above chance on every set."""
    for name, least in (("mnist5k", 0.75), ("fashion", 0.62), (SIGNS, 0.3)):
        d = data.load(name)
        means = torch.stack([d.x_train[d.y_train == c].flatten(1).mean(0) for c in range(10)])
        accuracy = (torch.cdist(d.x_test.flatten(1), means).argmin(1) == d.y_test).float().mean()
        assert accuracy > least


def test_the_photographs_of_hands_are_decoded_and_split_by_student() -> None:
    d, arrays = data.load(SIGNS), embedded.read_arrays(SIGNS)
    assert d.sample_shape == (3, 32, 32) and (len(d.x_train), len(d.x_test)) == (1647, 415)
    assert d.classes == tuple("0123456789")
    students = {part: set(arrays["group"][arrays["split"] == part]) for part in (1, 3)}
    assert not students[1] & students[3] and len(students[1] | students[3]) == 208
    for x, y in ((d.x_train, d.y_train), (d.x_test, d.y_test)):
        assert torch.equal((x * 255).round() / 255, x) and x.min() >= 0 and x.max() <= 1
        whole = int(torch.bincount(y).min()) * 10
        blocks = y[:whole].reshape(-1, 10)
        assert torch.equal(blocks.sort(dim=1).values, torch.arange(10).expand_as(blocks))
    seen = {image.numpy().tobytes() for image in d.x_train}
    assert not any(image.numpy().tobytes() in seen for image in d.x_test)
    first = embedded._undo_differences(arrays)["rows_test"][:20]
    assert len(set(arrays["group"][first])) >= 12, "the beginning is a mixture of students"
    # The first training image, decoded one pixel after the other: green, then red and blue on top of it.
    row = int(embedded._undo_differences(arrays)["rows_train"][0])
    assert arrays["split"][row] == 1 and arrays["labels"][row] == d.y_train[0]
    stored = arrays["diff"][row].astype(int)
    for i, j in ((0, 0), (0, 31), (17, 5), (31, 31)):
        channels = [int(stored[c, : i + 1, : j + 1].sum()) for c in range(3)]
        want = [(channels[0] + channels[1]) % 256, channels[1] % 256, (channels[2] + channels[1]) % 256]
        assert (d.x_train[0, :, i, j] * 255).round().int().tolist() == want
    neighbors = (d.x_train[:, :, 1:] - d.x_train[:, :, :-1]).abs().mean()
    assert neighbors < 0.05, "photographs are smooth; noise has 1/3"


@pytest.mark.parametrize("name", data.SOURCES)
def test_every_embedded_set_says_where_it_comes_from(name: str) -> None:
    source = data.SOURCES[name]
    assert source.license and source.provenance and source.citation
    raw = (embedded.FOLDER / source.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == source.sha256


def test_a_changed_file_is_refused(tmp_path, monkeypatch) -> None:
    raw = bytearray((embedded.FOLDER / "mnist5k.npz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "mnist5k.npz").write_bytes(raw)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        data.load("mnist5k")


def test_nothing_that_ships_is_unpickled(tmp_path, monkeypatch) -> None:
    """Even with a matching hash, an object array, whose reading would run code, is refused."""
    buffer = io.BytesIO()
    np.savez(buffer, x_train=np.array([{"an": "object"}], dtype=object))
    (tmp_path / "mnist5k.npz").write_bytes(buffer.getvalue())
    source = embedded.SOURCES["mnist5k"]
    changed = {**vars(source), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    monkeypatch.setitem(embedded.SOURCES, "mnist5k", embedded.Source(**changed))
    with pytest.raises(ValueError, match="allow_pickle"):
        data.load("mnist5k")


def test_stratified_order_partitions_in_balanced_blocks() -> None:
    labels = np.repeat([0, 1, 2], [7, 9, 8])
    first, second = make_embedded.stratified_order(labels, [4, 3], np.random.default_rng(0))
    assert not set(first) & set(second)
    for part in (first, second):
        assert np.array_equal(np.sort(labels[part].reshape(-1, 3), axis=1), np.tile([0, 1, 2], (len(part) // 3, 1)))
    with pytest.raises(ValueError, match="want at least 8 samples per class, got 7"):
        make_embedded.stratified_order(labels, [8], np.random.default_rng(0))


def test_subset_and_to() -> None:
    d = data.load("mnist5k")
    small = d.subset(50, 20)
    assert len(small.x_train) == 50 and len(small.y_test) == 20
    for key, n in (("x_train", 50), ("y_train", 50), ("x_test", 20), ("y_test", 20)):
        assert torch.equal(getattr(small, key), getattr(d, key)[:n])
    assert torch.bincount(small.y_train).tolist() == [5] * 10
    assert len(d.subset(n_test=10).x_train) == 4000
    double = small.to(dtype=torch.float64)
    assert double.x_test.dtype == torch.float64 and double.y_test.dtype == torch.int64
    assert small.x_test.dtype == torch.float32
    for wrong in ({"n_train": 4001}, {"n_test": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            d.subset(**wrong)


def test_dataset_refuses_what_does_not_fit_together() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    build = {"name": "n", "x_train": x, "y_train": y, "x_test": x, "y_test": y, "classes": ("a", "b")}
    data.Dataset(**build)
    wrong = [
        ({"x_train": torch.zeros(4, 2, dtype=torch.uint8)}, TypeError, "x_train"),
        ({"y_test": y.float()}, TypeError, "y_test"),
        ({"y_train": y[:3]}, ValueError, "y_train"),
        ({"y_test": y + 1}, ValueError, "y_test"),
        ({"y_test": y - 1}, ValueError, "y_test"),
        ({"x_test": torch.rand(4, 3)}, ValueError, "x_test"),
    ]
    for change, kind, match in wrong:
        with pytest.raises(kind, match=match):
            data.Dataset(**{**build, **change})


def test_load_names_its_errors(tmp_path) -> None:
    assert data.names()[:3] == ("mnist5k", "fashion", "sign_digits32")
    with pytest.raises(ValueError, match="name"):
        data.load("mnist")
    with pytest.raises(ValueError, match="root"):
        data.load("mnist5k", root=tmp_path)
    with pytest.raises(ValueError, match="root"):
        data.load("cifar10")


def test_a_missing_torchvision_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"robustlab\[vision\]"):
        data.load("cifar10", root=tmp_path)


def _torchvision(monkeypatch, name: str, opener) -> None:
    """Stand in for torchvision, which is an optional package."""
    import sys
    import types

    module, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    setattr(datasets, external.EXTERNAL[name], opener)
    module.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.parametrize(("name", "shape"), [("fashion_full", (1, 5, 4)), ("cifar10", (3, 5, 4))])
def test_torchvision_sets_arrive_in_the_same_shape(name, shape, tmp_path, monkeypatch) -> None:
    class Opener:
        classes = ("a", "b")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            n = 6 if train else 2
            raw = torch.arange(n * 20).reshape(n, 5, 4).to(torch.uint8)
            # torchvision keeps gray images as a tensor (N, H, W) and color images as an array (N, H, W, C)
            self.data = raw if shape[0] == 1 else torch.stack([raw, 255 - raw, raw], dim=-1).numpy()
            self.targets = [i % 2 for i in range(n)]

    _torchvision(monkeypatch, name, Opener)
    d = data.load(name, root=tmp_path)
    assert d.x_train.shape == (6, *shape) and d.x_test.shape == (2, *shape)
    assert d.x_train.dtype == torch.float32 and 0 <= d.x_train.min() <= d.x_train.max() <= 1
    assert torch.allclose(d.x_train[1, 0, 2, 3], torch.tensor((20 + 11) / 255))
    if shape[0] == 3:
        assert torch.allclose(d.x_train[:, 1], 1 - d.x_train[:, 0])


def test_a_torchvision_set_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch) -> None:
    def opener(root: str, train: bool, download: bool) -> None:
        raise RuntimeError("Dataset not found.")

    _torchvision(monkeypatch, "mnist_full", opener)
    with pytest.raises(FileNotFoundError, match="download=True"):
        data.load("mnist_full", root=tmp_path)


class _Planted:
    """What leaves a mark where it is unpickled, as hostile code would."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_cifar10_is_unpickled_only_after_its_md5_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder, mark = tmp_path / "cifar-10-batches-py", tmp_path / "mark"
    folder.mkdir()
    real = datasets.CIFAR10
    names = [name for name, _ in [*real.train_list, *real.test_list]]
    for name in [*names, real.meta["filename"]]:
        (folder / name).write_bytes(pickle.dumps(_Planted(mark)))
    with pytest.raises(FileNotFoundError, match="cifar10"):
        data.load("cifar10", root=tmp_path)
    assert not mark.exists()

    images = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    files = {name: pickle.dumps({"data": images, "labels": [1, 0]}) for name in names}
    files[real.meta["filename"]] = pickle.dumps({"label_names": ["a", "b"]})
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    md5 = {name: hashlib.md5(raw).hexdigest() for name, raw in files.items()}
    monkeypatch.setattr(real, "train_list", [[name, md5[name]] for name in names[:-1]])
    monkeypatch.setattr(real, "test_list", [[name, md5[name]] for name in names[-1:]])
    monkeypatch.setattr(real, "meta", {**real.meta, "md5": md5[real.meta["filename"]]})
    d = data.load("cifar10", root=tmp_path)
    assert d.x_train.shape == (10, 3, 32, 32) and d.y_test.tolist() == [1, 0] and d.classes == ("a", "b")


def test_toys_are_balanced_seeded_and_in_the_box() -> None:
    before = torch.random.get_rng_state()
    for make in (data.two_moons, data.gaussians):
        d, again, other = make(60, 30), make(60, 30), make(60, 30, seed=1)
        assert torch.equal(d.x_train, again.x_train) and not torch.equal(d.x_train, other.x_train)
        assert d.x_train.shape == (60, 2) and d.x_test.shape == (30, 2)
        assert d.x_train.min() >= 0 and d.x_train.max() <= 1
        assert len(set(torch.bincount(d.y_train).tolist())) == 1
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_moons_without_noise_lie_on_their_half_circles() -> None:
    d = data.two_moons(200, 2, noise=0.0)
    plane = (d.x_train - 0.5) * 4 + torch.tensor([0.5, 0.25])
    centers = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[d.y_train]
    assert torch.allclose((plane - centers).norm(dim=1), torch.ones(200), atol=1e-5)
    side = torch.tensor([1.0, -1.0])[d.y_train]
    assert bool(((plane - centers)[:, 1] * side >= -1e-6).all())


def test_gaussians_have_their_centers_and_spread() -> None:
    d = data.gaussians(30000, 3, classes=3, sigma=0.05, radius=0.25)
    for c in range(3):
        angle = torch.tensor(2 * torch.pi * c / 3)
        center = 0.5 + 0.25 * torch.stack([angle.cos(), angle.sin()])
        part = d.x_train[d.y_train == c]
        assert torch.allclose(part.mean(0), center, atol=6 * 0.05 / 100)  # six standard errors
        assert torch.allclose(part.std(0), torch.tensor(0.05), rtol=0.05)


def test_random_shift_moves_each_image_as_a_whole() -> None:
    x = torch.zeros(400, 1, 9, 9)
    x[:, 0, 4, 4] = 1.0
    moved = data.random_shift(2)(x, ids=torch.arange(400), seed=3)
    assert moved.shape == x.shape and bool((moved.flatten(1).sum(1) == 1).all())
    where = moved[:, 0].flatten(1).argmax(1)
    offsets = torch.stack([where // 9 - 4, where % 9 - 4], dim=1)
    counts = torch.bincount((offsets[:, 0] + 2) * 5 + offsets[:, 1] + 2, minlength=25)
    assert len(counts) == 25 and counts.min() > 0, "all 25 shifts occur, none is larger than 2"
    one = data.random_shift(2)(x[7:8], ids=torch.tensor([7]), seed=3)
    assert torch.equal(one[0], moved[7]), "an image's shift depends on its id, not on its batch"
    at_edge = torch.ones(1, 1, 4, 4)
    assert data.random_shift(2)(at_edge.expand(50, 1, 4, 4), ids=torch.arange(50), seed=0).min() == 0
    with pytest.raises(ValueError, match="pixels"):
        data.random_shift(0)
    with pytest.raises(ValueError, match="x"):
        data.random_shift(1)(torch.rand(3, 4), ids=torch.arange(3), seed=0)
