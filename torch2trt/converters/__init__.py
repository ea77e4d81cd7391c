"""Converters: one file an operator family. Importing the package registers them all, and those of installed packages.

A package adds its own through the entry point group ``torch2trt.converters``: each entry names a module to import.
"""

import importlib
import logging
import pkgutil
from importlib.metadata import entry_points

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

for _entry in entry_points(group="torch2trt.converters"):
    try:
        _entry.load()
    except Exception:
        # Somebody else's package is no reason to compile nothing.
        logging.getLogger(__name__).exception("the converters of %s (%s) cannot be used", _entry.name, _entry.value)
