"""The address of the comparison of methods in MLflow's UI."""

from __future__ import annotations

KEY = "comparison"  # the view's name in the address
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"  # of the experiment: where the UI keeps a view of that name


def comparison_url(server: str, experiment: str) -> str:
    """Of the MLflow experiment with this id: methods by their final average accuracy; the UI shows charts, too."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey={KEY}"
