"""What is trained: the two rivals with weights, the search for K, normalised keys and queries."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.models.attention import normalise_qk
from tokenpool.models.baselines import ConvolutionViT, DynamicViT, PatchMergerViT, Predictor
from tokenpool.train.soft_masks import SoftMaskViT


def small_vit(depth=6, **options):
    torch.manual_seed(0)
    shape = dict(img_size=64, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=7)
    return timm.create_model("deit_tiny_patch16_224", **(shape | options)).eval()


def images(count=3):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def flops(model, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2 // len(x)


# ---- convolution ----

def test_the_convolution_starts_as_the_average_of_two_by_two():
    vit = small_vit()
    system = ConvolutionViT(vit, stages=[1, 3]).eval()
    x = vit._pos_embed(vit.patch_embed(images()))
    side = 8
    for index, block in enumerate(vit.blocks):                      # the oracle: torch's own average pooling
        x = block(x)
        if index in (1, 3):
            grid = x[:, 1:].transpose(1, 2).reshape(3, 32, side, side)
            side //= 2
            x = torch.cat((x[:, :1], F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)), 1)
    torch.testing.assert_close(system(images()), vit.forward_head(vit.norm(x)))
    assert system.schedule == (64, 16, 16, 4, 4, 4)


def test_the_convolutions_cost_is_torchs_count():
    system = ConvolutionViT(small_vit(), stages=[0, 2]).eval()
    assert tp.macs(system).total == flops(system, images(1))


def test_the_convolution_chooses_the_nearest_cost():
    vit = small_vit()
    plain = tp.macs(vit).total
    for saving in (0.3, 0.42, 0.6, 0.75):
        got = 1 - tp.macs(ConvolutionViT(vit, saving=saving)).total / plain
        others = [1 - tp.macs(ConvolutionViT(vit, stages=s)).total / plain
                  for s in ([0], [1], [2], [3], [4], [0, 1], [1, 2], [2, 4], [0, 4], [1, 3], [0, 1, 2])]
        assert abs(got - saving) <= min(abs(o - saving) for o in others) + 1e-9
    with pytest.raises(ValueError, match=r"saving=0\.99: the nearest that halving the grid can save is"):
        ConvolutionViT(vit, saving=0.99)
    with pytest.raises(ValueError, match="not rising block numbers from 0 to 4"):
        ConvolutionViT(vit, stages=[5])


# ---- DynamicViT ----

def test_masked_training_equals_dropping_at_test_time(monkeypatch):
    """The same tokens, once hidden by the mask and once really removed, give the same logits."""
    system = DynamicViT(small_vit(), keep=0.7).eval()

    def by_norm(self, x, keep):
        """Log-odds from a token alone, so that both ways see the same; far apart, so that chance has no say."""
        value = x[..., :8].sum(-1)
        return torch.stack((value, torch.zeros_like(value)), -1)

    monkeypatch.setattr(Predictor, "forward", by_norm)
    x = images()

    def hard(logits, hard):
        """The mask keeps exactly the K of highest value among those still there."""
        stage = calls["n"]
        calls["n"] += 1
        k = int(64 * 0.7 ** (stage + 1))
        value = logits[..., 0].masked_fill(calls["gone"], -1e9) if calls["gone"] is not None else logits[..., 0]
        stays = torch.zeros_like(value).scatter(1, value.topk(k, 1).indices, 1.0)
        calls["gone"] = stays == 0
        return torch.stack((stays, 1 - stays), -1)

    calls = {"n": 0, "gone": None}
    monkeypatch.setattr(F, "gumbel_softmax", hard)
    masked, terms = system.forward_with_terms(x)
    torch.testing.assert_close(masked, system(x), atol=2e-5, rtol=1e-4)
    shares = [int(64 * 0.7 ** s) / 64 for s in (1, 2, 3)]
    wanted = 2.0 * sum((share - 0.7 ** (s + 1)) ** 2 for s, share in enumerate(shares)) / 3
    assert float(terms["ratio"]) == pytest.approx(wanted, rel=1e-4)


def test_dynamic_vit_really_drops_tokens():
    system = DynamicViT(small_vit(), saving=0.5).eval()
    seen = []
    for block in system.vit.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1] - 1))
    system(images())
    assert seen == [64, *system.schedule[:-1]]
    assert seen[-1] < 40
    assert tp.macs(system).total == flops(system, images(1))
    assert 1 - tp.macs(system).total / tp.macs(system.vit).total == pytest.approx(0.5, abs=0.03)


def test_dynamic_vits_stages_are_the_originals():
    assert DynamicViT(small_vit(depth=12), keep=0.7).stages == (3, 6, 9)
    twelve = DynamicViT(timm.create_model("deit_small_patch16_224"), keep=0.7)
    assert twelve.schedule == (196, 196, 137, 137, 137, 96, 96, 96, 67, 67, 67, 67)
    assert tp.macs(twelve).total / 1e9 == pytest.approx(2.9, abs=0.1)         # the paper's 2.9 G (P)


def test_the_predictor_gets_a_gradient_and_the_teacher_none():
    system = DynamicViT(small_vit(), keep=0.6, distill=True).train()
    logits, terms = system.forward_with_terms(images())
    (logits.square().mean() + sum(terms.values())).backward()
    assert set(terms) == {"ratio", "teacher_logits", "teacher_tokens"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.predictors[0].parameters())
    assert all(p.grad is None for p in system.teacher.parameters())
    assert not system.teacher.training


def test_at_the_start_a_distilling_student_equals_its_teacher_but_for_the_drops():
    system = DynamicViT(small_vit(), keep=1.0, distill=True).eval()
    with torch.no_grad():
        for predictor in system.predictors:
            predictor.out[-1].bias.copy_(torch.tensor([50.0, -50.0]))        # keep all
    _, terms = system.forward_with_terms(images())
    assert all(t.item() == pytest.approx(0.0, abs=1e-6) for t in terms.values())


@pytest.mark.parametrize(("options", "says"), [
    (dict(), "Give keep=0.7 or saving=0.42"), (dict(keep=1.5), "keep=1.5 is not a share"),
    (dict(saving=0.99), "cannot be reached by dropping before blocks"), (dict(keep=0.5, stages=[0]), "from 1 to 5")])
def test_wrong_dynamic_vits(options, says):
    with pytest.raises(ValueError, match=says):
        DynamicViT(small_vit(), **options)


# ---- patch merger ----

def test_the_patch_merger_equals_its_loops_and_its_counted_cost():
    vit = small_vit()
    system = PatchMergerViT(vit, keep=5 / 64, stages=[3]).eval()
    x = vit._pos_embed(vit.patch_embed(images()))
    for block in vit.blocks[:3]:
        x = block(x)
    patches = F.layer_norm(x[:, 1:], (32,))
    merged = torch.zeros(3, 5, 32)
    for b in range(3):
        for k in range(5):
            logits = torch.stack([torch.dot(system.queries[0][k], f) / math.sqrt(32) for f in patches[b]])
            merged[b, k] = sum(w * f for w, f in zip(logits.softmax(0), patches[b], strict=True))
    x = torch.cat((x[:, :1], merged), 1)
    for block in vit.blocks[3:]:
        x = block(x)
    torch.testing.assert_close(system(images()), vit.forward_head(vit.norm(x)), atol=1e-5, rtol=1e-4)
    assert system.schedule == (64, 64, 5, 5, 5, 5)
    assert tp.macs(system).total == flops(system, images(1))


def test_a_patch_merger_meets_a_budget_and_learns_its_queries():
    system = PatchMergerViT(small_vit(), saving=0.5).train()
    assert 1 - tp.macs(system).total / tp.macs(system.vit).total == pytest.approx(0.5, abs=0.03)
    system(images()).square().mean().backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in system.queries)
    assert "queries.0" in system.no_weight_decay()
    with pytest.raises(ValueError, match=r"Give keep=0.7 or saving=0.42"):
        PatchMergerViT(small_vit())


def test_rivals_refuse_models_they_would_get_wrong():
    with pytest.raises(ValueError, match="needs a ViT with absolute positions"):
        ConvolutionViT(timm.create_model("eva02_tiny_patch14_224"), saving=0.5)


# ---- soft masks ----

def test_masks_of_one_change_nothing_and_zeros_hide_the_mlps_input():
    vit = small_vit()
    system = SoftMaskViT(vit, penalty=0.1)
    torch.testing.assert_close(system(images()), vit(images()), atol=1e-5, rtol=1e-4)
    _logits, terms = system.forward_with_terms(images())
    assert float(terms["mask"]) == pytest.approx(0.1 * 64 * (1 + 2 + 3 + 4 + 5 + 6))


def test_the_token_of_rank_p_gets_mask_p():
    """Against a loop over tokens, with the attention worked out anew from timm's own weights."""
    vit = small_vit(depth=2)                    # the second block lets the class token see the first one's masks
    system = SoftMaskViT(vit, penalty=0.1)
    with torch.no_grad():
        system.masks[0] = torch.linspace(1, 0.2, 64)
    x = vit._pos_embed(vit.patch_embed(images(1)))
    block = vit.blocks[0]
    q, k, _ = block.attn.qkv(block.norm1(x)).reshape(1, 65, 3, 2, 16).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / 4).softmax(-1)[0].mean(0)          # (65, 65)
    score = attention.sum(0) - attention.diagonal()
    x = x + block.attn(block.norm1(x))
    for rank, token in enumerate(score[1:].argsort(descending=True).tolist()):
        x[0, 1 + token] *= system.masks[0, rank].item()
    x = vit.blocks[1](x + block.mlp(block.norm2(x)))
    torch.testing.assert_close(system(images(1)), vit.forward_head(vit.norm(x)), atol=1e-5, rtol=1e-4)


