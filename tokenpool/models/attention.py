"""The significance score, and one attention forward that can report it.

A token's score is the attention it receives from all others (PoWER-BERT; P). timm's fused attention never forms the
attention matrix, so a block that pools by score runs `run_block`: timm's own modules in timm's own order, with
`attend_and_score` in the middle, which never holds more of the matrix than fits a cache. A test holds it equal to
timm's block for every block type below; supported.py refuses all others. Blocks that need no score keep fused
attention: most are timm's own forward; those that pool between attention and MLP, or need their keys, run here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, DiffAttention, apply_rot_embed_cat
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from tokenpool.core import kernels

TWO_HALVES = (timm_vit.Block, timm_vit.ResPostBlock, timm_vit.ParallelThingsBlock,
              timm_eva.EvaBlock, timm_eva.EvaBlockPostNorm)
ONE_PIECE = (timm_vit.ParallelScalingBlock, timm_vit.DiffParallelScalingBlock)


class Score(NamedTuple):
    description: str
    per_head: Callable[[Tensor], Tensor]    # attention (batch, heads, queries, keys) -> (batch, heads, keys)
    queries: int | None = None              # how many of the queries it uses, from the first on; None: all
    with_self: bool = True                  # whether a token's attention to itself counts
    values: bool = False                    # whether it is multiplied by the length of a token's values


SCORES = {
    "received": Score("attention received from all other tokens, averaged over heads (PoWER-BERT's code; P)",
                      lambda a: a.sum(2) - a.diagonal(dim1=2, dim2=3), with_self=False),
    "received_with_self": Score("the same, with the attention a token pays to itself (TokenReduction's code; P)",
                                lambda a: a.sum(2)),
    "class_token": Score("attention received from the class token (EViT; P)", lambda a: a[:, :, 0], queries=1),
    "class_token_values": Score("the same, times the length of a token's value, all heads together (ATS; P)",
                                lambda a: a[:, :, 0], queries=1, values=True),
}


def significance(attention: Tensor, prefix: int = 1, kind: str = "received", values: Tensor | None = None) -> Tensor:
    """Score of every patch token.

    Args:
        attention: (batch, heads, tokens, tokens), rows are queries and sum to one.
        prefix: class and register tokens in front; they count as queries and get no score.
        kind: a name of `SCORES`. The paper's is "received" (S); whether it leaves out a token's attention to itself
            is known of PoWER-BERT's code only (P).

    >>> a = torch.tensor([[[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.0, 1.0, 0.0]]]])
    >>> significance(a)          # 0.3 + 1.0 for the first patch, 0.2 + 0.3 for the second
    tensor([[1.3000, 0.5000]])
    """
    return _over_heads(SCORES[kind].per_head(attention), prefix, kind, values)


def _over_heads(per_head: Tensor, prefix: int, kind: str, values: Tensor | None) -> Tensor:
    """(B, heads, N) -> (B, N - prefix)."""
    score = per_head.mean(1)[:, prefix:]
    if SCORES[kind].values:
        if values is None:
            raise ValueError(f"The score {kind!r} needs values=, the attention's values. "
                             "Use 'class_token' where there are none.")
        score = score * values[:, :, prefix:].float().square().sum((1, 3)).sqrt()
    return score


class Wanted(NamedTuple):
    """What to report of a block's attention."""

    kind: str | None                # a name of `SCORES`; None: no score, and attention stays fused where possible
    prefix: int
    kernel: str = "auto"            # see tokenpool.core.kernels
    keys: bool = False              # report keys and values too: they keep their memory while the MLP runs

    def of(self, attention: Tensor, values: Tensor) -> Tensor | None:
        """The score, in float32 and without gradient."""
        return None if self.kind is None else significance(attention.detach().float(), self.prefix, self.kind,
                                                           values.detach())


class Seen(NamedTuple):
    """What a block reports of its attention."""

    attention: Tensor | None        # (B, heads, N, N); None where only parts were wanted
    score: Tensor | None            # (B, N - prefix), where it was wanted
    keys: Tensor | None             # (B, key heads, N, head_dim), normalised where the model does, before rotation
    values: Tensor | None           # (B, key heads, N, head_dim)


def run_block(block: Any, x: Tensor, rope: Tensor | None, bias: Tensor | None, wanted: Wanted | None = None
              ) -> tuple[Tensor, Seen]:
    """A whole block: tokens (B, N, C) -> tokens after it, and what it reports of its attention.

    Args:
        rope: rotary embedding, or None. bias: (B, 1, 1, N) added to the logits, or None.
        wanted: None: the whole attention matrix, keys and values.
    """
    if isinstance(block, ONE_PIECE):
        return _parallel_scaling(block, x, bias, wanted)
    x, seen = attention_half(block, x, rope, bias, wanted=wanted)
    return mlp_half(block, x), seen


