"""The one source of randomness inside methods: a counter-based generator.

A number depends on four keys only, ``(seed, sample id, draw, element)``, and is computed by hashing them. So

* the global random state is neither read nor moved,
* what is drawn for a sample does not depend on which other samples are in its batch,
* a draw can be repeated, skipped or made in any order.

The hash is the SplitMix64 finalizer, applied once per key; each key is spread by a golden-ratio multiple first, and
moved by an offset of its role.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), for the idea of counter-based
generators; Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), for the mixing function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustlab.geometry.portions import IN_CACHE

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1

# One offset a role (binary digits of π), so that no id, seed, draw or element can stand in for another.
_ID, _SEED, _DRAW, _ELEMENT = 0x243F6A8885A308D3, 0x13198A2E03707344, -0x5BF6C7DDD660CE30, 0x082EFA98EC4E6C89

_ONE = 0x3FF0000000000000  # the bits of 1.0

Draw = int | Sequence[int | Tensor]


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's shift is arithmetic)."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer: a bijection of 64-bit integers in which every input bit moves every output bit."""
    z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX1)
    z.bitwise_xor_(_shift(z, 27)).mul_(_MIX2)
    return z.bitwise_xor_(_shift(z, 31))


def _named(state: Tensor, key: int | Tensor) -> Tensor:
    """The state of a draw, from that of the keys before."""
    return _mix(state + _signed(int(key) * _GOLDEN + _DRAW))


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def derive_seed(*keys: int) -> int:
    """A seed in [0, 2⁶³) from several integers, for trainers: ``derive_seed(seed, epoch, step)``.

    On Python's integers, since a trainer asks in every step, and a tensor of one element costs a hundred times as much.
    """
    state = 0
    for key in keys:
        state = _mix_integer(state + _DRAW + _mix_integer(int(key) * _GOLDEN + _SEED))
    return state & ((1 << 63) - 1)


def _mix_integer(z: int) -> int:
    """:func:`_mix` of one integer, modulo 2⁶⁴."""
    z &= _MASK64
    z = ((z >> 30) ^ z) * _MIX1 & _MASK64
    z = ((z >> 27) ^ z) * _MIX2 & _MASK64
    return (z >> 31) ^ z


