"""Recognizers: the loss by enumeration of paths, the transcript by hand, the field by what moves a score."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.signal import get_window

from robustlab.models import ctc_loss, speech_cnn, speech_gru, transcripts
from robustlab.models.speech import Spectrogram, spoken_training


def said(path: tuple[int, ...], blank: int) -> list[int]:
    """What a path of labels says."""
    return [label for label, _ in itertools.groupby(path) if label != blank]


def test_the_loss_is_that_of_all_paths() -> None:
    """Five frames, two labels and a blank: 3⁵ paths are counted one by one."""
    scores = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[0, 1, -1], [0, 0, -1], [1, -1, -1], [-1, -1, -1], [0, 1, 0], [1, 1, 1]])
    probs = scores.softmax(dim=2)
    for i, row in enumerate(labels.tolist()):
        wish = [label for label in row if label >= 0]
        paths = [path for path in itertools.product(range(3), repeat=5) if said(path, 2) == wish]
        total = sum(math.prod(float(probs[i, f, k]) for f, k in enumerate(path)) for path in paths)
        assert float(ctc_loss(scores, labels)[i]) == pytest.approx(-math.log(total), rel=1e-9)
    assert math.isinf(float(ctc_loss(scores[:1], torch.tensor([[1, 1, 1, 1]]))))


def test_the_best_path_is_read() -> None:
    scores = torch.randn(200, 12, 4, generator=torch.Generator().manual_seed(1))
    ours = transcripts(scores)
    for i in range(200):
        wish = said(tuple(scores[i].argmax(dim=1).tolist()), 3)
        assert ours[i].tolist() == wish + [-1] * (12 - len(wish))
    with pytest.raises(ValueError, match=r"^scores: want shape"):
        transcripts(scores[0])


def test_the_spectrogram_is_that_of_numpy() -> None:
    """Frames, window and power by NumPy and SciPy; a pure tone is loudest in the band that holds it."""
    layer, x = Spectrogram(8000, 256, 128, 32).double(), torch.randn(2, 1000, dtype=torch.float64) / 10
    power = layer.mel.double().numpy()
    window = get_window("hann", 256)
    for i in range(2):
        for f in range(6):
            frame = x[i, 128 * f : 128 * f + 256].numpy() * window
            wish = (np.log((np.abs(np.fft.rfft(frame)) ** 2) @ power + 1e-3) + 4) / 3
            assert np.allclose(layer(x)[i, f].numpy(), wish, atol=1e-6)
    hertz = np.fft.rfftfreq(256, 1 / 8000)
    for tone in (300.0, 1000.0, 3000.0):
        wave = 0.3 * torch.sin(2 * math.pi * tone * torch.arange(800, dtype=torch.float64) / 8000)
        band = int(layer(wave[None])[0, 2].argmax())
        center = (hertz * power[:, band]).sum() / power[:, band].sum()
        assert abs(center - tone) < 0.1 * tone + 40


def test_bands_are_triangles_of_equal_width_on_the_mel_scale() -> None:
    """By NumPy's interpolation, and the scale in its other form, 1127·ln(1 + Hz/700)."""
    edges = np.linspace(*(1127.01 * np.log1p(f / 700) for f in (100.0, 3800.0)), 34)
    hertz, bins = 700 * np.expm1(edges / 1127.01), np.fft.rfftfreq(256, 1 / 8000)
    wish = [np.interp(bins, hertz[b : b + 3], [0, 1, 0]) for b in range(32)]
    assert np.allclose(Spectrogram(8000, 256, 128, 32).mel.numpy(), np.stack(wish, axis=1), atol=1e-3)


@pytest.mark.parametrize("build", [speech_gru, speech_cnn])
def test_scores_depend_on_the_field_alone(build) -> None:
    """What is beyond half a field from a frame does not move the short net's score, but the recurrent one's."""
    model = build().double().eval()
    x = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    x.requires_grad_(True)
    scores = model(x)
    assert scores.shape == (1, math.ceil((1 + (16000 - 256) // 128) / 2), 11)
    (grad,) = torch.autograd.grad(scores[0, 30].square().sum(), x)
    moved = grad[0].nonzero().flatten()
    width = int(moved[-1] - moved[0]) + 1
    if math.isinf(model.field):
        assert width > 15_000
    else:  # Hann's window is 0 at its first sample
        assert model.field - 2 <= width <= model.field < 0.5 * 8000


def test_the_objective_is_the_mean_loss_of_a_digit() -> None:
    model, x = speech_cnn(), torch.randn(3, 6000, generator=torch.Generator().manual_seed(0)) / 10
    y = torch.tensor([[1, 2, -1], [3, -1, -1], [0, 0, 9]])
    value = spoken_training(model, x, y, ids=torch.arange(3), seed=0)
    with torch.no_grad():
        assert value.item() == pytest.approx(ctc_loss(model(x), y).sum().item() / 6)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"^x: want sounds \(N, T\) of at least one window, T ≥ 256, got \(2, 255\)"):
        speech_gru()(torch.zeros(2, 255))
    for build in (speech_gru, speech_cnn):
        with pytest.raises(ValueError, match=r"^layers: want"):
            build(layers=0)
