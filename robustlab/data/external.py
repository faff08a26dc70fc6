"""The full data sets, read through torchvision, for those who have them or have a network."""

from __future__ import annotations

from pathlib import Path

import torch

from robustlab.data.dataset import Dataset

# our name -> the class in torchvision.datasets
EXTERNAL: dict[str, str] = {"mnist_full": "MNIST", "fashion_full": "FashionMNIST", "cifar10": "CIFAR10"}


def load_external(name: str, *, root: str | Path | None, download: bool) -> Dataset:
    """A torchvision data set, whole, as float32 images (N, C, H, W) in [0, 1].

    CIFAR-10 is the one thing here that is unpickled: its files are Python pickles, which can hold code. torchvision
    reads them, and only after their MD5 sums have been found to be the published ones.

    Raises:
        ValueError: if `root` is None.
        ImportError: if torchvision is not installed.
        FileNotFoundError: if the files are not in `root` and `download` is False.
    """
    if root is None:
        raise ValueError(f"root: want the folder that holds (or will hold) {name!r}, got None")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(
            f"{name!r} is read through torchvision, which cannot be imported ({error}): install robustlab[vision]"
        ) from error

    opener = getattr(datasets, EXTERNAL[name])
    try:
        train = opener(str(root), train=True, download=download)
        test = opener(str(root), train=False, download=download)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"{name!r} is not complete in {str(root)!r} ({error}): give its folder as root, or download=True"
        ) from error
    return Dataset(
        name=name,
        x_train=_images(train.data),
        y_train=torch.as_tensor(train.targets).long(),
        x_test=_images(test.data),
        y_test=torch.as_tensor(test.targets).long(),
        classes=tuple(train.classes),
    )


def _images(data) -> torch.Tensor:
    data = torch.as_tensor(data)
    data = data.unsqueeze(1) if data.dim() == 3 else data.permute(0, 3, 1, 2)
    return data.contiguous().float().div_(255)
