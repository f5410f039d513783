"""Where MLflow's UI compares the methods on a stream."""

from __future__ import annotations

VIEW_TAG = "mlflow.sharedViewState."  # of an experiment, then a view's name: where the UI keeps a view to share
COMPARISON, SEEDS = "comparison", "seeds"  # ours, see tasks/stream_page.py


def comparison_url(server: str, experiment: str) -> str:
    """The address of the comparison of methods in the MLflow experiment with this id."""
    view = f"workflowType=machine_learning&viewStateShareKey={COMPARISON}"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{view}"
