"""Low-rank adaptation of the towers, with peft, on attention whose projections are apart.

open_clip's attention keeps the query, key and value projections in one matrix, and peft's adapter
for it can neither choose among them nor leave the frozen weights alone (it merges into them at
every forward). So the attention is first replaced by an equal one with four linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_vlm._checks import check_choice, check_count, check_number, check_type, wrong_type, wrong_value

TARGETS = {
    "query": "attn.q_proj",
    "key": "attn.k_proj",
    "value": "attn.v_proj",
    "output": "attn.out_proj",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


@dataclass(frozen=True, kw_only=True)
class LoRA:
    r"""Which layers of which towers get a low-rank update, and which of its factors train.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad A \in R^{r \times n},\ B \in R^{m \times r}

    A starts random and B at zero, so the adapted model starts equal to the original.

    Args:
        rank: r.
        alpha: α; None takes r, a factor of 1.
        targets: any of ``"query"``, ``"key"``, ``"value"``, ``"output"``, ``"mlp_in"``, ``"mlp_out"``.
        towers: any of ``"image"``, ``"text"``.
        factors: the factors that train, ``("A", "B")`` or ``("B",)`` (A stays at its random start).
        dropout: probability with which an input of A is dropped in training.
        seed: of the random A.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument has a wrong value; the message names it.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1.

    Deviations:
        With ``factors=("B",)`` only B trains, as asymmetric variants of the method do.

    >>> LoRA(rank=4, targets=("query", "value")).alpha is None
    True
    """

    rank: int = 8
    alpha: float | None = None
    targets: Sequence[str] = ("query", "value", "mlp_in", "mlp_out")
    towers: Sequence[str] = ("image", "text")
    factors: Sequence[str] = ("A", "B")
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        if self.alpha is not None:
            check_number("alpha", self.alpha, above=0)
        for name, known in (
            ("targets", tuple(TARGETS)),
            ("towers", ("image", "text")),
            ("factors", ("A", "B")),
        ):
            chosen = getattr(self, name)
            if isinstance(chosen, str) or not isinstance(chosen, Sequence):
                raise wrong_type(name, f"a tuple out of {known}", chosen)
            if not chosen:
                raise wrong_value(name, f"at least one of {known}", "none")
            for item in chosen:
                check_choice(name, item, known)
            object.__setattr__(self, name, tuple(chosen))  # a list from JSON compares equal again
        if "B" not in self.factors:
            raise wrong_value(
                "factors", "('A', 'B') or ('B',)", self.factors, "With B = 0 fixed, A has no effect."
            )
        check_number("dropout", self.dropout, at_least=0, below=1)
        check_count("seed", self.seed, at_least=0)
        for name in ("rank", "seed"):
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's whole numbers are no JSON

    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable constructor arguments."""
        return dict(vars(self))


class SeparateAttention(nn.Module):
    """Multi-head attention with its four projections in layers of their own.

    Takes over the weights of an `nn.MultiheadAttention` and computes the same function.

    Args:
        attention: the module to replace; self-attention with one width, ``batch_first=True``.

    Raises:
        ValueError: the module is of another kind.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        check_type("attention", attention, nn.MultiheadAttention)
        if attention.in_proj_weight is None or not attention.batch_first or attention.bias_k is not None:
            raise wrong_value("attention", "self-attention with one width and batch_first=True", attention)
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        width = attention.embed_dim
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = (
            (None, None, None) if attention.in_proj_bias is None else attention.in_proj_bias.detach().chunk(3)
        )
        layers = [_linear_from(weight, bias, width) for weight, bias in zip(weights, biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = layers
        # A plain Linear: peft does not adapt the class that torch uses here.
        out_bias = None if attention.out_proj.bias is None else attention.out_proj.bias.detach()
        self.out_proj = _linear_from(attention.out_proj.weight.detach(), out_bias, width)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the attended values (B, L, W) and None.

        Args:
            query: (B, L, W).
            key: (B, S, W).
            value: (B, S, W).
            need_weights: only False; kept because the caller passes it.
            attn_mask: additive (L, S) or (B·heads, L, S).
        """
        if need_weights:
            raise wrong_value("need_weights", "False", True)
        batch, length, width = query.shape

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (batch, self.num_heads))
        attended = F.scaled_dot_product_attention(
            heads(self.q_proj(query)),
            heads(self.k_proj(key)),
            heads(self.v_proj(value)),
            attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width)), None


def _linear_from(weight: Tensor, bias: Tensor | None, width: int) -> nn.Linear:
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
        layer = nn.Linear(width, width, bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def separate_attention(tower: nn.Module) -> int:
    """Replace every `nn.MultiheadAttention` inside ``tower`` in place; return how many there were."""
    count = 0
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                replacement = SeparateAttention(child).train(child.training)
                setattr(module, name, replacement)
                count += 1
    return count


def add_lora(tower: nn.Module, lora: LoRA) -> None:
    """Adapt a tower in place; afterwards only the chosen factors in it require a gradient.

    Args:
        tower: an image or text tower made of residual blocks with ``attn`` and ``mlp``.
        lora: what to adapt.

    Raises:
        ValueError: the tower holds no attention of the known kind (timm's and others' differ).
    """
    if any(isinstance(module, SeparateAttention) for module in tower.modules()):
        raise wrong_value(
            "trainable",
            "LoRA on a backbone that has none yet",
            "a tower that is adapted already",
            "Build a new backbone for each classifier.",
        )
    if separate_attention(tower) == 0:
        raise wrong_value(
            "trainable",
            "LoRA on a tower with torch's MultiheadAttention",
            f"a {type(tower).__name__} without one",
            "Leave this tower out with LoRA(towers=...), or train it in full.",
        )
    pattern = r".*\.(" + "|".join(TARGETS[target].replace(".", r"\.") for target in lora.targets) + ")"
    # Not at the top: importing peft takes as long as some runs here.
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=pattern,
        lora_dropout=lora.dropout,
    )
    # peft draws A from the global generator: its state is put back, and the seed is ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        inject_adapter_in_model(config, tower)
    thaw_lora(tower, lora)


def thaw_lora(tower: nn.Module, lora: LoRA) -> None:
    """Let the chosen factors in an adapted tower require a gradient, and nothing else in it."""
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(any(f"lora_{factor}." in name for factor in lora.factors))


def set_lora_mode(tower: nn.Module, training: bool) -> None:
    """Keep the frozen layers of an adapted tower in eval mode and let only its dropout train."""
    tower.eval()
    for name, module in tower.named_modules():
        if name.endswith("lora_dropout"):
            module.train(training)
