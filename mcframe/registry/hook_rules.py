"""Rules of registration: the hooks of a plug-in, and the version of the API that it was made for."""

from __future__ import annotations

import inspect
import re

import pluggy

from mcframe import __version__
from mcframe.errors import UserError, did_you_mean
from mcframe.hookspecs import API_VERSION, Hooks

API_ATTRIBUTE = "mcframe_api"
"""The attribute in which a plug-in may state the API version that it was made for."""


class OtherApi(UserError):
    """A plug-in was made for an incompatible version of the plug-in API."""


def api_fits(stated: str, ours: str = API_VERSION) -> bool:
    """Return whether a plug-in made for API `stated` works with `ours`. Both are `major.minor`.

    Before 1.0 a minor version may change anything, so the two must be equal; from 1.0 a minor version only adds.
    """
    (major, minor), (our_major, our_minor) = _numbers(stated), _numbers(ours)
    return major == our_major and (minor == our_minor if major == 0 else minor <= our_minor)


def stated_api(plugin: object, package: str) -> str:
    """Return the plug-in's `mcframe_api`, empty if it has none.

    Raises:
        UserError: It is not a version.
        OtherApi: It is an incompatible version.
    """
    stated = getattr(plugin, API_ATTRIBUTE, None)
    if stated is None:
        return ""
    if not isinstance(stated, str) or not re.fullmatch(r"\d+\.\d+", stated):
        raise UserError(
            f"{API_ATTRIBUTE} is {stated!r}, which is no version", remedy=f'write {API_ATTRIBUTE} = "{API_VERSION}"'
        )
    if not api_fits(stated):
        raise OtherApi(
            f"it was made for mcframe's plug-in API {stated}, and mcframe {__version__} has API {API_VERSION}",
            remedy=_remedy(stated, package),
        )
    return stated


def _remedy(stated: str, package: str) -> str:
    own = f'bring its code to API {API_VERSION} and write {API_ATTRIBUTE} = "{API_VERSION}"'
    if _numbers(stated) > _numbers(API_VERSION):
        other = f"install a version of {package} made for API {API_VERSION}" if package else own
        return f"upgrade mcframe (pip install --upgrade mcframe), or {other}"
    return f"upgrade {package} (pip install --upgrade {package}), or report it to its authors" if package else own


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def implemented_hooks(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Return the hooks that a plug-in implements. Raises UserError for mistakes that pluggy ignores silently."""
    if inspect.isclass(plugin):
        raise UserError(
            f"{plugin.__name__} is a class; a plug-in is an instance or a module",
            remedy=f"publish an instance: `plugin = {plugin.__name__}()`",
        )
    hooks = {hook for hook in dir(Hooks) if not hook.startswith("_")}
    implemented = []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        hook = options.get("specname") or attribute
        implemented.append(hook)
        if hook not in hooks and not options.get("optionalhook"):
            raise UserError(f"mcframe has no hook {hook!r}{did_you_mean(hook, hooks)}", remedy="rename the function")
        for parameter in inspect.signature(getattr(plugin, attribute)).parameters.values():
            # pluggy passes no value for such a parameter: it would always have its default.
            if parameter.default is not parameter.empty:
                raise UserError(
                    f"hook {hook!r}: parameter {parameter.name!r} has a default value and would never get another",
                    remedy=f"remove the default of {parameter.name!r}",
                )
    if not implemented:
        raise UserError("it implements no hook", remedy="mark its functions with @mcframe.hookspecs.hookimpl")
    return implemented
