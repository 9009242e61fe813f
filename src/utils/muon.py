"""The Muon optimizer for weight matrices, combined with AdamW for all other parameters."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.utils.errors import UserError
from src.utils.precision import native_precision

# coefficients of the polynomial a x + b x^3 + c x^5, which is steep at zero (Jordan et al. 2024)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# On a CPU that multiplies bfloat16 natively, smaller matrices would gain nothing from it.
SMALLEST_IN_BFLOAT16 = 64


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of matrices closer to one, keeping the singular vectors.

    This is the Newton-Schulz iteration of Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon): each step maps x to p x with
    p = a + b x x^T + c (x x^T)^2, which multiplies small singular values by 3.4 and brings large
    ones to between 0.7 and 1.2. Since p commutes with x x^T, the product of all p follows from the
    initial x x^T, and the usually larger x is multiplied only once, at the end.

    Args:
        matrices: (K, M, N).
        steps: number of iterations, at least 1.

    Returns:
        (K, M, N), of the same data type; zero matrices stay zero.
    """
    return orthogonalize_all([matrices], steps, matrices.dtype)[0]


def orthogonalize_all(matrices: Sequence[Tensor], steps: int, dtype: torch.dtype) -> list[Tensor]:
    """`orthogonalize` for matrices of several shapes.

    The products x x^T of all matrices whose smaller sides are equal are iterated in one batch.

    Args:
        matrices: (K, M, N) each, where K, M and N may differ.
        steps: number of iterations, at least 1.
        dtype: data type of the products.

    Returns:
        (K, M, N) each, of type `dtype`.
    """
    wide = [m.mT if m.shape[1] > m.shape[2] else m for m in matrices]
    norms = [m.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12) for m in wide]
    unit = [(m / norm).to(dtype) for m, norm in zip(wide, norms, strict=True)]
    results = list(unit)
    for side in {x.shape[1] for x in unit}:
        same = [k for k, x in enumerate(unit) if x.shape[1] == side]
        grams = torch.cat([unit[k] @ unit[k].mT for k in same])
        factors = _product_of_polynomials(grams, steps).split([len(unit[k]) for k in same])
        for k, factor in zip(same, factors, strict=True):
            results[k] = factor @ unit[k]
    return [x.mT if m.shape[1] > m.shape[2] else x for x, m in zip(results, matrices, strict=True)]


def _product_of_polynomials(gram: Tensor, steps: int) -> Tensor:
    """The product of all p of `orthogonalize`, from the initial x x^T: (K, M, M) to (K, M, M)."""
    a, b, c = COEFFICIENTS
    constant = a * torch.eye(len(gram[0]), device=gram.device, dtype=gram.dtype)

    def polynomial(gram: Tensor) -> Tensor:
        return torch.baddbmm(constant + b * gram, gram, gram, alpha=c)

    p = product = polynomial(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        product = p @ product
    return product


class Muon(torch.optim.Optimizer):
    """Muon for hidden weight matrices (Jordan et al. 2024), AdamW for all other parameters.

    The update of a matrix is its momentum with all singular values brought close to one, so that
    all directions are updated equally. The updates are scaled to the size of AdamW's (Liu et al.
    2025, arXiv:2502.16982), so that the same learning rate and weight decay apply to both.

    `torch.optim.Muon` is not used because it only accepts matrices, needs torch 2.9, and computes
    in bfloat16, which is slower than float32 on CPUs without bfloat16 units.

    Args:
        params: named parameters of a module.
        lr: learning rate.
        matrices: regular expression to search for in the parameter names: matching parameters are
            updated by Muon if they are matrices. The default selects the Transformer layers.
            Embeddings, output heads and the projections to and from the latent should use AdamW.
        momentum: decay rate of the momentum, for Muon.
        betas: decay rates of the two moments, for AdamW.
        eps: added to the square root of the second moment, for AdamW.
        weight_decay: decoupled weight decay, for all parameters.
        ns_steps: number of Newton-Schulz iterations, for Muon.

    Raises:
        UserError: if no matrix has a matching name, or a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float = 5e-3,
        matrices: str = r"transformer\.layers",
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 3,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and eps >= 0 and ns_steps >= 1):
            raise UserError(
                f"lr={lr}, weight_decay={weight_decay} and eps={eps} must not be negative, and "
                f"ns_steps={ns_steps} must be at least 1"
            )
        if not all(0 <= decay < 1 for decay in (momentum, *betas)):
            raise UserError(f"momentum={momentum} and betas={betas} must be in [0, 1)")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "steps": 0,
        }
        super().__init__(params, defaults)
        self._matrices = {
            param
            for group in self.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
            if param.ndim == 2 and re.search(matrices, name)
        }
        if not self._matrices:
            raise UserError(
                f"no parameter that is a matrix has a name that matches {matrices!r}: change "
                "`matrices`, or use AdamW (vae_module/optimizer=adamw). Strategies that shard "
                "parameters also need AdamW"
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in params if p in self._matrices]
            others = [p for p in params if p not in self._matrices]
            for update, subset in (self._muon, matrices), (self._adam, others):
                if subset:
                    torch._foreach_mul_(subset, 1 - group["lr"] * group["weight_decay"])
                    update(subset, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        momenta = self._state(params, "momentum")
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        # all matrices of one shape at once, because a single one does not fill a GPU
        by_shape: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for k, p in enumerate(params):
            by_shape.setdefault((p.shape, _dtype_of_products(p)), []).append(k)
        for dtype in {dtype for _, dtype in by_shape}:
            groups = [ks for (_, needed), ks in by_shape.items() if needed == dtype]
            stacks = [torch.stack([nesterov[k] for k in ks]) for ks in groups]
            updates = orthogonalize_all(stacks, group["ns_steps"], dtype)
            for ks, update in zip(groups, updates, strict=True):
                factor = -group["lr"] * 0.2 * max(update.shape[1:]) ** 0.5
                torch._foreach_add_([params[k] for k in ks], list(update.unbind()), alpha=factor)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        first, second = self._state(params, "first_moment"), self._state(params, "second_moment")
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        # bias correction, because the moments start at zero
        factor1, factor2 = (1 - beta ** group["steps"] for beta in (beta1, beta2))
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, factor2**0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, first, roots, value=-group["lr"] / factor1)

    def _state(self, params: list[Tensor], name: str) -> list[Tensor]:
        """The named state tensor of each parameter, initialized to zeros."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]


def _dtype_of_products(matrix: Tensor) -> torch.dtype:
    """The data type that the update of a matrix is computed in: float32 on a GPU."""
    native = matrix.device.type == "cpu" and native_precision("cpu") == "bf16-mixed"
    small = min(matrix.shape) < SMALLEST_IN_BFLOAT16
    return matrix.dtype if small or not native else torch.bfloat16
