"""Check the settings of a VAE that do not depend on its networks."""

from collections.abc import Mapping

from src.utils.errors import UserError

LOSS_WEIGHTS = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 2.0, "kl": 1e-4}


def complete_loss_weights(given: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of every term: the given one, or its default.

    Raises:
        UserError: if there is no such term.
    """
    if unknown := set(given or {}) - set(LOSS_WEIGHTS):
        raise UserError(f"loss_weights has {sorted(unknown)}; it knows {list(LOSS_WEIGHTS)}")
    return {**LOSS_WEIGHTS, **(given or {})}


def check_settings(noise_share: float, **deltas: float | None) -> None:
    """Refuse settings with which training makes no sense.

    Args:
        noise_share: share of training crystals whose geometry is not learned.
        deltas: of losses, by name.

    Raises:
        UserError: it names the setting.
    """
    for name, delta in deltas.items():
        if delta is not None and not delta > 0:
            raise UserError(f"{name}={delta} is not above zero; null: squared errors")
    if not 0 <= noise_share < 1:
        raise UserError(
            f"noise_share={noise_share} is not in [0, 1): without exact latents, "
            "geometry is not learned"
        )
