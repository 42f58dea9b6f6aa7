"""Read by tox: its environments see the packages of the one that tox itself runs in.

So mcframe, torch and DeepSpeed are not installed once more, and mcframe is the one that you work with.
What is not there is installed as usual. Remove this file, and tox installs everything anew.
"""

import sysconfig

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.python.api import Python
from tox.tox_env.runner import RunToxEnv


@impl
def tox_on_install(tox_env: ToxEnv, arguments: object, section: str, of_type: str) -> None:
    """Before anything is installed into a test environment: let it see ours, behind what it has itself."""
    if isinstance(tox_env, RunToxEnv) and isinstance(tox_env, Python):
        folder = tox_env.env_site_package_dir()
        folder.mkdir(parents=True, exist_ok=True)
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "shared_with_tox.pth").write_text(line, "utf-8")
