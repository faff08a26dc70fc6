"""Sounds that play in the page of a chapter."""

from __future__ import annotations

import base64
import io
import re
import wave
from collections.abc import Mapping
from html import escape

import torch
from torch import Tensor

from robustlab.teaching.reports import html_table, show

SOUND = re.compile(r"data:audio/wav;base64,[A-Za-z0-9+/=]*")
"""A sound inside a page: what the comparison of outputs leaves out, as it does pictures."""


def show_sounds(sounds: Mapping[str, tuple[Tensor, str]], *, rate: int, credit: str) -> None:
    """Display a table of players: as HTML in a notebook, as lines of text anywhere else.

    Args:
        sounds: name → the sound (T,) in [−1, 1], and what is said of it, such as its transcript.
        rate: samples per second.
        credit: whose recording it is and under which license, printed beside every player.

    Raises:
        ValueError: for a sound that is no vector of finite numbers.

    Source: this book.
    """
    for name, (sound, _) in sounds.items():
        if sound.dim() != 1 or not bool(torch.isfinite(sound).all()):
            raise ValueError(f"sounds: want vectors of finite numbers, got {name!r} of shape {tuple(sound.shape)}")
    header = ("sound", "heard as", "play", "license")
    rows = [
        (escape(name), escape(said), _player(name, sound, rate), escape(credit))
        for name, (sound, said) in sounds.items()
    ]
    text = "\n".join(f"{name}: {said} ({len(sound) / rate:.1f} s, {credit})" for name, (sound, said) in sounds.items())
    show(text, html_table(header, rows, kind="sounds"))


def wav(sound: Tensor, rate: int) -> bytes:
    """A sound (T,) in [−1, 1] as a file of 16 bits per sample."""
    samples = (sound.detach().double().cpu().clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def _player(name: str, sound: Tensor, rate: int) -> str:
    data = base64.b64encode(wav(sound, rate)).decode("ascii")
    label = escape(f"Play the sound: {name}", quote=True)
    return f'<audio controls preload="none" aria-label="{label}" src="data:audio/wav;base64,{data}"></audio>'