def test_masks_are_clipped_and_read_as_a_schedule():
    system = SoftMaskViT(small_vit(depth=3), penalty=0.1)
    with torch.no_grad():
        system.masks[0] = 0.5
        system.masks[1] = torch.cat((torch.full((40,), 7.0), torch.full((24,), -3.0)))
        system.masks[2] = 0.01
    system.after_step()
    assert system.found_schedule() == (32, 32, 32)        # 32; 40 may not rise; nothing is pooled behind the last
    with torch.no_grad():
        system.masks[1] = 0.25
    assert system.found_schedule() == (32, 16, 16)


# ---- normalised keys and queries ----

@pytest.mark.parametrize(("reading", "largest"), [("r1", math.e**2), ("r2", math.e ** (2 / 4))])
def test_alpha_one_bounds_the_kernel(reading, largest):
    """Of one query, no key's weight is more than exp(2 alpha) (R1) or exp(2 / sqrt(16)) (R2) times another's."""
    vit = normalise_qk(small_vit(qkv_bias=False), reading, learned=False)
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight.mul_(100)
    trace_of = []
    attn = vit.blocks[0].attn
    q, k, _ = attn.qkv(torch.randn(1, 65, 32)).reshape(1, 65, 3, 2, 16).permute(2, 0, 3, 1, 4)
    weights = (attn.q_norm(q) @ attn.k_norm(k).transpose(-1, -2) * attn.scale).softmax(-1)
    trace_of.append(weights.amax(-1) / weights.amin(-1))
    assert float(trace_of[0].max()) <= largest * 1.0001
    assert float(trace_of[0].max()) > 1 + 0.3 * (largest - 1)
    cosine = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    logits = cosine if reading == "r1" else cosine / 4
    torch.testing.assert_close(weights, logits.softmax(-1))


def test_learned_alpha_starts_at_the_usual_scale_in_both_readings():
    logits = {}
    for reading in ("r1", "r2"):
        vit = normalise_qk(small_vit(), reading, learned=True)
        assert sum(p.numel() for n, p in vit.named_parameters() if n.endswith("log_alpha")) == 6 * 2
        logits[reading] = vit(images())
        pooled = tp.PooledViT(vit, schedule=[60] * 6)
        assert pooled(images()).shape == (3, 7)
        loss = pooled(images()).square().mean()
        loss.backward()
        assert vit.blocks[0].attn.q_norm.log_alpha.grad.abs().sum() > 0
    torch.testing.assert_close(logits["r1"], logits["r2"])


def test_wrong_readings_and_attentions():
    with pytest.raises(ValueError, match="Use 'r1' or 'r2'"):
        normalise_qk(small_vit(), "r3")
    with pytest.raises(ValueError, match="normalises them already"):
        normalise_qk(normalise_qk(small_vit()))
