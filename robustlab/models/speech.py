"""Small recognizers of spoken digits: a spectrogram, a few layers, and scores of each digit and of a blank per frame.

What a recognizer answers is a sequence (N, F, 11) whose best path, read by :func:`transcripts`, is what it hears.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.models.registry import register

DIGITS = 10
BLANK = DIGITS  # "nothing is said here", the last of the scores
_FLOOR = 1e-3  # power below which the spectrogram sees nothing: that of noise of about 1/250 of the loudest sound


class Spectrogram(nn.Module):
    """Logarithms of the power in bands of the mel scale: sounds (N, T) to (N, F, bands).

        s_{f,b} = (log(Σ_k M_{bk} |FFT(w ⊙ x_f)_k|² + 10⁻³) + 4) / 3

    with Hann's window w over frames x_f of ``window`` samples, ``hop`` apart, and triangles M of equal width on the mel
    scale, 2595·log₁₀(1 + Hz/700). Nothing is normalized over the sound: a frame depends on its own samples alone.

    Args:
        rate: samples per second.
        window, hop: in samples.
        bands: number of bands.
    """

    mel: Tensor
    hann: Tensor

    def __init__(self, rate: int, window: int, hop: int, bands: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.register_buffer("hann", torch.hann_window(window, dtype=torch.float64).float(), persistent=False)
        self.register_buffer("mel", _mel_bands(rate, window, bands).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] < self.window:
            raise ValueError(f"x: want sounds (N, T) of at least one window, T ≥ {self.window}, got {tuple(x.shape)}")
        frames = x.unfold(1, self.window, self.hop) * self.hann
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)
        return (torch.log(power @ self.mel + _FLOOR) + 4) / 3


class Recognizer(nn.Module):
    """A spectrogram, layers of its frames, and one linear layer: sounds (N, T) to scores (N, F, 11).

    Attributes:
        rate: the samples per second for which it was made.
        field: from how many samples a score can depend; infinity where it is recurrent.
    """

    def __init__(self, layers: nn.Module, width: int, *, rate: int, window: int, hop: int, bands: int) -> None:
        super().__init__()
        self.rate, self.field = rate, math.inf
        self.spectrogram = Spectrogram(rate, window, hop, bands)
        self.layers, self.out = layers, nn.Linear(width, DIGITS + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.spectrogram(x)))


class _Convolution(nn.Conv1d):
    """A convolution of frames (N, F, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _Recurrent(nn.GRU):
    """A GRU, its states alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


@register
def speech_gru(
    *, rate: int = 8000, window: int = 256, hop: int = 128, bands: int = 32, hidden: int = 46, layers: int = 2,
    seed: int = 0,
) -> Recognizer:  # fmt: skip
    """A recognizer that hears the whole string: two frames become one, and a GRU reads them in both directions.

    Args:
        rate, window, hop, bands: of the :class:`Spectrogram`; by default frames of 32 ms, 16 ms apart.
        hidden: size of the state in each direction.
        layers: of the GRU.
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer.
    """
    _check(rate=rate, window=window, hop=hop, bands=bands, hidden=hidden, layers=layers)
    inner = nn.Sequential(
        _Convolution(bands, hidden, 5, stride=2, padding=2),
        nn.ReLU(),
        _Recurrent(hidden, hidden, num_layers=layers, batch_first=True, bidirectional=True),
    )
    return Recognizer(inner, 2 * hidden, rate=rate, window=window, hop=hop, bands=bands)


@register
def speech_cnn(
    *, rate: int = 8000, window: int = 256, hop: int = 128, bands: int = 32, channels: int = 48, layers: int = 4,
    seed: int = 0,
) -> Recognizer:  # fmt: skip
    """A recognizer with a short field: convolutions over five frames each, the first of stride 2.

    With four layers a score depends on about half a second, one digit and its edges: there is no context to depend on.

    Args:
        rate, window, hop, bands: of the :class:`Spectrogram`.
        channels: of each convolution.
        layers: how many.
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer.
    """
    _check(rate=rate, window=window, hop=hop, bands=bands, channels=channels, layers=layers)
    inner: list[nn.Module] = [_Convolution(bands, channels, 5, stride=2, padding=2), nn.ReLU()]
    for _ in range(layers - 1):
        inner += [_Convolution(channels, channels, 5, padding=2), nn.ReLU()]
    model = Recognizer(nn.Sequential(*inner), channels, rate=rate, window=window, hop=hop, bands=bands)
    model.field = window + hop * (4 + 8 * (layers - 1))
    return model


def transcripts(scores: Tensor) -> Tensor:
    """What the best path says: the top label of each frame, repetitions merged, blanks dropped.

    Args:
        scores: (N, F, K) of which the last label is the blank.

    Returns:
        (N, F) int64 with −1 behind the last label.

    Source:
        Graves et al., "Connectionist temporal classification" (2006), section 3.2, best path decoding.
    """
    if scores.dim() != 3:
        raise ValueError(f"scores: want shape (N, F, K), got {tuple(scores.shape)}")
    path = scores.argmax(dim=2)
    new = path != F.pad(path, (1, 0), value=-1)[:, :-1]
    said = new & (path != scores.shape[2] - 1)
    order = (~said).to(torch.int8).argsort(dim=1, stable=True)
    return path.masked_fill(~said, -1).gather(1, order)


def heard(model: nn.Module, x: Tensor, *, rows: int = 100) -> Tensor:
    """The :func:`transcripts` of sounds (N, T), so many in one forward."""
    parts = [transcripts(model(part)) for part in x.split(rows)]
    return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.int64, device=x.device)


def same_labels(a: Tensor, b: Tensor) -> Tensor:
    """Whether labels (N, L) and (N, L'), with −1 behind the last of each, are the same; (N,) bool."""
    width = max(a.shape[1], b.shape[1])
    a, b = (F.pad(part, (0, width - part.shape[1]), value=-1) for part in (a, b))
    return (a == b).all(dim=1)


def first_part(x: Tensor, share: float | Tensor, lengths: Tensor | None = None) -> Tensor:
    """(N, T) bool: the first round(share·n) samples of each sound of n samples.

    Args:
        x: sounds (N, T).
        share: a number or (N,).
        lengths: n, (N,); None is T.
    """
    size = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths.to(x.device)
    kept = (torch.as_tensor(share, device=x.device, dtype=torch.float64) * size).round()
    return torch.arange(x.shape[1], device=x.device) < kept[:, None]


def ctc_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """−log p(labels | scores), (N,), in nats: summed over all paths of the frames that say the labels.

    Args:
        scores: (N, F, K), of which the last label is the blank; log softmax is taken here.
        labels: (N, S) int64 with −1 behind the last of each.

    Returns:
        (N,); infinity where the frames are too few to say the labels.

    Source:
        Graves et al. (2006), equation (8).
    """
    frames, k = scores.shape[1:]
    lengths = (labels >= 0).sum(dim=1)
    return F.ctc_loss(
        scores.log_softmax(dim=2).transpose(0, 1), labels.clamp_min(0), torch.full_like(lengths, frames), lengths,
        blank=k - 1, reduction="none",
    )  # fmt: skip


def spoken_training(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """The objective of a recognizer, for :func:`robustlab.training.fit.fit`: the mean of :func:`ctc_loss` per digit.

    Args:
        model: sounds (N, T) to scores (N, F, K).
        x: sounds (N, T).
        y: (N, S) int64 labels with −1 behind the last.
        ids, seed: not used.
    """
    return ctc_loss(model(x), y).sum() / (y >= 0).sum()


def _mel_bands(rate: int, window: int, bands: int) -> Tensor:
    """(window/2 + 1, bands): triangles between 100 Hz and 95 % of half the rate."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(100), mel(0.475 * rate), bands + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.fft.rfftfreq(window, 1 / rate, dtype=torch.float64)[:, None]
    up, down = (bins - hertz[:-2]) / (hertz[1:-1] - hertz[:-2]), (hertz[2:] - bins) / (hertz[2:] - hertz[1:-1])
    return torch.minimum(up, down).clamp_min(0)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        checks.at_least(name, value, 1, integer=True)
