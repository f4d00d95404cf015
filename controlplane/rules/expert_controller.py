"""Which controller steers the balancing biases, told from the record: gains, how well they explain, the sign.

Pure numpy, vectorised over layers. W steps, L layers, S slots, E real experts. A record's bias is the one after its
step's update, so the bias that step t changed is b_t − b_{t−1} and the error that it answered is that of step t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from controlplane.rules.experts import Bools, Floats

LEAST_STEPS = 16


@dataclass(frozen=True, slots=True)
class Controller:
    """What explains the biases of each layer best, by least squares; NaN where nothing moved or too little is known.

    Gains are positive where the bias goes against the error, as it should.
    """

    kp: Floats
    """[L] of e, in the model b = −(Kp·e + Ki·Σe + Kd·Δe) + a constant an expert"""
    ki: Floats
    """[L] of Σe, a step"""
    kd: Floats
    """[L] of Δe"""
    r2: Floats
    """[L] part of the biases' movement that the three explain"""
    sign_gain: Floats
    """[L] of sign(e), in the model Δb = −u·sign(e): the u of loss-free balancing"""
    sign_r2: Floats
    """[L] part of Δb that it explains"""
    late_r2: Floats
    """[L] the same of the error of the step before: biases that are moved after the step was told answer that one"""

    @property
    def kind(self) -> list[str]:
        """[L] "sign", "pid" or "unknown": the better explanation, if either is any good."""
        best = np.fmax(self.r2, self.sign_r2)
        signs = self.sign_r2 > np.maximum(self.r2, 0.9)
        return [
            "unknown" if not explained > 0.5 else "sign" if sign else "pid"
            for explained, sign in zip(best, signs, strict=True)
        ]

    def inverted(self, least_r2: float, least_pid_r2: float) -> Bools:
        """[L] whether the biases feed the error, by either model, where it explains enough."""
        return self.sign_inverted(least_r2) | np.asarray((self.ki < 0) & (self.r2 >= least_pid_r2), dtype=np.bool_)

    def sign_inverted(self, least_r2: float) -> Bools:
        """[L] whether Δb goes with sign(e), where that explains enough, and more than a controller that answers a step
        late. Of E experts that collapse onto one it explains 4/E at most if Δb is in proportion to e: Ki tells then."""
        late = self.late_r2 > self.sign_r2
        return np.asarray((self.sign_gain < 0) & (self.sign_r2 >= least_r2) & ~late, dtype=np.bool_)


def load_error(counts: ArrayLike, experts: int) -> Floats:
    """e = share − 1/E of counts [..., S] over the real experts: [..., E] (ZAYA1 report, eq. 5); 0 without tokens."""
    real = np.asarray(counts, dtype=np.float64)[..., :experts]
    total = real.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(total > 0, real / np.maximum(total, 1) - 1 / experts, 0.0), dtype=np.float64)


def identify(counts: ArrayLike, bias: ArrayLike, experts: int) -> Controller:
    """The controller of counts and biases [W, L, S], by least squares pooled over a layer's experts.

    Two models: b on (e, Σe, Δe) with a constant an expert, and Δb on sign(e) without one. A bias that stood still, or
    fewer than LEAST_STEPS steps, tell nothing.
    """
    moved = np.asarray(bias, dtype=np.float64)[..., :experts]
    error = load_error(counts, experts)
    steps, layers = moved.shape[:2]
    if steps < LEAST_STEPS:
        unknown = np.full(layers, np.nan)
        return Controller(*[unknown] * 7)
    change = np.diff(error, axis=0, prepend=error[:1])
    terms = np.stack([error, np.cumsum(error, axis=0), change])[:, 1:]
    with np.errstate(invalid="ignore"):  # a bias that diverged is infinite
        centred, deltas = _centred(moved[1:], axis=0), np.diff(moved, axis=0)
    gains, r2 = _least_squares(_centred(terms, axis=1), centred)
    signs, sign_r2 = _least_squares(np.sign(error[1:])[None], deltas)
    late, late_r2 = _least_squares(np.sign(error[:-1])[None], deltas)
    late_r2 = np.where(late[0] < 0, late_r2, np.nan)  # against the error, as a controller does
    return Controller(-gains[0], -gains[1], -gains[2], r2, -signs[0], sign_r2, late_r2)


def _centred(values: Floats, axis: int) -> Floats:
    return np.asarray(values - values.mean(axis=axis, keepdims=True), dtype=np.float64)


def _least_squares(terms: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Coefficients [K, L] and R² [L] of target [W, L, E] on terms [K, W, L, E], over steps and experts of a layer."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # as above
        size = np.sqrt(np.einsum("kwle,kwle->kl", terms, terms))
        scaled = terms / np.where(size > 0, size, 1.0)[:, None, :, None]
        products = np.einsum("kwle,jwle->lkj", scaled, scaled)
        answers = np.einsum("kwle,wle->lk", scaled, target)
        whole = np.einsum("wle,wle->l", target, target)
        known = np.isfinite(answers).all(axis=1) & (whole > 0)
        inverse = np.linalg.pinv(np.where(known[:, None, None], products, 0.0), rcond=1e-9, hermitian=True)
        found = np.einsum("lkj,lj->lk", inverse, np.where(known[:, None], answers, 0.0))
        explained = np.einsum("lk,lk->l", found, answers) / whole
    found = np.where(known[:, None], found, np.nan)
    return np.asarray((found / np.where(size.T > 0, size.T, np.nan)).T), np.where(known, explained, np.nan)
