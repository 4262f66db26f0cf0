"""The released D2LS model's modules, written anew from its description: what patch() is measured and tested on.

Names, shapes and order of operations are the release's, with what it does at length: every projection of the pixels is
formed, the dictionary is mixed image by image, the auxiliary branch runs everything once more. The maps come from hooks
on the backbone. Of its sub-modules the interaction's ``self_attn``, ``mlp``, ``norm1`` and ``norm3`` are never used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls_fast.ops.ratio_contrast import ratio_contrast_definition


class Attention(nn.Module):
    """Multi-head attention of a narrower width."""

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = embed_dim // downsample_rate
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(embed_dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [
            projection(tokens).unflatten(2, (self.num_heads, -1)).permute(0, 2, 1, 3)
            for projection, tokens in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        ]
        scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(heads[0].shape[-1])
        return self.out_proj((scores.softmax(-1) @ heads[2]).permute(0, 2, 1, 3).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers; unused."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(embed_dim, hidden), nn.Linear(hidden, embed_dim)


class InteractorLayer(nn.Module):
    """Dictionary <- pixels, then pixels <- dictionary."""

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = FeedForward(embed_dim, 8 * embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = Attention(embed_dim, num_heads, downsample_rate)

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        look = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        queries = self.norm2(queries + look)
        update = self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        return queries, self.norm4(keys + update)


class Interactor(nn.Module):
    """The stages and the last look; ``[B, C, h, w]`` pixels in, ``[B, h * w, C]`` out."""

    def __init__(self, embed_dim: int, num_heads: int, stages: int, downsample_rate: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InteractorLayer(embed_dim, num_heads, downsample_rate) for _ in range(stages))
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate)
        self.norm_final_attn = nn.LayerNorm(embed_dim)
        self.num_heads = num_heads

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        keys, key_pe = (maps.flatten(2).permute(0, 2, 1) for maps in (image_embedding, image_pe))
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, query_pe=point_embedding, key_pe=key_pe)
        look = self.final_attn_token_to_image(q=queries + point_embedding, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + look), keys


class DynamicQueries(nn.Module):
    """Mixture weights in, dynamic and static dictionary out; one grouped convolution for every image."""

    def __init__(self, entries: int, embed_dim: int, query_ratio: int) -> None:
        super().__init__()
        self.basic_queries = nn.Embedding(entries, embed_dim)
        self.token_mlp = nn.Linear(embed_dim, query_ratio * embed_dim)

    def forward(self, query_weights: Tensor) -> tuple[Tensor, Tensor]:
        static = self.basic_queries.weight
        variants = self.token_mlp(static).view(1, -1, static.shape[1])
        mixed = [F.conv1d(variants, weights.unsqueeze(-1), groups=len(static)) for weights in query_weights]
        return torch.cat(mixed), static.unsqueeze(0).expand(len(mixed), -1, -1)


class FeatureProjection(nn.Module):
    """A map ``[B, c, h, w]`` to ``[B, h * w, C]``."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, embed_dim)

    def forward(self, feature: Tensor) -> Tensor:
        return self.proj(feature.flatten(2).transpose(1, 2))


