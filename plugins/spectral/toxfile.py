"""tox hook: test environments use the packages of the environment that tox runs in.

mcframe, torch and DeepSpeed are not installed a second time. Missing packages are installed as usual. Without this file
tox installs everything.
"""

import sysconfig

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.python.api import Python
from tox.tox_env.runner import RunToxEnv


@impl
def tox_on_install(tox_env: ToxEnv, arguments: object, section: str, of_type: str) -> None:
    """Add the packages of this environment to a test environment, after its own."""
    if isinstance(tox_env, RunToxEnv) and isinstance(tox_env, Python):
        folder = tox_env.env_site_package_dir()
        folder.mkdir(parents=True, exist_ok=True)
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "shared_with_tox.pth").write_text(line, "utf-8")