def attention_half(block: Any, x: Tensor, rope: Tensor | None, bias: Tensor | None, visible: Tensor | None = None,
                   wanted: Wanted | None = None) -> tuple[Tensor, Seen]:
    """The first half of a block, x + attention(x), and what it reports; arguments as for `run_block`.

    Args:
        visible: (B, N) 0 or 1, with gradient: only the token itself attends to a token that is not visible.
    """
    if isinstance(block, timm_vit.ParallelThingsBlock):
        branches: Any = block.attns
        parts = [_attend(a.attn, a.norm(x), rope, bias, visible, wanted) for a in branches]
        y = torch.stack([a.drop_path(a.ls(part[0])) for a, part in zip(branches, parts, strict=True)]).sum(0)
        attention, score, keys, values = zip(*(part[1] for part in parts), strict=True)
        return x + y, Seen(_mean(attention), _mean(score), *(None if t[0] is None else torch.cat(t, 1)
                                                             for t in (keys, values)))
    if isinstance(block, (timm_vit.ResPostBlock, timm_eva.EvaBlockPostNorm)):
        y, seen = _attend(block.attn, x, rope, bias, visible, wanted)
        return x + block.drop_path1(block.norm1(y)), seen
    y, seen = _attend(block.attn, block.norm1(x), rope, bias, visible, wanted)
    if isinstance(block, timm_eva.EvaBlock):
        y = y if block.gamma_1 is None else block.gamma_1 * y
    else:
        y = block.ls1(y)
    return x + block.drop_path1(y), seen


def _mean(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there).mean(0) if there else None


def mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half of a block: x + MLP(x)."""
    if isinstance(block, timm_vit.ParallelThingsBlock):
        return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(0)
    if isinstance(block, (timm_vit.ResPostBlock, timm_eva.EvaBlockPostNorm)):
        return x + block.drop_path2(block.norm2(block.mlp(x)))
    y = block.mlp(block.norm2(x))
    if isinstance(block, timm_eva.EvaBlock):
        y = y if block.gamma_2 is None else block.gamma_2 * y
    else:
        y = block.ls2(y)
    return x + block.drop_path2(y)


# ---- normalised keys and queries (paper, eq. (6) and Fig. 10) ----

class UnitNorm(nn.Module):
    """Every head's vectors scaled to one length: (B, heads, N, head_dim) -> x / |x| * factor * alpha**power.

    Args:
        log_alpha: (heads,), a parameter where it is learned; None: alpha = 1.
    """

    def __init__(self, log_alpha: nn.Parameter | None = None, power: int = 0, factor: float = 1.0) -> None:
        super().__init__()
        self.log_alpha, self.power, self.factor = log_alpha, power, factor

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize(x.float(), dim=-1) * self.factor
        if self.log_alpha is not None:
            unit = unit * (self.power * self.log_alpha).exp()[:, None, None]
        return unit.type_as(x)


def normalise_qk(vit: Any, reading: str = "r1", learned: bool = True) -> Any:
    """Give every block normalised keys and queries, through timm's own q_norm and k_norm. Returns `vit`, changed.

    Args:
        reading: the exact form of eq. (6) is not known (?). "r1": logits = alpha cos(q, k). "r2": keys and queries
            rescaled to length alpha, logits = alpha^2 cos(q, k) / sqrt(head_dim). Both I.
        learned: alpha per layer and head, kept as its logarithm, starting at sqrt(head_dim), where both readings
            agree with the usual scale (I). False: alpha = 1.

    Raises:
        ValueError: an attention without timm's q_norm and k_norm, or with norms of its own.
    """
    if reading not in ("r1", "r2"):
        raise ValueError(f"reading={reading!r} is not one of the two readings of eq. (6). Use 'r1' or 'r2'.")
    for block in vit.blocks:
        for attn in attentions(block):
            if type(attn) is not Attention or not isinstance(attn.q_norm, nn.Identity):
                raise ValueError(f"Keys and queries of {type(attn).__name__} cannot be normalised here: it is not "
                                 "timm's plain Attention, or normalises them already. Use a DeiT or ViT.")
            alpha = nn.Parameter(torch.full((attn.num_heads,), math.log(attn.head_dim) / 2)) if learned else None
            # All of alpha sits on the query. timm divides the logits by sqrt(head_dim) afterwards; R1 has no such root.
            attn.q_norm = UnitNorm(alpha, 1, math.sqrt(attn.head_dim)) if reading == "r1" else UnitNorm(alpha, 2)
            attn.k_norm = UnitNorm()
    return vit


def attentions(block: Any) -> list[Any]:
    """The attention modules of a block; a block in one piece is its own."""
    if isinstance(block, timm_vit.ParallelThingsBlock):
        return [a.attn for a in block.attns]
    return [block] if isinstance(block, ONE_PIECE) else [block.attn]


# ---- timm's attention modules, with the matrix in the open ----

def _attend(attn: Any, x: Tensor, rope: Tensor | None, bias: Tensor | None, visible: Tensor | None = None,
            wanted: Wanted | None = None) -> tuple[Tensor, Seen]:
    N = x.shape[1]
    if isinstance(attn, DiffAttention):
        q, k, v = attn.qkv(x).chunk(3, dim=2)
        y, seen = _differential(attn, q, k, v, bias, wanted)
        return attn.proj_drop(attn.proj(attn.norm(y))), seen
    q, k, v = _queries_keys_values(attn, x)
    q, k = attn.q_norm(q), attn.k_norm(k)
    keys, values = k, v
    if rope is not None:
        p, half = attn.num_prefix_tokens, attn.rotate_half
        q, k = (torch.cat([t[:, :, :p], apply_rot_embed_cat(t[:, :, p:], rope, half=half)], 2).type_as(v)
                for t in (q, k))
    if getattr(attn, "num_kv_groups", 1) > 1:
        k, v = (t.repeat_interleave(attn.num_kv_groups, dim=1) for t in (k, v))
    if wanted is not None:
        y, score = attend_and_score(q, k, v, attn.scale, bias, wanted, values, attn.attn_drop)
        return _project(attn, x, y), Seen(None, score, *((keys, values) if wanted.keys else (None, None)))
    attention = _softmax(q, k, attn.scale, bias)
    if visible is not None:
        # Renormalising afterwards equals masking the logits, and gives a gradient to the zeros of `visible`.
        itself = torch.eye(N, device=x.device, dtype=attention.dtype)
        attention = attention * (visible[:, None, None, :] * (1 - itself) + itself).to(attention.dtype)
        attention = attention / attention.sum(-1, keepdim=True).clamp(min=1e-6)
    return _project(attn, x, attn.attn_drop(attention) @ v), Seen(attention, None, keys, values)


def _project(attn: Any, x: Tensor, y: Tensor) -> Tensor:
    """What follows the weighted sum of values: (B, heads, N, head_dim) -> (B, N, C)."""
    y = attn.norm(y.transpose(1, 2).reshape(*x.shape[:2], -1))
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))


# ---- attention and its score, without the whole matrix ----

def attend_and_score(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, wanted: Wanted,
                     values: Tensor | None = None, drop: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """softmax(q k' * scale + bias) v, (B, heads, N, head_dim), and the score of its attention, (B, N - prefix).

    Three ways to the same numbers. Where the score needs the class token's attention only, its row is computed openly
    and all others stay fused. On a GPU, and with gradient, attention is fused, and the matrix is computed a second
    time, in pieces, for the score alone. Otherwise (inference on a CPU) it is computed once, in pieces, for both: that
    is cheaper than fused attention and a second pass.

    Args:
        q, k, v: (B, heads, N, head_dim). bias: (B, 1, 1, N) or None. values: v before it was repeated for groups of
            heads, where the score looks at it. drop: dropout of the attention, in training.
    """
    p = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0

    def fused(q: Tensor) -> Tensor:
        mask = None if bias is None else bias.to(q.dtype)
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, p, scale=scale)

    if wanted.kind is None:
        return fused(q), None
    score = SCORES[wanted.kind]
    if score.queries is not None:
        row = _softmax(q[:, :, :score.queries], k, scale, bias)
        y = torch.cat(((row if drop is None else drop(row)) @ v, fused(q[:, :, score.queries:])), 2)
        seen = score.per_head(row.detach().float())
    elif q.device.type == "cpu" and p == 0 and not (torch.is_grad_enabled() and q.requires_grad):
        y, seen = _in_pieces(q, k, v, scale, bias, score.per_head)
    else:
        y = fused(q)
        with torch.no_grad():
            received = getattr(kernels.pick(wanted.kernel, q.device), "received", None)
            if received is not None:
                seen = received(q, k, scale, bias, score.with_self)
            else:
                seen = _in_pieces(q, k, None, scale, bias, score.per_head)[1]
    return y, _over_heads(seen.detach(), wanted.prefix, wanted.kind, values if values is None else values.detach())


def _in_pieces(q: Tensor, k: Tensor, v: Tensor | None, scale: float, bias: Tensor | None,
               per_head: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor]:
    """Attention of some images, or some heads of one, at a time: the sum of values (B, heads, N, head_dim),
    where there are values, and what `per_head` says of the matrix. A graph computes all of it at once."""
    B, H, N, _ = q.shape
    if torch.compiler.is_compiling():
        a = _softmax(q, k, scale, bias)
        return None if v is None else a @ v, per_head(a.float())
    # tokens first in memory, as the projection that follows wants them
    y = None if v is None else v.new_empty(B, N, H, v.shape[-1]).transpose(1, 2)
    seen = q.new_empty(B, H, N, dtype=torch.float32)
    room = None                                              # the memory of every piece: it stays warm
    for images in kernels.pieces(B, H * N**2, q.device):
        for heads in kernels.pieces(H, N**2, q.device):
            part = (images, heads)
            left, right = q[part].flatten(0, 1), k[part].flatten(0, 1)
            room = q.new_empty(len(left), N, N) if room is None else room
            a = torch.baddbmm(room[:len(left)], left, right.mT, beta=0, alpha=scale, out=room[:len(left)])
            a = a.view(*q[part].shape[:2], N, N)
            if bias is not None:
                a += bias[images]
            torch.softmax(a, -1, out=a)
            if y is not None and v is not None:
                y[part] = a @ v[part]
            seen[part] = per_head(a.float())
    return y, seen


def _softmax(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    logits = (q * scale) @ k.mT
    return (logits if bias is None else logits + bias).softmax(-1).to(q.dtype)


def _queries_keys_values(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """(B, heads, N, head_dim) each, for fused and separate projections and EVA's bias without a key part."""
    def heads(t: Tensor, n: int) -> Tensor:
        return t.reshape(*t.shape[:2], n, -1).transpose(1, 2)

    if getattr(attn, "q_proj", None) is not None:
        kv_heads = getattr(attn, "num_kv_heads", attn.num_heads)
        return (heads(attn.q_proj(x), attn.num_heads), heads(attn.k_proj(x), kv_heads), heads(attn.v_proj(x), kv_heads))
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        qkv = attn.qkv(x) + bias if attn.qkv_bias_separate else nn.functional.linear(x, attn.qkv.weight, bias)
    else:
        qkv = attn.qkv(x)
    return tuple(heads(t, attn.num_heads) for t in qkv.chunk(3, dim=-1))


def _differential(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, wanted: Wanted | None
                  ) -> tuple[Tensor, Seen]:
    """Softmax minus lambda times a second softmax. The score is read off the first, which is a distribution (I)."""
    B, N, C = q.shape
    q, k = (t.reshape(B, N, 2 * attn.num_heads, attn.head_dim).transpose(1, 2) for t in (q, k))
    v = v.reshape(B, N, attn.num_heads, 2 * attn.head_dim).transpose(1, 2)
    k = attn.k_norm(k)
    both = _softmax(attn.q_norm(q), k, attn.scale, bias)
    first, second = attn.attn_drop(both).view(B, attn.num_heads, 2, N, N).unbind(2)
    # two products, as in timm's fused path
    y = first @ v - attn._compute_lambda().type_as(q) * (second @ v)
    y = attn.sub_norm(y) * (1 - attn.lambda_init)
    first = both.view(B, attn.num_heads, 2, N, N)[:, :, 0]                   # without dropout
    return y.transpose(1, 2).reshape(B, N, C), _seen_of(first, k, v, wanted)


def _seen_of(attention: Tensor, keys: Tensor, values: Tensor, wanted: Wanted | None) -> Seen:
    if wanted is None:
        return Seen(attention, None, keys, values)
    return Seen(None, wanted.of(attention, values), *((keys, values) if wanted.keys else (None, None)))


def _parallel_scaling(block: Any, x: Tensor, bias: Tensor | None, wanted: Wanted | None) -> tuple[Tensor, Seen]:
    """Blocks that compute attention and MLP side by side out of one projection."""
    B, N, C = x.shape
    mlp, q, k, v = torch.split(block.in_proj(block.in_norm(x)), block.in_split, dim=-1)
    if block.mlp_bias is not None:
        mlp = mlp + block.mlp_bias
    if isinstance(block, timm_vit.DiffParallelScalingBlock):
        y, seen = _differential(block, q, k, v, bias, wanted)
    else:
        q, k, v = (t.view(B, N, block.num_heads, block.head_dim) for t in (q, k, v))
        q, k, v = (t.transpose(1, 2) for t in (block.q_norm(q), block.k_norm(k), v))
        attention = _softmax(q, k, block.scale, bias)
        y = (block.attn_drop(attention) @ v).transpose(1, 2).reshape(B, N, C)
        seen = _seen_of(attention, k, v, wanted)
    mlp = block.mlp_drop(block.mlp_act(mlp))
    if getattr(block, "attn_out_proj", None) is not None:
        y = block.attn_out_proj(y) + block.mlp_out_proj(mlp)
    else:
        y = block.out_proj(torch.cat((y, mlp), dim=-1))
    return x + block.drop_path(block.ls(y)), seen
