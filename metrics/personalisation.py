"""How well each client is served on its own test data."""

from __future__ import annotations

from statistics import fmean, pstdev

import pandas as pd

from metrics.accuracy import experiences


def personalisation(frame: pd.DataFrame, main: str) -> dict[str, float]:
    """Mean, spread and worst tenth over clients of the own model's final average accuracy on own test data.

    A client's model is its `personal` one, or else the one it last `received`, or else its `main` one. Its final
    average accuracy is the mean over the experiences of which it has test samples. All are in [0, 1]; the spread is the
    population's, for these are all the clients. [field] The worst tenth is the mean over the worst ceil(N / 10)
    clients. [ours]
    The gain, personal minus received over clients that have both, is in [-1, 1]. No key where no client was measured.
    """
    own = sorted(own_accuracy(frame, main))
    if not own:
        return {}
    personal, received = _final(frame, "personal"), _final(frame, "received")
    found = {
        "personalisation_mean": fmean(own),
        "personalisation_std": pstdev(own),
        "personalisation_worst_decile": fmean(own[: -(-len(own) // 10)]),
    }
    gains = (personal - received).dropna()
    return {**found, "personalisation_gain": fmean(gains)} if len(gains) else found


def own_accuracy(frame: pd.DataFrame, main: str) -> pd.Series:
    """Each client's final average accuracy on its own test data, of what it uses, in [0, 1], by client.

    Args:
        main: the kind of model that is the method's answer; where that is the server's, no client is measured by it.
    """
    found = (_final(frame, kind) for kind in ("personal", "received", main))
    return next((each for each in found if not each.empty), _final(frame, main))


def _final(frame: pd.DataFrame, model: str) -> pd.Series:
    """The final average accuracy of each client: over the experiences up to T, after training T."""
    last = experiences(frame) - 1
    final = (frame["model"] == model) & (frame["trained"] == last) & (frame["tested"] <= last) & (frame["client"] >= 0)
    return frame[final].groupby("client")["accuracy"].agg(fmean)
