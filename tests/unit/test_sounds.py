"""Sounds in a page: the file is read again by SciPy, players bear their license, and comparisons leave sounds out."""

from __future__ import annotations

import configparser
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from robustlab.teaching import sounds
from robustlab.teaching.sounds import SOUND, show_sounds, wav

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_holds_the_sound() -> None:
    x = torch.linspace(-1.2, 1.2, 1000)
    rate, samples = wavfile.read(io.BytesIO(wav(x, 8000)))
    assert rate == 8000 and samples.dtype == np.int16 and samples.shape == (1000,)
    assert np.abs(samples / 32767 - x.clamp(-1, 1).numpy()).max() < 1 / 32767


def test_each_player_bears_its_license(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(sounds, "show", lambda text, html: shown.append((text, html)))
    table = {"clean": (torch.zeros(800), "4 2"), "<b>": (torch.ones(800) / 2, "9 9")}
    show_sounds(table, rate=8000, credit="Somebody, CC BY-SA 4.0")
    ((text, html),) = shown
    assert html.count("<audio controls") == 2 == len(SOUND.findall(html)) == html.count("Somebody, CC BY-SA 4.0")
    assert "<b>" not in html and "clean: 4 2 (0.1 s, Somebody, CC BY-SA 4.0)" in text
    assert 'aria-label="Play the sound: clean"' in html
    with pytest.raises(ValueError, match=r"^sounds: want vectors"):
        show_sounds({"two": (torch.zeros(2, 8), "")}, rate=8000, credit="")


def test_comparisons_leave_sounds_out_and_nothing_else() -> None:
    settings = configparser.RawConfigParser()
    settings.read(ROOT / "tests/nbval.cfg", encoding="utf-8")
    assert {"regex": SOUND.pattern, "replace": "a sound"} in [dict(settings[name]) for name in settings.sections()]
    one = '<td>4 2</td><audio src="data:audio/wav;base64,AAbb+/==">'
    other = '<td>4 3</td><audio src="data:audio/wav;base64,AA">'
    assert SOUND.sub("", one) != SOUND.sub("", other) and SOUND.sub("", one) == '<td>4 2</td><audio src="">'
