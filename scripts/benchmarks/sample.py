"""Speed of generating crystals, against how earlier programs sample.

Those keep the latents of a batch in one dense tensor (B, 20, Z) with a padding mask, use layers of
`torch.nn` in float32, and take 50 DDIM steps.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from ase.data import chemical_symbols
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from torch import Tensor, nn

from benchmarks import Row, alternate, compare, device
from src.commands.sample_files import write_samples
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.ldm_module import LDMModule
from src.ldm_module.sampling import generate_crystals
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from src.utils.memory import keep_freed_memory

CONFIGS = str(Path(__file__).resolve().parents[2] / "configs")
STEPS = (20, 10, 6)
DENSE_STEPS = 50
MAX_NUM_ATOMS = 20
TRAIN_STEPS = 1000  # of the diffusion
BETAS = (1e-4, 0.02)  # first and last, linear in between (Ho et al. 2020)
NUM_JUDGED = 1000  # samples whose validity is checked


def run(
    dataset: CrystalDataset,
    checkpoint: Path | None,
    num_crystals: int,
    batch_size: int,
    rounds: int,
    num_files: int,
) -> list[Row]:
    """Crystals/s of both, to tensors and to files; with a checkpoint also the validity.

    The weights do not change how long anything takes, so that random ones do without a checkpoint.
    The dense model has the same depth and width, and always random weights.

    Args:
        dataset: gives the numbers of atoms.
        checkpoint: a latent diffusion model for de novo generation.
        num_crystals: how many to generate in each turn.
        batch_size: crystals at a time, for both.
        rounds: see `alternate`.
        num_files: how many to write to files once, with each number of steps; 0: none.
    """
    keep_freed_memory()
    ldm = (LDMModule.load_from_checkpoint(checkpoint) if checkpoint else make_ldm()).to(device())
    ldm.vae.training_set = {"num_atoms": _counts(dataset.num_atoms)}
    dense = DenseSampler(ldm).to(device()).eval()
    sizes = dataset.num_atoms.long().clamp(max=MAX_NUM_ATOMS)
    sizes = sizes[torch.arange(num_crystals) % len(sizes)]

    tensors = {"dense torch.nn, fp32, 50 DDIM steps": partial(_dense, dense, sizes, batch_size)}
    files = {"dense torch.nn, fp32, 50 DDIM steps": partial(_dense_files, dense, sizes, batch_size)}
    for steps in STEPS:
        draw = partial(_ours, ldm, sizes, steps, batch_size)
        tensors[f"ours, {steps} steps"] = partial(_count, draw)
        files[f"ours, {steps} steps"] = partial(_our_files, draw, num_crystals)
    title = f"sample, {num_crystals} crystals, batch {batch_size}"
    rows = compare(f"{title}: tensors", alternate(tensors, rounds, "tensors"), "crystals/s")
    rows += compare(f"{title}: files", alternate(files, rounds, "files"), "crystals/s")
    if checkpoint:
        rows += [row for steps in (100, *STEPS) for row in _validity(ldm, steps, batch_size)]
    if num_files:
        sizes = dataset.num_atoms[torch.arange(num_files) % len(dataset)].long()
        for steps in STEPS:
            draw = partial(_ours, ldm, sizes, steps, batch_size)
            once = {f"{steps} steps": partial(_our_files, draw, num_files)}
            seconds = num_files / alternate(once, 1, "files", warm_up=False)[f"{steps} steps"]
            rows.append(Row(f"{num_files:,} crystals to files", f"{steps} steps", seconds, "s"))
    return rows


def make_ldm() -> LDMModule:
    """The small latent diffusion model, with random weights."""
    torch.manual_seed(0)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        vae = instantiate(compose("train_vae", ["size=small"]).vae_module)
        cfg = compose("train_ldm", ["ldm_size=small", "vae_ckpt_path=none"])
    ldm = LDMModule(vae, cfg.ldm_module.denoiser)
    nn.init.normal_(ldm.denoiser.head.weight, std=0.02)  # zero at first
    ldm.latent_std.fill_(1.0)
    return ldm.eval()


def _counts(num_atoms: Tensor) -> dict[str, int]:
    sizes, counts = num_atoms.unique(return_counts=True)
    return dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True))


def _ours(ldm: LDMModule, sizes: Tensor, steps: int, batch_size: int) -> Iterator[CrystalBatch]:
    generator = torch.Generator(ldm.device).manual_seed(0)
    for part in sizes.split(batch_size):
        ask = CrystalBatch.for_sampling(part)
        crystals = ldm.sample(ask, sampling_steps=steps, generator=generator, attempts=1)
        assert isinstance(crystals, CrystalBatch)
        yield crystals.to("cpu")


def _count(draw: Callable[[], Iterator[CrystalBatch]]) -> float:
    return sum(len(batch.num_atoms) for batch in draw())


def _our_files(draw: Callable[[], Iterator[CrystalBatch]], num_crystals: int) -> float:
    """With the CIFs, extended XYZ and checks of validity of `sample_ldm`."""
    with tempfile.TemporaryDirectory() as name, (Path(name) / "rows").open("w+") as rows:
        return write_samples(draw(), range(num_crystals), Path(name), "folder", rows)["written"]


def _dense(dense: "DenseSampler", sizes: Tensor, batch_size: int) -> float:
    for part in sizes.split(batch_size):
        dense.sample(part)
    return len(sizes)


def _dense_files(dense: "DenseSampler", sizes: Tensor, batch_size: int) -> float:
    """With one CIF of each, by pymatgen, and no checks."""
    with tempfile.TemporaryDirectory() as folder:
        start = 0
        for part in sizes.split(batch_size):
            for k, crystal in enumerate(dense.to_structures(part, *dense.sample(part)), start):
                CifWriter(crystal).write_file(f"{folder}/{k}.cif")
            start += len(part)
    return len(sizes)


def _validity(ldm: LDMModule, steps: int, batch_size: int) -> list[Row]:
    batches = generate_crystals(
        ldm, NUM_JUDGED, sampling_steps=steps, batch_size=batch_size, attempts=1
    )
    crystals = [crystal for batch in batches for crystal in batch.to_structure()]
    structures = [invalid_reason(crystal) is None for crystal in crystals]
    compositions = [is_valid_composition(crystal.composition) for crystal in crystals]
    both = [all(pair) for pair in zip(structures, compositions, strict=True)]
    bench = f"validity of {NUM_JUDGED:,} samples"
    named = {"structures": structures, "compositions": compositions, "both": both}
    return [
        Row(bench, f"{steps} steps: {name}", 100 * sum(found) / len(found), "%")
        for name, found in named.items()
    ]


class DenseSampler(nn.Module):
    """A diffusion Transformer and a decoder on dense padded batches, made of layers of `torch.nn`.

    Args:
        ldm: gives depths, widths and the number of latent channels.
    """

    signal: Tensor

    def __init__(self, ldm: LDMModule) -> None:
        super().__init__()
        net, decoder = ldm.denoiser, ldm.vae.decoder
        self.latent_dim = ldm.vae.latent_dim
        self.embed = nn.Linear(self.latent_dim, net.d_model)
        self.embed_time = nn.Sequential(
            nn.Linear(256, net.d_model), nn.SiLU(), nn.Linear(net.d_model, net.d_model)
        )
        sizes = (net.d_model, net.nhead, net.dim_feedforward)
        self.layers = nn.ModuleList(DenseDiTLayer(*sizes) for _ in range(net.num_layers))
        self.final = nn.Sequential(nn.SiLU(), nn.Linear(net.d_model, 2 * net.d_model))
        self.norm = nn.LayerNorm(net.d_model, elementwise_affine=False)
        self.head = nn.Linear(net.d_model, 2 * self.latent_dim)  # noise and its variance
        layer = nn.TransformerEncoderLayer(
            decoder.d_model, decoder.nhead, decoder.dim_feedforward, 0.0, "gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.to_decoder = nn.Linear(self.latent_dim, decoder.d_model)
        self.decoder = nn.TransformerEncoder(
            layer, decoder.num_layers, nn.LayerNorm(decoder.d_model), enable_nested_tensor=False
        )
        self.types = nn.Linear(decoder.d_model, 100)
        self.coords = nn.Linear(decoder.d_model, 3)
        self.lattice = nn.Linear(decoder.d_model, 6)
        # (1,000,) the share of signal that is left after each step, squared
        self.register_buffer("signal", (1 - torch.linspace(*BETAS, TRAIN_STEPS)).cumprod(0))

    @torch.no_grad()
    def sample(self, num_atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Types (B, L), fractional coordinates (B, L, 3), and lengths and angles (B, 6)."""
        num_atoms = num_atoms.to(self.signal.device)
        padding = torch.arange(MAX_NUM_ATOMS, device=num_atoms.device) >= num_atoms[:, None]
        x = torch.randn(*padding.shape, self.latent_dim, device=num_atoms.device)
        times = torch.linspace(TRAIN_STEPS - 1, 0, DENSE_STEPS, device=num_atoms.device).long()
        for t, t_next in zip(times, [*times[1:], None], strict=True):
            noise = self.predict_noise(x, t.expand(len(x)), padding)
            x = self._ddim_step(x, noise, t, t_next)
        hidden = self.decoder(self.to_decoder(x), src_key_padding_mask=padding)
        present = ~padding[:, :, None]
        mean = (hidden * present).sum(1) / num_atoms[:, None]
        return self.types(hidden).argmax(-1), self.coords(hidden) % 1, self.lattice(mean)

    def _ddim_step(self, x: Tensor, noise: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Song et al. 2021, "Denoising Diffusion Implicit Models", equations 12 and 16, eta 1."""
        now = self.signal[t]
        following = torch.ones_like(now) if t_next is None else self.signal[t_next]
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
        sigma = ((1 - following) / (1 - now) * (1 - now / following)).sqrt()
        direction = (1 - following - sigma**2).clamp(min=0).sqrt() * noise
        return following.sqrt() * clean + direction + sigma * torch.randn_like(x)

    def predict_noise(self, x: Tensor, t: Tensor, padding: Tensor) -> Tensor:
        """(B, L, latent_dim) at times `t` (B,), of which `padding` (B, L) is not used."""
        phases = t[:, None] * torch.logspace(0, -4, 128, device=t.device)
        given = self.embed_time(torch.cat([phases.sin(), phases.cos()], dim=1))
        hidden = self.embed(x)
        for layer in self.layers:
            hidden = layer(hidden, given, padding)
        shift, scale = self.final(given)[:, None].chunk(2, dim=-1)
        return self.head(self.norm(hidden) * (1 + scale) + shift)[..., : self.latent_dim]

    def to_structures(
        self, num_atoms: Tensor, types: Tensor, coords: Tensor, cells: Tensor
    ) -> Sequence[Structure]:
        """Crystals of the sizes and types drawn, with cells that any weights would give."""
        found = []
        for n, row, xyz in zip(num_atoms.tolist(), types.tolist(), coords.tolist(), strict=True):
            symbols = [chemical_symbols[max(number, 1)] for number in row[:n]]
            found.append(Structure(Lattice.cubic(3.0 * n ** (1 / 3)), symbols, xyz[:n]))
        return found


class DenseDiTLayer(nn.Module):
    """Attention and a feed-forward network with adaLN-Zero, see `src.ldm_module.denoisers.dit`."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model, elementwise_affine=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, dim_feedforward), nn.GELU(), nn.Linear(dim_feedforward, d_model)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d_model, 6 * d_model))

    def forward(self, x: Tensor, given: Tensor, padding: Tensor) -> Tensor:
        parts = self.modulation(given)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        return x + gate2 * self.feed_forward(self.norm2(x) * (1 + scale2) + shift2)
