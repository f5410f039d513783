"""The algorithms, one file each. A new file in this folder is found by itself: it only has to register its method."""

import importlib
import pkgutil

from .base import CENTRE, Method, Setting, get, names, register
from .state import Message, Moment, State

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["CENTRE", "Message", "Method", "Moment", "Setting", "State", "get", "names", "register"]
