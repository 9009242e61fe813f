"""The known data sets: where they are published, and by what one tells that a file is theirs."""

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
    """What the content of a published file is known by.

    Args:
        git_blob_sha1: SHA-1 of `blob SIZE`, a zero byte and the content, as `git hash-object` has
            it; None where the other is known.
        sha256: of the content.
        size: bytes, where known.
    """

    git_blob_sha1: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A published data set.

    Args:
        base_url: the address of its files, at a commit, with a slash at its end.
        files: what each is known by. Either `{train,val,test}.csv`, or one `.zip` with such files.
        licence, cite: for whoever uses it.
        crystals: by split, as published; a split that is not here has an unknown number.
    """

    base_url: str
    files: Mapping[str, Checksum]
    licence: str
    cite: str
    crystals: Mapping[str, int] = field(default_factory=dict)


def _tables(train: str, val: str, test: str) -> dict[str, Checksum]:
    sums = {"train.csv": train, "val.csv": val, "test.csv": test}
    return {name: Checksum(git_blob_sha1=value) for name, value in sums.items()}


KNOWN_SETS = {
    "mp_20": KnownSet(
        _CDVAE + "data/mp_20/",
        _tables(
            train="b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
            val="7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
            test="5dc643041df53f5ce4970a79930ad262b4f07acd",
        ),
        licence="CC BY 4.0 (Materials Project)",
        cite="Jain et al. 2013; Xie et al. 2022 (CDVAE)",
        crystals={"train": 27136, "val": 9047, "test": 9046},
    ),
    "perov_5": KnownSet(
        _CDVAE + "data/perov_5/",
        _tables(
            train="0769074b5d51d293b765c4371b8f55c468c9c9f2",
            val="4a2c8dde98347dd0e01fa83dcf3982c2abe98f9f",
            test="d3c5d5af4b27a2a139149f2bb73c8a3dba9d8ac1",
        ),
        licence="see data/perov_5/README.md of github.com/txie-93/cdvae",
        cite="Castelli et al. 2012; Xie et al. 2022 (CDVAE)",
        crystals={"train": 11356, "val": 3787, "test": 3785},
    ),
    "carbon_24": KnownSet(
        _CDVAE + "data/carbon_24/",
        _tables(
            train="5e7ae970fbad8ddc46b6963e8cd6e425f11783a6",
            val="b3e29b927883642426ca1d9632d00359b412742b",
            test="9beca843fde489de1fe288b32f9e3ff710d42803",
        ),
        licence="see data/carbon_24/README.md of github.com/txie-93/cdvae",
        cite="Pickard 2020; Xie et al. 2022 (CDVAE)",
        crystals={"train": 6091, "val": 2032, "test": 2030},
    ),
    "mpts_52": KnownSet(
        _DIFFCSP + "data/mpts_52/",
        _tables(
            train="28c53b0a0fd3f32fb8078aca8e5b484e372790c6",
            val="a377ba0ca7bee37ee69d9f50f8362eaa35d9f690",
            test="2e8af159618f63be346b6527f155514323964423",
        ),
        licence="CC BY 4.0 (Materials Project)",
        cite="Baird et al. 2022 (mp-time-split); Jiao et al. 2023 (DiffCSP)",
        crystals={"val": 5000, "test": 8096},
    ),
    # train and val; its authors publish no test split
    "alex_mp_20": KnownSet(
        _MATTERGEN + "data-release/alex-mp/",
        {
            "alex_mp_20.zip": Checksum(
                sha256="6688e652e45fac4ac8b016dbc4a3280afde9ba687bdacfd8c676775ed19b6228",
                size=186506244,
            )
        },
        licence="CC BY 4.0",
        cite="Zeni et al. 2025 (MatterGen); Schmidt et al. 2022 (Alexandria)",
    ),
}
