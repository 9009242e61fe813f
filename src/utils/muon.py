"""The Muon optimizer."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Jordan et al. 2024: of the odd polynomial a x + b x^3 + c x^5, whose slope at zero is steep.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Matrices with the same singular vectors and singular values nearer to one.

    The Newton-Schulz iteration of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon):
    each step takes x to p x with p = a + b x x^T + c (x x^T)^2, which multiplies small singular
    values by 3.4 and brings large ones to between 0.7 and 1.2. Since p commutes with x x^T, all p
    are found from the first x x^T alone, and x itself, mostly the larger, is multiplied but once.

    Args:
        matrices: (K, M, N).
        steps: of the iteration.

    Returns:
        (K, M, N); zero where a matrix is zero.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT, steps).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    gram = x @ x.mT
    one = torch.eye(len(gram[0]), device=x.device, dtype=x.dtype)
    product = one.expand_as(gram)
    for _ in range(steps):
        p = torch.baddbmm(a * one + b * gram, gram, gram, alpha=c)
        gram = p @ gram @ p
        product = p @ product
    return product @ x


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for matrices between hidden layers (Jordan et al. 2024), AdamW for the rest.

    A step of a matrix is its momentum with all singular values made about one, so that no
    direction is left behind. It is scaled to the size of AdamW's steps (Liu et al. 2025,
    arXiv:2502.16982), so one learning rate and one weight decay serve both.

    In place of `torch.optim.Muon`, which takes matrices alone, needs torch 2.9, and computes in
    bfloat16, which is slower than float32 on a CPU without units for it.

    Args:
        params: named parameters of a module.
        lr: learning rate.
        matrices: a regular expression that is found in the names of the parameters which take
            orthogonal steps if they are matrices. By default those of the Transformers' layers;
            embeddings, heads and the maps to and from the latent are not meant for them.
        momentum: decay of the mean gradient of the matrices.
        betas: decay of the moments of the rest.
        eps: added to the root of the second moment of the rest.
        weight_decay: decoupled, of all.
        ns_steps: of the iteration that makes a step orthogonal.

    Raises:
        ValueError: if no matrix has such a name, or for a setting out of its range.
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
            raise ValueError(
                f"lr={lr}, weight_decay={weight_decay} and eps={eps} are not negative, "
                f"ns_steps={ns_steps} is at least 1"
            )
        if not all(0 <= decay < 1 for decay in (momentum, *betas)):
            raise ValueError(f"momentum={momentum} and betas={betas} are in [0, 1)")
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
            raise ValueError(
                f"no matrix has a name in which {matrices!r} is found: give another, or take AdamW "
                "(vae_module/optimizer=adamw), which a strategy that shards parameters needs, too"
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
            for update, some in (self._muon, matrices), (self._adam, others):
                if some:
                    torch._foreach_mul_(some, 1 - group["lr"] * group["weight_decay"])
                    update(some, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        momenta = self._state(params, "momentum")
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
        for shape in {p.shape for p in params}:
            # those of one shape together, since one alone does not fill a GPU
            same = [k for k, p in enumerate(params) if p.shape == shape]
            found = orthogonalize(torch.stack([ahead[k] for k in same]), group["ns_steps"])
            factor = -group["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_add_([params[k] for k in same], list(found.unbind()), alpha=factor)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        first, second = self._state(params, "first_moment"), self._state(params, "second_moment")
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        # moments that began at zero are too small by these factors
        factor1, factor2 = (1 - beta ** group["steps"] for beta in (beta1, beta2))
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, factor2**0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, first, roots, value=-group["lr"] / factor1)

    def _state(self, params: list[Tensor], name: str) -> list[Tensor]:
        """Of each parameter, zeros at first."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]
