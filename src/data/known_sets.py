"""The known data sets: where they are published, and the checksums of their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/"
_DIFFCSP = (
    "https://raw.githubusercontent.com/jiaor17/DiffCSP/7121d159826efa2ba9500bf299250d96da37f146/"
)
_MATTERGEN = (
    "https://media.githubusercontent.com/media/microsoft/mattergen/"
    "ac9ddd406171138c3f037d06b9b53fedbbb1c536/"
)


@dataclass(frozen=True, slots=True)
class Checksum:
    """Checksum of a published file: either its git blob hash or its SHA-256.

    Args:
        git_blob_sha1: SHA-1 of `blob SIZE`, a NUL byte and the content, as from `git hash-object`.
        sha256: SHA-256 of the content.
        size: size in bytes, if published.
    """

    git_blob_sha1: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A published data set.

    Args:
        base_url: address of the folder with its files, pinned to a commit, with a trailing slash.
        files: the files and their checksums: `{train,val,test}.csv`, or one `.zip` with such files.
        license: license of the data.
        cite: papers to cite.
        crystals: published number of crystals in each split; some splits may be missing here.
    """

    base_url: str
    files: Mapping[str, Checksum]
    license: str
    cite: str
    crystals: Mapping[str, int] = field(default_factory=dict)


def _csv_files(train: str, val: str, test: str) -> dict[str, Checksum]:
    hashes = {"train.csv": train, "val.csv": val, "test.csv": test}
    return {name: Checksum(git_blob_sha1=value) for name, value in hashes.items()}


KNOWN_SETS = {
    "mp_20": KnownSet(
        _CDVAE + "data/mp_20/",
        _csv_files(
            train="b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
            val="7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
            test="5dc643041df53f5ce4970a79930ad262b4f07acd",
        ),
        license="CC BY 4.0 (Materials Project)",
        cite="Jain et al. 2013; Xie et al. 2022 (CDVAE)",
        crystals={"train": 27136, "val": 9047, "test": 9046},
    ),
    "perov_5": KnownSet(
        _CDVAE + "data/perov_5/",
        _csv_files(
            train="0769074b5d51d293b765c4371b8f55c468c9c9f2",
            val="4a2c8dde98347dd0e01fa83dcf3982c2abe98f9f",
            test="d3c5d5af4b27a2a139149f2bb73c8a3dba9d8ac1",
        ),
        license="see data/perov_5/README.md of github.com/txie-93/cdvae",
        cite="Castelli et al. 2012; Xie et al. 2022 (CDVAE)",
        crystals={"train": 11356, "val": 3787, "test": 3785},
    ),
    "carbon_24": KnownSet(
        _CDVAE + "data/carbon_24/",
        _csv_files(
            train="5e7ae970fbad8ddc46b6963e8cd6e425f11783a6",
            val="b3e29b927883642426ca1d9632d00359b412742b",
            test="9beca843fde489de1fe288b32f9e3ff710d42803",
        ),
        license="see data/carbon_24/README.md of github.com/txie-93/cdvae",
        cite="Pickard 2020; Xie et al. 2022 (CDVAE)",
        crystals={"train": 6091, "val": 2032, "test": 2030},
    ),
    "mpts_52": KnownSet(
        _DIFFCSP + "data/mpts_52/",
        _csv_files(
            train="28c53b0a0fd3f32fb8078aca8e5b484e372790c6",
            val="a377ba0ca7bee37ee69d9f50f8362eaa35d9f690",
            test="2e8af159618f63be346b6527f155514323964423",
        ),
        license="CC BY 4.0 (Materials Project)",
        cite="Baird et al. 2022 (mp-time-split); Jiao et al. 2023 (DiffCSP)",
        crystals={"val": 5000, "test": 8096},
    ),
    # has train and val; there is no published test split
    "alex_mp_20": KnownSet(
        _MATTERGEN + "data-release/alex-mp/",
        {
            "alex_mp_20.zip": Checksum(
                sha256="6688e652e45fac4ac8b016dbc4a3280afde9ba687bdacfd8c676775ed19b6228",
                size=186506244,
            )
        },
        license="CC BY 4.0",
        cite="Zeni et al. 2025 (MatterGen); Schmidt et al. 2022 (Alexandria)",
    ),
}
