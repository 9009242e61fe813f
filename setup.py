"""Ship the configs, the included data set and the trained models with an installed package.

Everything else is in `pyproject.toml`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# by the folder in the package, where the commands look for it (see src/utils/included.py)
SHIPPED = {
    "configs": "configs",
    "data/prototypes": "included/prototypes",
    "data/mp_20_small": "included/mp_20_small",
}
FILES = ("*.yaml", "*.csv", "*.ckpt", "*.md")  # without caches and results of one's own


class BuildWithData(build_py):
    """Copies folders of the checkout to `src` of the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, name in SHIPPED.items():
            target = Path(self.build_lib) / "src" / name
            shutil.rmtree(target, ignore_errors=True)
            for pattern in FILES:
                for file in sorted((ROOT / source).rglob(pattern)):
                    copy = target / file.relative_to(ROOT / source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithData})