class FeatureModulator(nn.Module):
    """The deepest map to mixture weights ``[B, K, R]``."""

    def __init__(self, channels: int, embed_dim: int, entries: int, query_ratio: int) -> None:
        super().__init__()
        half = embed_dim // 2
        self.query_ratio = query_ratio
        self.mlp1 = FeatureProjection(channels, embed_dim)
        self.gmp_branch = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Conv2d(half, half, 1))
        self.gap_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(half, half, 1))
        self.mlp2 = nn.Sequential(
            nn.Linear(embed_dim, 2 * embed_dim), nn.ReLU(), nn.Linear(2 * embed_dim, entries * query_ratio)
        )

    def forward(self, feature: Tensor) -> Tensor:
        highest, mean = self.mlp1(feature).permute(0, 2, 1).unflatten(2, feature.shape[2:]).chunk(2, dim=1)
        pooled = torch.cat([self.gmp_branch(highest), self.gap_branch(mean)], dim=1).flatten(1)
        return self.mlp2(pooled).unflatten(1, (-1, self.query_ratio)).softmax(-1)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, maps: Tensor) -> Tensor:
        centred = maps - maps.mean(1, keepdim=True)
        normalised = centred / (centred.pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


class Hypernetwork(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        sizes = (embed_dim, embed_dim, embed_dim, embed_dim // 16)
        self.layers = nn.ModuleList(nn.Linear(given, wanted) for given, wanted in itertools.pairwise(sizes))

    def forward(self, tokens: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(second(first(tokens).relu()).relu())


class Decoder(nn.Module):
    """Pixels, their encoding and the deepest map to logits; in training (logits, auxiliary logits, contrastive)."""

    def __init__(self, embed_dim: int, entries: int, query_ratio: int, channels: int, interactor: nn.Module) -> None:
        super().__init__()
        self.interactor = interactor
        self.token = DynamicQueries(entries, embed_dim, query_ratio)
        self.feature_modulator = FeatureModulator(channels, embed_dim, entries, query_ratio)
        self.upsampler = nn.Sequential(
            nn.PixelShuffle(2), ChannelNorm(embed_dim // 4), nn.GELU(), nn.PixelShuffle(2), nn.GELU()
        )
        self.output_hypernetwork_mlps = Hypernetwork(embed_dim)

    def inference(self, image_embeddings: Tensor, image_pe: Tensor, tokens: Tensor) -> Tensor:
        """One branch: interaction, upsampling, classification."""
        image_pe = image_pe.expand(len(image_embeddings), -1, -1, -1)
        tokens, pixels = self.interactor(image_embeddings, image_pe, tokens)
        upsampled = self.upsampler(pixels.transpose(1, 2).reshape(image_embeddings.shape))
        return (self.output_hypernetwork_mlps(tokens) @ upsampled.flatten(2)).unflatten(2, upsampled.shape[2:])

    def forward(self, image_embeddings: Tensor, image_pe: Tensor, image_feature: Tensor) -> Any:
        dynamic, static = self.token(self.feature_modulator(image_feature))
        logits = self.inference(image_embeddings, image_pe, dynamic)
        if not self.training:
            return logits
        auxiliary = self.inference(image_embeddings, image_pe, static)
        return logits, auxiliary, ratio_contrast_definition(dynamic, 1e-6)


class PositionEmbedding(nn.Module):
    """Random Fourier features of the pixels' centres, ``[C, h, w]``."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, embed_dim // 2))

    def forward(self, size: tuple[int, int]) -> Tensor:
        ones = torch.ones(size).to(self.positional_encoding_gaussian_matrix)
        y, x = (ones.cumsum(dim) - 0.5 for dim in (0, 1))
        centres = torch.stack([x / size[1], y / size[0]], dim=-1)
        angles = 2 * math.pi * ((2 * centres - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)


class OfficialStructure(nn.Module):
    """The whole model.

    Args:
        backbone: whose outputs of the modules ``stages`` are the four maps, finest first.
        stages: names in the backbone.
        channels: of the maps.
        entries: K.
        embed_dim, num_heads, depth, query_ratio: C, H, L and R.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[str],
        channels: Sequence[int],
        entries: int,
        embed_dim: int = 256,
        num_heads: int = 8,
        depth: int = 3,
        query_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.multi_scale_features: list[Tensor] = []
        for name in stages:
            backbone.get_submodule(name).register_forward_hook(self._collect)
        self.pe_layer = PositionEmbedding(embed_dim)
        self.linear_c = nn.ModuleList(FeatureProjection(each, embed_dim) for each in channels)
        interactor = Interactor(embed_dim, num_heads, depth)
        self.decoder = Decoder(embed_dim, entries, query_ratio, channels[-1], interactor)
        self.aggregator = nn.Conv2d(len(channels) * embed_dim, embed_dim, 1, bias=False)

    def _collect(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.multi_scale_features.append(output)

    def forward(self, x: Any) -> Any:
        """Images (whatever the backbone takes) to what the decoder gives."""
        self.multi_scale_features.clear()
        self.backbone(x)
        size = self.multi_scale_features[0].shape[2:]
        levels = []
        for feature, project in zip(self.multi_scale_features, self.linear_c, strict=True):
            level = project(feature).permute(0, 2, 1).unflatten(2, feature.shape[2:])
            levels.append(F.interpolate(level, size=size, mode="bilinear", align_corners=False))
        fused = self.aggregator(torch.cat(levels[::-1], dim=1))
        image_pe = self.pe_layer((fused.shape[2], fused.shape[3])).unsqueeze(0)
        return self.decoder(image_embeddings=fused, image_pe=image_pe, image_feature=self.multi_scale_features[-1])


class GivenMaps(nn.Module):
    """A backbone that computes nothing: the four maps are its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Identity() for _ in range(4))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return [stage(each) for stage, each in zip(self.stages, maps, strict=True)][-1]


def official_head(channels: Sequence[int], entries: int, **options: Any) -> OfficialStructure:
    """The model without a backbone: called with the four maps."""
    return OfficialStructure(GivenMaps(), [f"stages.{i}" for i in range(4)], channels, entries, **options)
