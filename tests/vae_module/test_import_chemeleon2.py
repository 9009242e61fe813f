"""The importer, compared with an equivalent network built from torch's own Transformer.

`tests/scripts/test_import_checkpoint.py` compares with outputs of Chemeleon2 itself. These tests
cover its other options, and malicious files.
"""

import io
import math
import pickle
import zipfile

import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf
from torch import nn

from src.data import CrystalBatch
from src.utils.checkpoints import CheckpointError
from src.vae_module.import_chemeleon2 import import_chemeleon2, read_foreign_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

TARGET = "src.vae_module.encoders.transformer.TransformerEncoder"


class NoPositionalEmbedding(nn.Module):
    """Only the name matters: these three have no weights in Chemeleon2's files either."""


class SinusoidalPositionalEmbedding(nn.Module):
    def __init__(self, max_len: int = 2048) -> None:
        super().__init__()
        self.max_len = max_len


class GlobalNumAtomsEmbedding(nn.Module):
    pass


class Network(nn.Module):
    """A Transformer with an index embedding, as in Chemeleon2's encoder and decoder."""

    def __init__(
        self, d_model=16, nhead=2, num_layers=1, dim_feedforward=24, dropout=0.0,
        activation="gelu", norm_first=True, bias=True, index_embedding=None,
    ) -> None:  # fmt: skip
        super().__init__()
        function = nn.ReLU() if activation == "relu" else nn.GELU(approximate="tanh")
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, dropout, function,
            batch_first=True, norm_first=norm_first, bias=bias,
        )  # fmt: skip
        self.transformer = nn.TransformerEncoder(layer, num_layers, norm=nn.LayerNorm(d_model))
        self.d_model = d_model
        if index_embedding:
            self.index_embedding = index_embedding

    def transform(self, x: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        if not isinstance(getattr(self, "index_embedding", None), NoPositionalEmbedding):
            k = torch.arange(self.d_model // 2)
            phase = batch.token_idx[:, None] * math.pi / 2048 ** (2 * k / self.d_model)
            x = x + torch.cat([phase.sin(), phase.cos()], dim=1)
        split = x.split(batch.num_atoms.tolist())
        padded = nn.utils.rnn.pad_sequence(split, batch_first=True)
        is_atom = torch.arange(padded.shape[1]) < batch.num_atoms[:, None]
        return self.transformer(padded, src_key_padding_mask=~is_atom)[is_atom]


class Encoder(Network):
    def __init__(self, max_num_elements=100, **options) -> None:
        super().__init__(**options)
        d = self.d_model
        self.atom_type_embedder = nn.Embedding(max_num_elements, d)
        for name, size in (("lattices_embedder", 9), ("frac_coords_embedder", 3)):
            layers = nn.Linear(size, d, bias=False), nn.SiLU(), nn.Linear(d, d)
            setattr(self, name, nn.Sequential(*layers))

    def forward(self, batch: CrystalBatch) -> torch.Tensor:
        lattices = self.lattices_embedder(batch.lattices.flatten(1))[batch.batch]
        coords = self.frac_coords_embedder(batch.frac_coords)
        return self.transform(self.atom_type_embedder(batch.atom_types) + lattices + coords, batch)


class Decoder(Network):
    def __init__(self, atom_type_predict=True, max_num_elements=100, **options) -> None:
        super().__init__(**options)
        if atom_type_predict:
            self.atom_types_head = nn.Linear(self.d_model, max_num_elements)
        self.frac_coords_head = nn.Linear(self.d_model, 3, bias=False)
        self.lattice_head = nn.Linear(self.d_model, 6, bias=False)

    def forward(self, x: torch.Tensor, batch: CrystalBatch) -> dict[str, torch.Tensor]:
        hidden = self.transform(x, batch)
        means = [part.mean(0) for part in hidden.split(batch.num_atoms.tolist())]
        out = {"coords": self.frac_coords_head(hidden)}
        out["lengths_scaled"], out["angles_radians"] = self.lattice_head(torch.stack(means)).chunk(
            2, dim=1
        )
        if hasattr(self, "atom_types_head"):
            out["atom_logits"] = self.atom_types_head(hidden)
        return out


class VAE(nn.Module):
    def __init__(self, encoder: Encoder, decoder: Decoder, latent_dim=4, bias=False, fa=0.0):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quant_conv = nn.Linear(encoder.d_model, 2 * latent_dim, bias=bias)
        self.post_quant_conv = nn.Linear(latent_dim, decoder.d_model, bias=bias)
        if fa:
            self.proj = nn.Linear(latent_dim, 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7)
        self.eval()

    @torch.no_grad()
    def forward(self, batch: CrystalBatch) -> dict[str, torch.Tensor]:
        mean, logvar = self.quant_conv(self.encoder(batch)).chunk(2, dim=1)
        out = self.decoder(self.post_quant_conv(mean), batch)
        return {"mean": mean, "logvar": logvar, **out}


def make_batch() -> CrystalBatch:
    num_atoms = torch.tensor([3, 1, 5])
    return CrystalBatch.from_tensors(
        torch.randint(1, 90, (9,)), torch.rand(9, 3), 3 * torch.randn(3, 3, 3), num_atoms
    )


def content_of(vae: VAE, **changes) -> dict:
    weights = OmegaConf.create({"frac_coords": 7.0, "kl": 1e-4, "fa": 0.0})
    parameters = {"encoder": vae.encoder, "decoder": vae.decoder, "loss_weights": weights}
    content = {"state_dict": vae.state_dict(), "hyper_parameters": parameters, "epoch": 3}
    return {**content, **changes}


def import_from(content: dict, folder):
    path = folder / "foreign.ckpt"
    torch.save(content, path)
    return import_chemeleon2(path)


def assert_same(vae: VAE, imported, tolerance: float = 1e-5) -> None:
    batch = make_batch()
    expected = vae(batch)
    with torch.no_grad():
        encoded = imported.encode(batch)
        prediction = imported._predict(encoded)
    for name, value in expected.items():
        owner = encoded["posterior"] if name in ("mean", "logvar") else prediction
        torch.testing.assert_close(getattr(owner, name), value, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


OPTIONS = {
    "relu": {"activation": "relu"},
    "norm-last": {"norm_first": False},
    "no-biases": {"bias": False},
    "no-biases-norm-last": {"bias": False, "norm_first": False},
    "odd-heads": {"d_model": 12, "nhead": 3},
    "odd-heads-relu": {"d_model": 12, "nhead": 1, "activation": "relu"},
    "four-heads": {"nhead": 4, "num_layers": 3, "dim_feedforward": 8},
    "dropout": {"dropout": 0.4},
    "elements": {"max_num_elements": 119},
    "no-index": {"index_embedding": NoPositionalEmbedding()},
    "index": {"index_embedding": SinusoidalPositionalEmbedding()},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_networks(options, tmp_path):
    vae = VAE(Encoder(**options), Decoder(**options))
    imported = import_from(content_of(vae), tmp_path)
    assert_same(vae, imported)
    for part in (imported.encoder, imported.decoder):
        assert part.dropout == options.get("dropout", 0.0)
        assert part.norm_first == options.get("norm_first", True)


def test_exact_and_approximate_gelu_are_distinguished(tmp_path):
    """The tolerance of `assert_same` is small enough to tell them apart."""
    vae = VAE(Encoder(bias=False, num_layers=2), Decoder(bias=False, num_layers=2))
    imported = import_from(content_of(vae), tmp_path)
    assert imported.encoder.activation == "gelu_tanh"
    exact = import_from(content_of(vae), tmp_path)
    for layer in exact.encoder.transformer.layers:
        layer.activation = nn.functional.gelu
    with pytest.raises(AssertionError):
        assert_same(vae, exact)


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_encoder_and_decoder_of_different_sizes(predict, tmp_path):
    encoder = Encoder(d_model=24, nhead=4, num_layers=2, max_num_elements=101)
    decoder = Decoder(predict, d_model=8, nhead=2, activation="relu", max_num_elements=95)
    vae = VAE(encoder, decoder, latent_dim=7, bias=True)
    imported = import_from(content_of(vae), tmp_path)
    assert_same(vae, imported)
    assert imported.atom_type_predict == predict
    assert (imported.encoder.max_num_elements, imported.latent_dim) == (101, 7)
    assert imported.loss_weights["frac_coords"] == 7.0
    assert imported.loss_weights["lengths"] == 1.0
    assert imported.training_set is None


def renamed(weights: dict, old: str, new: str) -> dict:
    return {new + name.removeprefix(old) if name.startswith(old) else name: weight
            for name, weight in weights.items()}  # fmt: skip


NAMES = {
    "compiled": lambda w: renamed(w, "", "_orig_mod."),
    "encoder-compiled": lambda w: renamed(w, "encoder.", "encoder._orig_mod."),
    "parallel": lambda w: renamed(w, "", "module."),
    "compiled-parallel": lambda w: renamed(w, "", "module._orig_mod."),
    "averaged": lambda w: {"n_averaged": torch.tensor(9), **renamed(w, "", "module.")},
    "double": lambda w: {name: weight.double() for name, weight in w.items()},
    "parameters": lambda w: {name: nn.Parameter(weight) for name, weight in w.items()},
    "transposed": lambda w: {
        name: weight.t().contiguous().t() if weight.dim() == 2 else weight
        for name, weight in w.items()
    },
}


@pytest.mark.parametrize("change", NAMES.values(), ids=NAMES)
def test_forms_of_the_weights(change, tmp_path):
    vae = VAE(Encoder(), Decoder())
    assert_same(vae, import_from(content_of(vae, state_dict=change(vae.state_dict())), tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    vae = VAE(Encoder(), Decoder())
    weights = {name: weight.to(dtype) for name, weight in vae.state_dict().items()}
    vae.load_state_dict(weights)
    imported = import_from(content_of(vae, state_dict=weights), tmp_path)
    assert_same(vae, imported)
    assert imported.quant_conv.weight.dtype == torch.float32


def test_weights_saved_on_a_gpu(tmp_path, monkeypatch):
    vae = VAE(Encoder(), Decoder())
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        path = tmp_path / "gpu.ckpt"
        torch.save(content_of(vae), path)
    with zipfile.ZipFile(path) as archive:
        assert b"cuda:3" in archive.read("gpu/data.pkl")
    assert_same(vae, import_chemeleon2(path))


CONFIG = {
    "_target_": TARGET, "d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 24,
    "dropout": 0.1, "activation": "gelu", "norm_first": False, "index_embedding": "none",
}  # fmt: skip


@pytest.mark.parametrize("form", [dict, OmegaConf.create, AttributeDict])
def test_networks_recorded_as_configs(form, tmp_path):
    options = {"norm_first": False, "index_embedding": NoPositionalEmbedding()}
    vae = VAE(Encoder(**options), Decoder(**options))
    parameters = form({"encoder": CONFIG, "decoder": CONFIG, "loss_weights": {"kl": 0.5}})
    imported = import_from(content_of(vae, hyper_parameters=parameters), tmp_path)
    assert_same(vae, imported)
    assert imported.loss_weights["kl"] == 0.5


def test_a_network_pickled_in_a_wrapper(tmp_path):
    vae = VAE(Encoder(nhead=4), Decoder(nhead=4))
    wrapped = {"encoder": nn.DataParallel(vae.encoder), "decoder": vae.decoder}
    assert_same(vae, import_from(content_of(vae, hyper_parameters=wrapped), tmp_path))


def test_parts_used_only_in_training_are_dropped(tmp_path):
    vae = VAE(Encoder(), Decoder(), fa=0.1)
    state = {"scale": torch.zeros(0), "shadow": [p.detach() for p in vae.parameters()]}
    content = content_of(vae, ema_state=state, optimizer_states=[{"state": {0: state}}])
    assert "proj.weight" in content["state_dict"]
    assert_same(vae, import_from(content, tmp_path))


def without(weights: dict, name: str) -> dict:
    return {n: w for n, w in weights.items() if n != name}


def changed(change):
    vae = VAE(Encoder(), Decoder())
    change(vae)
    return content_of(vae)


def huge(weights: dict) -> dict:
    """A small file whose shapes imply a width of 2^17, and so a model of 206 GB."""
    first = "encoder.transformer.layers.0.linear1.weight"
    return {**weights, first: torch.zeros(1, 2**17)}


REFUSED = {
    "no 'encoder.atom_type_embedder.weight'": lambda v: content_of(v, state_dict={}),
    "encoder.nhead": lambda v: content_of(v, hyper_parameters={}),
    "decoder.nhead": lambda v: content_of(v, hyper_parameters={"encoder": v.encoder}),
    "decoder.lattice_head.weight": lambda v: content_of(
        v, state_dict=without(v.state_dict(), "decoder.lattice_head.weight")
    ),
    "extra": lambda v: content_of(v, state_dict={**v.state_dict(), "extra": torch.ones(1)}),
    "size mismatch": lambda v: content_of(v, state_dict=huge(v.state_dict())),
    "index embedding GlobalNumAtomsEmbedding": lambda v: content_of(
        VAE(Encoder(index_embedding=GlobalNumAtomsEmbedding()), Decoder())
    ),
    "max_len 100": lambda v: content_of(
        VAE(Encoder(index_embedding=SinusoidalPositionalEmbedding(100)), Decoder())
    ),
    "activation SiLU": lambda v: changed(
        lambda v: setattr(v.decoder.transformer.layers[0], "activation", nn.SiLU())
    ),
    "LayerNorms with eps 0.1": lambda v: changed(
        lambda v: setattr(v.encoder.transformer.norm, "eps", 0.1)
    ),
    "multiple of nhead": lambda v: changed(
        lambda v: setattr(v.encoder.transformer.layers[0].self_attn, "num_heads", 5)
    ),
    "can be imported": lambda v: changed(
        lambda v: setattr(v.encoder.transformer.layers[0].self_attn, "num_heads", 0)
    ),
}


@pytest.mark.parametrize(("reason", "make"), REFUSED.items(), ids=REFUSED)
def test_unsupported_networks_are_rejected_with_the_reason(reason, make, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        import_from(make(VAE(Encoder(), Decoder())), tmp_path)


def test_a_cycle_in_the_record(tmp_path):
    vae = VAE(Encoder(), Decoder())
    content = content_of(vae)
    vae.encoder.__dict__["module"] = vae.encoder
    assert_same(vae, import_from(content, tmp_path))


def zipped(content: bytes, path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
    return path


def test_a_compressed_archive_is_rejected_without_reading_it(tmp_path):
    path = zipped(pickle.dumps(bytes(10**8), 4), tmp_path / "bomb.ckpt", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is not a checkpoint: it is compressed"):
        read_foreign_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries: 16 GB of pointers
        b"\x80\x05\x96" + (2**35).to_bytes(8, "little") + b".",  # a bytearray of 32 GB
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # an integer of 2 GB
    ],
    ids=["memo", "bytearray", "integer"],
)
def test_false_lengths_take_no_memory(content, tmp_path):
    with pytest.raises(CheckpointError, match=r"long\.ckpt is damaged"):
        read_foreign_checkpoint(zipped(content, tmp_path / "long.ckpt"))


def test_one_storage_is_read_once(tmp_path):
    """Many tensors that share a storage must not multiply the memory for a small file."""
    base = torch.zeros(1000)
    buffer = io.BytesIO()
    torch.save({"state_dict": {str(i): base[i:] for i in range(900)}}, buffer)
    path = tmp_path / "views.ckpt"
    path.write_bytes(buffer.getvalue())
    weights = read_foreign_checkpoint(path)["state_dict"]
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == 1
    assert weights["899"].shape == (101,)
