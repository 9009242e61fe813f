"""Reject elements that a model does not know, naming the element and crystal in the error."""

from typing import Any

import torch
from ase.data import chemical_symbols
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from src.data import DataModule
from src.data.dataset import CrystalDataset
from src.utils.errors import UserError


def table_size(*networks: Any) -> int | None:
    """The number of atom types that all of the networks know, including the mask token 0.

    It is the smallest of their `max_num_elements` attributes, which are optional; None if none of
    them has one.
    """
    sizes = [getattr(network, "max_num_elements", None) for network in networks]
    return min((size for size in sizes if size is not None), default=None)


def readers(vae: Any) -> tuple[Any, ...]:
    """The networks of a VAE that take atom types as input."""
    names = ("encoder",) if getattr(vae, "atom_type_predict", True) else ("encoder", "decoder")
    return tuple(getattr(vae, name, None) for name in names)


def find_unknown(
    atom_types: Tensor, *networks: Any, is_masked: bool = False
) -> tuple[int, str] | None:
    """Find the heaviest atom that the networks do not know.

    Args:
        atom_types: (N,) atomic numbers. If they are on a GPU, this synchronizes with it.
        is_masked: allow the mask token 0.

    Returns:
        The index of the atom and the reason, or None if there is no such atom.
    """
    if not len(atom_types):
        return None
    size = table_size(*networks)
    lightest, heaviest = int(atom_types.min()), int(atom_types.max())
    if lightest < (0 if is_masked else 1):
        reason = f"an atom has type {lightest}, which is not an element (0 is the mask token)"
        return int(atom_types.argmin()), reason
    if size is None or heaviest < size:
        return None
    symbol = chemical_symbols[heaviest] if heaviest < len(chemical_symbols) else "an element"
    reason = f"{symbol} has atomic number {heaviest}: the model knows elements 1 to {size - 1}"
    return int(atom_types.argmax()), reason


def check_types(atom_types: Tensor, batch: Tensor, *networks: Any, is_masked: bool = False) -> None:
    """Reject atoms that the networks do not know. Atoms on a GPU are not checked, to save time.

    Args:
        atom_types: (N,) atomic numbers.
        batch: (N,) index of the crystal of each atom.
        is_masked: allow the mask token 0.

    Raises:
        UserError: for such an atom; the message names the element and the index of the crystal.
    """
    if atom_types.device.type != "cpu":
        return
    if found := find_unknown(atom_types, *networks, is_masked=is_masked):
        raise UserError(f"crystal {int(batch[found[0]])} of the batch: {found[1]}")


def check_dataset(dataset: CrystalDataset, where: str, *networks: Any) -> None:
    """Reject a data set with an atom that the networks do not know.

    Args:
        where: start of the message, such as the split and its folder.

    Raises:
        UserError: for such an atom; the message names the element and the ID of the crystal, and
            says what to do.
    """
    found = find_unknown(dataset.atom_types, *networks)
    if found is None:
        return
    ends = dataset.num_atoms.long().cumsum(0).cpu()
    crystal = int(torch.searchsorted(ends, found[0], right=True))
    size, hint = table_size(*networks), ""
    if size is not None:
        hint = (
            f". To leave such crystals out, set data.max_atomic_number={size - 1}; to train on "
            "them, raise vae_module.encoder.max_num_elements"
        )
    raise UserError(f"{where}: crystal {dataset.ids[crystal]}: {found[1]}{hint}")


def element_networks(module: LightningModule) -> tuple[Any, ...]:
    """The networks that limit which elements a module can be trained on."""
    return module.element_networks  # type: ignore[return-value]


class ElementCheck(Callback):
    """Rejects data with elements that a module's `element_networks` do not know.

    It checks before the first step. On a GPU, looking up an unknown element would crash the process
    with an error that does not name the element.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the splits of a `DataModule`; before training, all of them."""
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, DataModule):
            return
        if stage == "fit":
            datasets = datamodule.datasets()
        else:
            split = {"validate": "val"}.get(stage, "test")
            datasets = {split: datamodule.dataset(split)}
        for split, dataset in datasets.items():
            where = f"split {split} of {datamodule.data_dir}"
            check_dataset(dataset, where, *element_networks(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_loaders(trainer, pl_module, trainer.train_dataloader)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_loaders(trainer, pl_module, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_loaders(trainer, pl_module, trainer.test_dataloaders)

    def _check_loaders(self, trainer: Trainer, pl_module: LightningModule, loaders: Any) -> None:
        """Check the data sets of any `CrystalLoader` that is used without a `DataModule`."""
        if isinstance(getattr(trainer, "datamodule", None), DataModule):
            return
        for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, CrystalDataset):
                check_dataset(dataset, "in the loader's data", *element_networks(pl_module))
