"""Modules that can be called, where a program and a function of the package have the same name."""

import importlib
import sys
import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module that can be called: it calls the function that `called` names as 'package.module:function'.

    `dualcl_jax.evaluate` is the program of that name and, as an attribute of the package, a function. The import
    system would replace the function by the module as soon as anything imports the program, so both are one object.
    """

    called: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        module, _, function = self.called.partition(':')
        return getattr(importlib.import_module(module), function)(*arguments, **options)


def make_callable(module: str, called: str) -> None:
    """Makes an imported module callable as `called`, a 'package.module:function' that is imported at the first call."""
    found = sys.modules[module]
    found.__class__ = CallableModule
    found.__dict__['called'] = called
