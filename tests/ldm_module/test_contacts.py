"""Crystals with atoms that are too close are drawn again."""

import pytest
import torch
from ase.data import covalent_radii
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch
from src.ldm_module.contacts import CLOSEST, closest_contacts, draw_apart, select
from src.utils.errors import UserError
from tests.ldm_module.conftest import COMPOSITIONS, make_ldm


def test_closest_contacts(batch):
    """As pymatgen finds them, with images of an atom as other atoms."""
    structures = [
        *batch.to_structure(),
        Structure(Lattice.cubic(2.0), ["O"], [[0, 0, 0]]),
        Structure(Lattice.cubic(8.0), ["O", "Ti"], [[0.02, 0, 0], [0.98, 0, 0]]),
    ]
    for structure, found in zip(
        structures, closest_contacts(CrystalBatch.from_structures(structures)), strict=True
    ):
        first, second, _, distances = structure.get_neighbor_list(12.0)
        radii = covalent_radii[list(structure.atomic_numbers)]
        expected = (distances / (radii[first] + radii[second])).min()
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_broken_crystal_has_contact_zero(batch):
    lattices = batch.lattices.clone()
    lattices[1, 0, 0] = torch.nan
    found = closest_contacts(batch.replace(lattices=lattices))
    assert (found == 0).tolist() == [False, True, False]


def test_the_first_good_attempt_or_the_best_is_kept():
    """Crystal 1 is good at once, crystal 2 the second time, crystal 0 never."""
    sizes, types = torch.tensor([1, 2, 1]), torch.tensor([8, 8, 8, 8])
    request = CrystalBatch.for_sampling(sizes, types)
    drawn = []

    def draw(part, indices):
        drawn.append(indices.tolist())
        edges = torch.where(indices == 1, 9.0, 0.3 * len(drawn) * (1 + indices))
        return edges[part.batch][:, None]

    def decode(latents, part):
        edges = latents[part.ptr[:-1], 0]
        coords = (part.token_idx[:, None] / 2).expand(-1, 3)
        return part.replace(frac_coords=coords, lattices=edges[:, None, None] * torch.eye(3))

    latents = draw_apart(draw, decode, request, attempts=3)
    assert drawn == [[0, 1, 2], [0, 2], [0]]
    torch.testing.assert_close(latents[:, 0], torch.tensor([0.9, 9.0, 9.0, 1.8]))
    assert 0.9 / (2 * covalent_radii[8]) < CLOSEST < 1.8 / (2 * covalent_radii[8])


def test_requests_of_some():
    request = CrystalBatch.for_sampling(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 2, 3, 3, 3]))
    part = select(request, torch.tensor([0, 2]))
    assert part.num_atoms.tolist() == [1, 3]
    assert part.atom_types.tolist() == [1, 3, 3, 3]


def test_more_attempts_leave_fewer_contacts():
    ldm = make_ldm(compositions=COMPOSITIONS)
    ask = CrystalBatch.for_sampling(torch.tensor([2] * 30))

    def closest(attempts):
        generator = torch.Generator().manual_seed(0)
        asked = {"density": [float(3 + i) for i in range(30)]}
        made = ldm.sample(ask, 2, conditions=asked, generator=generator, attempts=attempts)
        return closest_contacts(made)

    once, often = closest(1), closest(5)
    assert (often >= once - 1e-4).all()
    assert (often > once + 1e-4).any()
    with pytest.raises(UserError, match="attempts must be at least 1"):
        closest(0)
