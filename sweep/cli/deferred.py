"""Modules that are imported when somebody asks them for something, not before."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class Deferred(ModuleType):
    """A module that is not executed yet. It has what the import system itself looks at, else it
    would be executed by the first `import` of it (as importlib.util.LazyLoader's are).
    """

    functions: Sequence[str]
    lock: threading.RLock
    is_loading: bool

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            # The import system asks for it, and a module that is no package has none.
            raise AttributeError(name)
        if name in self.functions and not self.is_loading:
            return _forwarding(self, name)
        self.load(name)
        return getattr(self, name)

    def load(self, name: str) -> None:
        """Executes it, unless that is done; another thread waits for the one that does it."""
        with self.lock:
            if self.is_loading:
                raise AttributeError(f"{self.__name__} is imported and has no {name!r} yet")
            if self.__class__ is not Deferred:
                return
            self.is_loading = True
            try:
                assert self.__spec__ is not None and self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
            except BaseException:
                # The next import meets the same.
                sys.modules.pop(self.__name__, None)
                raise
            finally:
                self.is_loading = False
            self.__class__ = ModuleType  # type: ignore[assignment]


def _forwarding(module: Deferred, name: str) -> Callable[..., Any]:
    def function(*arguments: Any, **named: Any) -> Any:
        if isinstance(module, Deferred):
            module.load(name)
        return getattr(module, name)(*arguments, **named)

    return function


def defer(name: str, functions: Sequence[str] = ()) -> None:
    """From now on `import NAME` does not execute the module; asking for what is in it does.

    `functions` may be taken from it (`from NAME import function`) without that; calling them does
    it. Changes nothing where the module has been imported before, or is not there.
    """
    if name in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        # Nor is the package that it would be in.
        return
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    vars(module).update(functions=tuple(functions), lock=threading.RLock(), is_loading=False)
    module.__class__ = Deferred
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
