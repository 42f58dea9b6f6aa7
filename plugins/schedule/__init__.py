"""The learning-rate schedules that come with mcframe."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.schedule.trapezoid import Trapezoid

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the schedules of this folder."""
    register("trapezoid", Trapezoid)