class Noise:
    """Random numbers for the samples ``ids``: row i of every draw belongs to ``ids[i]`` alone.

    Args:
        seed: any integer.
        ids: (N,) int64, the samples' identities; equal ids draw equal numbers.
        device: where numbers are made; default is that of ``ids``.

    Every draw takes ``draw``, an integer or a tuple of integers that names it, for example ``(restart, step)``, and
    ``shape``, the shape for one sample, and returns (N, *shape). The last of a tuple may be (N,) int64, a number for
    each sample.
    """

    def __init__(self, seed: int, ids: Tensor, device: torch.device | str | None = None) -> None:
        if ids.dim() != 1 or ids.is_floating_point():
            raise ValueError(f"ids: want a vector of integers, got shape {tuple(ids.shape)} of {ids.dtype}")
        self.seed = int(seed)
        ids = ids.to(device=device or ids.device, dtype=torch.int64)
        self._state = _mix(_mix(ids * _GOLDEN + _ID) + _signed(self.seed * _GOLDEN + _SEED))
        self._named: tuple[tuple[int | Tensor, ...], Tensor] = (), self._state
        # What was drawn (keys, count and kind), the first draw, and numbers of it and of draws that follow.
        self._ahead: tuple[object, int, Tensor] = None, 0, self._state.new_empty(0, len(ids), 0)

    def __len__(self) -> int:
        return self._state.shape[0]

    def take(self, rows: Tensor) -> Noise:
        """The same generator for some of the samples (an index or a mask)."""
        part = object.__new__(Noise)
        part.seed, part._state = self.seed, self._state[rows]
        names, state = self._named
        part._named = (names, state[rows]) if names else ((), part._state)
        drawn, first, numbers = self._ahead
        part._ahead = drawn, first, numbers[:, rows]
        return part

    def bits(self, draw: Draw, shape: Sequence[int]) -> Tensor:
        """63 random bits per element, as non-negative int64."""
        return _shift(self._words(draw, math.prod(shape)), 1).reshape(len(self), *shape)

    def _words(self, draw: Draw, count: int) -> Tensor:
        """64 random bits per element, (N, count)."""
        *names, last = (draw,) if isinstance(draw, int) else draw
        return _filled(self._states(names, last), count, torch.int64, lambda mixed, out: out.copy_(mixed))

    def _states(self, names: Sequence[int | Tensor], first: int | Tensor, draws: int = 1) -> Tensor:
        """The states of consecutive draws whose keys are ``names`` and a number from ``first`` on, (draws, N)."""
        known, state = self._named
        if known != tuple(names):  # many draws in turn share all but the last of their keys
            state = self._state
            for key in names:
                state = _named(state, key)
            self._named = tuple(names), state
        last = first * _GOLDEN + _DRAW if isinstance(first, Tensor) else _signed(int(first) * _GOLDEN + _DRAW)
        if draws == 1:
            return _mix(state + last)[None]
        return _mix(state + torch.arange(draws, device=state.device)[:, None] * _GOLDEN + last)

    def uniform(
        self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32, low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        """Uniform on (low, high): 0 and 1 are never drawn from (0, 1); other ends may be reached by rounding."""
        unit = self._unit(draw, shape)
        if (low, high) == (0.0, 1.0):
            return _round_open(unit, dtype)
        return unit.mul_(high - low).add_(low).to(dtype)

    def normal(self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, by the inverse distribution function."""
        count = math.prod(shape)
        *names, last = (draw,) if isinstance(draw, int) else draw
        many = isinstance(last, Tensor) or count * len(self) > IN_CACHE  # few are made ahead, by the other way
        if dtype == torch.float32 and self._state.device.type == "cpu" and many:
            return _filled(self._states(names, last), count, dtype, _put_normal).reshape(len(self), *shape)
        return torch.special.ndtri(self._unit(draw, shape)).to(dtype)

    def quick_uniform(self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on (−1, 1), for many directions: two numbers of 24 bits from each hash, the same in every dtype."""
        return self._halves(draw, shape, _put_halves).to(dtype)

    def quick_normal(self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal of 24 bits, within ±5.5; the same in every dtype, in a third of :meth:`normal`'s time."""
        return self._halves(draw, shape, _put_quick_normal).to(dtype)

    def _halves(self, draw: Draw, shape: Sequence[int], put: Callable[[Tensor, Tensor], object]) -> Tensor:
        """(N, *shape) in float32, made by ``put`` in memory of whole hashes, of which each becomes two numbers."""
        count = math.prod(shape)
        both = self._drawn(draw, (count + 1) // 2, torch.int64, put)
        return both.view(torch.float32)[:, :count].reshape(len(self), *shape)

    def exponential(self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Exponential with mean 1."""
        return (-torch.log(self._unit(draw, shape))).to(dtype)

    def sign(self, draw: Draw, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """−1 or +1, equally likely."""
        return ((self.bits(draw, shape) >> 62) * 2 - 1).to(dtype)

    def integers(self, draw: Draw, shape: Sequence[int], high: int) -> Tensor:
        """Uniform on 0 … high − 1 (int64; the modulo bias is below high / 2⁶³)."""
        if high < 1:
            raise ValueError(f"high: want at least 1, got {high}")
        return self.bits(draw, shape) % high

    def permutation(self, draw: Draw, n: int) -> Tensor:
        """A random order of 0 … n − 1 for each sample, (N, n)."""
        return self.bits(draw, (n,)).argsort(dim=1)

    def _unit(self, draw: Draw, shape: Sequence[int]) -> Tensor:
        """Uniform on (0, 1) in float64: 52 bits, and half a step away from both ends."""
        return self._drawn(draw, math.prod(shape), torch.float64, _put_unit).reshape(len(self), *shape)

    def _drawn(self, draw: Draw, count: int, dtype: torch.dtype, put: Callable[[Tensor, Tensor], object]) -> Tensor:
        """(N, count), made by ``put`` of the hashes of a draw.

        A search that takes few numbers at each of many queries would spend most of its time here, not on the numbers
        but on calls. So of few numbers, the second draw in turn makes the next ones too.
        """
        *names, last = (draw,) if isinstance(draw, int) else draw
        if isinstance(last, Tensor):
            return _filled(self._states(names, last), count, dtype, put)
        fits, wanted = min(64, IN_CACHE // max(1, count * len(self))), (names, count, put)
        drawn, first, numbers = self._ahead
        if drawn != wanted or not first <= last < first + len(numbers):
            draws = max(1, fits) if drawn == wanted and last == first + len(numbers) else 1
            states = self._states(names, last, draws)
            numbers = _filled(states, count, dtype, put).reshape(draws, len(self), count)
            if fits <= 1:
                return numbers[0]
            first, self._ahead = last, (wanted, last, numbers)
        return numbers[last - first].clone()


def _filled(states: Tensor, count: int, dtype: torch.dtype, put: Callable[[Tensor, Tensor], object]) -> Tensor:
    """(n, count), into which ``put(mixed, out)`` writes what it makes of the elements' hashes, for n states."""
    states = states.flatten()
    counter = torch.arange(count, device=states.device, dtype=torch.int64) * _GOLDEN + _ELEMENT
    out = torch.empty(len(states), count, dtype=dtype, device=states.device)
    # The many passes of the hash go up to twice as fast over what stays in a CPU's cache.
    rows = max(1, IN_CACHE // max(1, count) if states.device.type == "cpu" else len(states))
    for part, of_part in zip(states.split(rows), out.split(rows), strict=True):
        put(_mix(part[:, None] + counter), of_part)
    return out


def _put_unit(mixed: Tensor, out: Tensor) -> None:
    """(k + ½)/2⁵² with the upper 52 bits k: these are the fraction of 1 + k/2⁵², from which 1 − 2⁻⁵³ is taken."""
    torch.sub(_shift(mixed, 12).bitwise_or_(_ONE).view(torch.float64), 1 - 2.0**-53, out=out)


def _put_normal(mixed: Tensor, out: Tensor) -> None:
    """ndtri of the uniform numbers, rounded to float32: what ``ndtri(unit).to(out)`` gives, to the last bit.

    √2·erfinv(2u − 1) is the same number and takes two thirds of the time; both are within 1e-15 of it. So they round to
    two numbers only where they are that near to the middle between them, 2²⁸ in the 29 bits that rounding drops.
    """
    unit = torch.empty(mixed.shape, dtype=torch.float64, device=mixed.device)
    _put_unit(mixed, unit)
    normal = unit.mul(2.0).sub_(1.0).erfinv_().mul_(math.sqrt(2.0))  # 2u − 1 is exact
    near = normal.view(torch.int64).add(64 - (1 << 28)).bitwise_and_((1 << 29) - 1)
    out.copy_(torch.special.ndtri(unit) if near.numel() and int(near.min()) <= 128 else normal)


def _put_halves(mixed: Tensor, out: Tensor) -> Tensor:
    """Both halves of each hash as numbers in (−1, 1), in float32, which are told."""
    most = 1 - torch.finfo(torch.float32).eps / 2
    return out.view(torch.float32).copy_(mixed.view(torch.int32)).mul_(2.0**-31).clamp_(-most, most)


def _put_quick_normal(mixed: Tensor, out: Tensor) -> None:
    _put_halves(mixed, out).erfinv_().mul_(math.sqrt(2.0))


def _round_open(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to ``dtype`` without reaching 1."""
    return unit.to(dtype).clamp_(max=1 - torch.finfo(dtype).eps / 2)
