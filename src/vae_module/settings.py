"""Check the settings of a VAE that do not depend on its networks."""

from collections.abc import Mapping

from src.utils.errors import UserError

LOSS_WEIGHTS = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 2.0, "kl": 1e-4}


def complete_loss_weights(given: Mapping[str, float] | None) -> dict[str, float]:
    """Fill in the default weight of each loss term that is not given.

    Raises:
        UserError: for an unknown term.
    """
    if unknown := set(given or {}) - set(LOSS_WEIGHTS):
        raise UserError(f"loss_weights has {sorted(unknown)}; terms are {list(LOSS_WEIGHTS)}")
    return {**LOSS_WEIGHTS, **(given or {})}


def check_settings(noise_share: float, **deltas: float | None) -> None:
    """Reject settings with which training makes no sense.

    Args:
        noise_share: fraction of training crystals with noise, whose geometry is not learned.
        deltas: deltas of the losses, by name.

    Raises:
        UserError: for such a setting; the message names it.
    """
    for name, delta in deltas.items():
        if delta is not None and not delta > 0:
            raise UserError(f"{name}={delta} must be above zero, or null for squared errors")
    if not 0 <= noise_share < 1:
        raise UserError(
            f"noise_share={noise_share} must be in [0, 1): geometry is learned only from crystals "
            "without noise"
        )
