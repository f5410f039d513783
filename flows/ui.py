"""`make ui`: the Prefect and MLflow user interfaces on local ports, until Ctrl-C."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from parameters import project_root
from tasks.delivery import deliver_all, records

from . import settings
from .services import NotStarted, user_interfaces


def deliver(root: Path) -> None:
    """Sends what MLflow does not have yet, before its server is up: the database then has one user."""
    if records(root):
        print("sending what MLflow does not have yet (Ctrl-C: not now)", flush=True)
        with suppress(KeyboardInterrupt):
            if kept := deliver_all(root):
                print(f"note: {len(kept)} runs could not be sent; they are kept in runs/untracked", flush=True)


def main() -> int:
    """Starts both servers on this machine only, prints their addresses, stops both on Ctrl-C."""
    settings.apply()
    root = project_root()
    deliver(root)
    try:
        with user_interfaces(root) as (services, _, _):
            print("Ctrl-C stops both", flush=True)
            services.watch()
        print("error: a server stopped by itself", file=sys.stderr)
    except NotStarted as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
