"""Keep modules importable under their former names, which user code and checkpoints may use."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "src.encoding": "src.commands.encode",
    "src.evaluation": "src.commands.evaluate",
    "src.generation": "src.commands.evaluate_generated",
    "src.metrics.duplicates": "src.inspection.duplicates",
    "src.metrics.evaluate": "src.metrics.reconstruction.evaluate",
    "src.metrics.fingerprints": "src.metrics.generation.fingerprints",
    "src.metrics.inventory": "src.inspection.inventory",
    "src.metrics.latents": "src.metrics.reconstruction.latents",
    "src.metrics.survey": "src.inspection.analysis",
    "src.metrics.symmetry": "src.metrics.reconstruction.invariance",
    "src.metrics.tables": "src.metrics.reconstruction.tables",
    "src.metrics.validity": "src.metrics.generation.validity",
    "src.reconstruction": "src.commands.reconstruct",
    "src.report.inspection": "src.inspection.page",
    "src.sampling": "src.commands.sample",
    "src.search": "src.commands.search",
    "src.sweep": "src.commands.sweep",
    "src.training": "src.commands.train",
    "src.vae_module.cell_start": "src.vae_module.cell_init",
    "src.vae_module.pretrained": "src.base.pretrained",
}
"""The current name of each renamed module, by its former name."""


class _MovedModules(MetaPathFinder, Loader):
    """Makes importing a former name return the same module object as the current name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__  # the import system replaces `__spec__` by `spec`
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let the import system find modules under their former names, if there is no such file."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
