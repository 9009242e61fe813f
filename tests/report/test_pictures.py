"""Check what static pictures of crystals show, where, and in which order."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pymatgen.core import Lattice, Structure

from src.report import draw_crystal, draw_pairs, draw_strip
from src.report.pictures import extent, formula, is_drawable, view_matrix, whole_cell

ROCKSALT = bulk("NaCl", "rocksalt", a=5.6, cubic=True)


def colors_of(figure: Figure) -> np.ndarray:
    figure.set_dpi(60)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_atoms_on_faces_edges_and_corners_are_repeated():
    index, positions, cell = whole_cell(ROCKSALT)
    symbols = [ROCKSALT.symbols[i] for i in index]
    assert symbols.count("Na") == 8 + 6  # corners and faces
    assert symbols.count("Cl") == 12 + 1  # edges and the center
    assert cell == pytest.approx(5.6 * np.eye(3))
    assert positions.min() == pytest.approx(0)
    assert positions.max() == pytest.approx(5.6)


def test_the_orientation_does_not_matter():
    rotated = ROCKSALT.copy()
    rotated.rotate(40, (1, 2, 3), rotate_cell=True)
    drawn = []
    for crystal in (ROCKSALT, rotated):
        index, positions, _ = whole_cell(crystal)
        rows = np.column_stack([crystal.numbers[index], positions]).round(6) + 0.0
        drawn.append(np.unique(rows, axis=0))
    assert drawn[0] == pytest.approx(drawn[1])


def test_a_skewed_cell():
    primitive = bulk("NaCl", "rocksalt", a=5.6)
    index, positions, cell = whole_cell(primitive)
    assert np.linalg.norm(cell, axis=1) == pytest.approx([5.6 / 2**0.5] * 3)
    assert [primitive.symbols[i] for i in index].count("Na") == 8
    assert len(positions) == 9


def test_a_reconstruction_is_drawn_next_to_its_original():
    """Without `like`, an atom that crosses a face is drawn at the opposite side of the cell."""
    original = Atoms("Cu", cell=[4, 4, 4], scaled_positions=[[0.5, 0.5, 0]], pbc=True)
    moved = original.copy()
    moved.positions += [0, 0, -0.6]
    for like, heights in [(None, [3.4]), (original, [-0.6, 3.4])]:
        _, positions, _ = whole_cell(moved, like)
        assert sorted(positions[:, 2]) == pytest.approx(heights)


def test_an_atom_far_from_its_original_is_drawn_inside_the_cell():
    original = Atoms("Cu", cell=[4, 4, 4], scaled_positions=[[0.5, 0.5, 0]], pbc=True)
    moved = original.copy()
    moved.positions += [0, 0, -1.8]
    assert whole_cell(moved, original)[1][:, 2] == pytest.approx([2.2])


@pytest.mark.parametrize("like", [Atoms("Cu2", cell=[4, 4, 4]), Atoms("Cu", cell=[0, 4, 4])])
def test_an_unsuitable_original_is_ignored(like):
    crystal = Atoms("Cu", cell=[4, 4, 4], scaled_positions=[[0.5, 0.5, 0.5]], pbc=True)
    assert len(whole_cell(crystal, like)[0]) == 1


def test_inputs_are_not_modified():
    crystal = Atoms("Cu", cell=[4, 4, 4], scaled_positions=[[0.5, -0.3, 1.2]], pbc=True)
    before = crystal.copy()
    draw_pairs([crystal], [crystal])
    assert crystal == before


def test_the_view_is_a_rotation_from_above():
    view = view_matrix()
    assert view @ view.T == pytest.approx(np.eye(3))
    assert np.linalg.det(view) == pytest.approx(1)
    right, up, toward = view @ [0, 0, 1]
    assert right == pytest.approx(0)
    assert up > 0.9
    assert toward > 0


def test_the_extent_includes_all_spheres():
    atom = Atoms("Cs", cell=[3, 3, 3], pbc=True)
    assert extent(atom) == pytest.approx(27**0.5 / 2 + 0.65 * 2.44)


def spoiled(cell=(3, 3, 3), position=(0, 0, 0)):
    return Atoms("Cu", cell=cell, positions=[position], pbc=True)


@pytest.mark.parametrize(
    "crystal",
    [
        spoiled(cell=(np.nan, 3, 3)),
        spoiled(position=(0, np.inf, 0)),
        spoiled(cell=(0, 3, 3)),
        spoiled(cell=(1e30, 3, 3)),
        Atoms(cell=[3, 3, 3], pbc=True),
    ],
)
def test_invalid_structures(crystal):
    assert not is_drawable(crystal)
    assert extent(crystal) == 0
    figure = draw_pairs([ROCKSALT], [crystal])
    assert figure.axes[1].texts[0].get_text() == "invalid structure"
    colors_of(draw_strip([crystal]))  # does not raise


def test_nearer_atoms_hide_farther_ones():
    """Gold and oxygen, seen along the line between them."""
    toward = view_matrix()[2]
    center = np.full(3, 6.0)
    for near, hidden in [("Au", "O"), ("O", "Au")]:
        crystal = Atoms(
            [hidden, near],
            positions=[center - 2 * toward, center + 2 * toward],
            cell=[12, 12, 12],
            pbc=True,
        )
        figure = Figure(figsize=(2, 2))
        draw_crystal(figure.add_axes((0, 0, 1, 1)), crystal)
        pixels = colors_of(figure)
        red, green, blue = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].astype(int)
        assert red > 150 > blue
        assert (green > 120) == (near == "Au")  # gold is yellow, oxygen red


def test_pymatgen_structures_and_ase_atoms_look_the_same():
    structure = Structure(Lattice.cubic(4.2), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    atoms = Atoms("CsCl", cell=[4.2] * 3, scaled_positions=structure.frac_coords, pbc=True)
    pictures = [colors_of(draw_strip([crystal])) for crystal in (structure, atoms)]
    assert (pictures[0] == pictures[1]).all()
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 200  # spheres are shaded


def test_labels_and_titles():
    figure = draw_pairs([ROCKSALT] * 3, [ROCKSALT] * 3, labels=["a", "b", "c"], title="epoch 7")
    assert len(figure.axes) == 6
    texts = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert texts == [["original"], [], [], ["a", "reconstruction"], ["b"], ["c"]]
    assert figure.get_suptitle() == "epoch 7"
    assert [ax.texts[0].get_text() for ax in draw_strip([ROCKSALT]).axes] == ["Na$_{4}$Cl$_{4}$"]
    assert formula(bulk("Cu")) == "Cu"


def test_a_strip_has_one_scale_and_each_pair_its_own():
    small, large = bulk("Cu"), ROCKSALT
    strip = draw_strip([small, large])
    assert strip.axes[0].get_xlim() == strip.axes[1].get_xlim()
    pairs = draw_pairs([small, large], [small, large])
    widths = [ax.get_xlim()[1] for ax in pairs.axes]
    assert widths == pytest.approx([extent(small), extent(large)] * 2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: draw_strip([]),
        lambda: draw_strip([ROCKSALT], ["a", "b"]),
        lambda: draw_pairs([ROCKSALT], []),
        lambda: draw_pairs([ROCKSALT] * 2, [ROCKSALT] * 2, ["a"]),
    ],
)
def test_lists_of_different_lengths_are_refused(draw):
    with pytest.raises(ValueError, match="expected lists of the same nonzero length"):
        draw()


def test_partial_occupancies_are_refused():
    mixed = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"[Oo]rdered"):
        draw_strip([mixed])
