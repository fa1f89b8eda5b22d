"""Transformer classes of diffusers, from LTX-2 to Wan-Animate 2, and calls of known classes that no other makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import diffusers
import torch
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor, nn

from .entry import At, Call, Carried, Entry

_BATCH = 2


def _built(model: Callable[..., Any], **config: Any) -> nn.Module:
    """The model with random weights, none of them all zero.

    Many classes start with zeroed gates, modulations or output layers, so that a block adds nothing or the output
    does not depend on the blocks. Trained weights are not like that, and a test of such a model would test nothing.
    """
    torch.manual_seed(0)
    built: nn.Module = model(**config)
    with torch.no_grad():
        for place, parameter in enumerate(built.parameters()):
            if parameter.is_floating_point() and not parameter.any():
                # A generator for each: what one class leaves uninitialised may be zero or not, from run to run.
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(place))
    return built.eval().requires_grad_(False)


def _draw() -> Callable[..., Tensor]:
    """A function from a shape to normal numbers, the same ones for every call that is built with it."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def _rotation(draw: Callable[..., Tensor], tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a rotary embedding, each pair of channels by one angle."""
    angle = draw(1, tokens, width // 2).repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


def _ltx2() -> nn.Module:
    return _built(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=4,
        caption_channels=16,
    )


def _ltx2_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 2 * 4 * 4, 4),
        "audio_hidden_states": draw(_BATCH, 5, 4),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "audio_encoder_hidden_states": draw(_BATCH, 6, 16),
        "timestep": torch.full((_BATCH,), 800.0),
        "encoder_attention_mask": torch.ones(_BATCH, 6),
        "audio_encoder_attention_mask": torch.ones(_BATCH, 6),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "audio_num_frames": 5,
        "return_dict": False,
    }


def _longcat_audio() -> nn.Module:
    return _built(
        diffusers.LongCatAudioDiTTransformer, dit_dim=32, dit_depth=4, dit_heads=2, dit_text_dim=16, latent_dim=4
    )


def _longcat_audio_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 12, 4),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "encoder_attention_mask": torch.ones(_BATCH, 6, dtype=torch.bool),
        "timestep": torch.full((_BATCH,), 0.8),
        "attention_mask": torch.ones(_BATCH, 12, dtype=torch.bool),
        "latent_cond": draw(_BATCH, 12, 4),
        "return_dict": False,
    }


def _lumina_next() -> nn.Module:
    model = _built(
        diffusers.LuminaNextDiT2DModel,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        cross_attention_dim=16,
    )
    nn.init.zeros_(model.get_parameter("pad_token"))  # the class leaves it uninitialised and never reads it
    return model


def _lumina_next_call() -> Call:
    draw = _draw()
    angle = draw(8, 8, 4)  # for more places than the image has, as the pipeline gives it
    return {
        "hidden_states": draw(_BATCH, 4, 8, 8),
        "timestep": torch.full((_BATCH,), 0.8),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "encoder_mask": torch.ones(_BATCH, 6, dtype=torch.int64),
        "image_rotary_emb": torch.polar(torch.ones_like(angle), angle),
        "cross_attention_kwargs": {},
        "return_dict": False,
    }


def _motif_video() -> nn.Module:
    return _motif_video_with(decoder_layers=0)


def _motif_video_decoder() -> nn.Module:
    """With decoder layers, which start again from the patches and read what the layers before made as their text."""
    return _motif_video_with(decoder_layers=2)


def _motif_video_with(decoder_layers: int) -> nn.Module:
    return _built(
        diffusers.MotifVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=4,
        num_decoder_layers=decoder_layers,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
    )


def _motif_video_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 2, 8, 8),
        "timestep": torch.full((_BATCH,), 800),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "encoder_attention_mask": torch.ones(_BATCH, 6),
        "return_dict": False,
    }


def _omnigen() -> nn.Module:
    return _built(
        diffusers.OmniGenTransformer2DModel,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        num_layers=4,
        pad_token_id=0,
        vocab_size=64,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=16,
    )


_OMNIGEN_IMAGE = 16  # tokens


def _omnigen_call() -> Call:
    draw = _draw()
    words = 6
    tokens = words + 1 + _OMNIGEN_IMAGE  # one for the timestep
    return {
        "hidden_states": draw(_BATCH, 4, 8, 8),
        "timestep": torch.full((_BATCH,), 0.8),
        "input_ids": torch.arange(1, 1 + _BATCH * words).view(_BATCH, words),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(_BATCH, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(_BATCH, tokens),
        "return_dict": False,
    }


def _prx() -> nn.Module:
    return _built(
        diffusers.PRXTransformer2DModel,
        in_channels=4,
        context_in_dim=16,
        hidden_size=32,
        num_heads=2,
        depth=4,
        axes_dim=[8, 8],
    )


def _prx_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 8, 8),
        "timestep": torch.tensor([0.8]),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "attention_mask": torch.ones(_BATCH, 6, dtype=torch.bool),
        "return_dict": False,
    }


def _prior() -> nn.Module:
    return _built(
        diffusers.PriorTransformer,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        embedding_dim=8,
        num_embeddings=6,
        additional_embeddings=4,
    )


def _prior_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 8),
        "timestep": torch.tensor(800),
        "proj_embedding": draw(_BATCH, 8),
        "encoder_hidden_states": draw(_BATCH, 6, 8),
        "attention_mask": torch.ones(_BATCH, 6, dtype=torch.bool),
        "return_dict": False,
    }


def _qwenimage21() -> nn.Module:
    return _built(
        diffusers.QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=12,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 4, 4),
    )


def _qwenimage21_call() -> Call:
    draw = _draw()
    words, slots = 5, 4  # a slot stands for four tokens of the image
    return {
        "hidden_states": draw(_BATCH, 4 * slots, 4),
        "encoder_hidden_states": draw(_BATCH, words, 16),
        "timestep": torch.full((_BATCH,), 0.8),
        "img_shapes": [[(1, 4, 4)]] * _BATCH,
        "img_mask": (torch.arange(words + slots) >= words).expand(_BATCH, words + slots),
        "encoder_hidden_states_mask": torch.ones(_BATCH, words, dtype=torch.bool),
        "return_dict": False,
    }


def _rfd4_proteina() -> nn.Module:
    return _built(
        diffusers.RFD4ProteinaTransformer,
        nlayers=4,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=16,
        latent_dim=4,
        token_type_emb_dim=8,
        t_emb_dim=16,
        xt_pair_dist_dim=6,
        feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists", "bond_mask"),
        tri_mult_c=8,
        num_sequence_classes=8,
    )


def _rfd4_proteina_call() -> Call:
    draw = _draw()
    tokens = 10
    return {
        "bb_ca": draw(_BATCH, tokens, 3),
        "local_latents": draw(_BATCH, tokens, 4),
        "bb_ca_time": torch.full((_BATCH,), 0.8),
        "local_latents_time": torch.full((_BATCH,), 0.8),
        "padding_mask": torch.ones(_BATCH, tokens, dtype=torch.bool),
        "token_type": torch.zeros(_BATCH, tokens, dtype=torch.int64),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(_BATCH, tokens, dtype=torch.bool),
            "supports_local_latent": torch.ones(_BATCH, tokens, dtype=torch.bool),
            "bond_mask": torch.ones(_BATCH, tokens, tokens).tril(1).triu(-1),
        },
        "return_dict": False,
    }


def _sana_wm_refiner() -> nn.Module:
    return _built(
        diffusers.SanaWMLTX2RefinerTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=4,
        caption_channels=16,
    )


def _sana_wm_refiner_call() -> Call:
    draw = _draw()
    tokens, before = 2 * 4 * 4, 4 * 4
    cache = SanaWMRefinerKVCache(num_layers=4)
    cache.sink_pe = _rotation(draw, before, 16)
    for layer in cache.layer_caches:
        layer.store_sink(draw(_BATCH, before, 16), draw(_BATCH, before, 16))
        layer.store_history(draw(_BATCH, before, 16), draw(_BATCH, before, 16))
    return {
        "hidden_states": draw(_BATCH, tokens, 4),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "timestep": torch.full((_BATCH, tokens), 800.0),
        "video_rotary_emb": _rotation(draw, tokens, 16),
        "encoder_attention_mask": torch.ones(_BATCH, 6),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
        "return_dict": False,
    }


def _sana_wm() -> nn.Module:
    return _built(
        diffusers.SanaWMTransformer3DModel,
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        chunk_plucker_channels=6,
        caption_channels=16,
    )


def _sana_wm_call() -> Call:
    draw = _draw()
    frames, side = 3, 4
    pose = torch.eye(4).expand(_BATCH, frames, 4, 4).clone()
    pose[..., :3, 3] = 0.1 * draw(_BATCH, frames, 3)
    lens = torch.tensor([4.0, 4.0, side / 2, side / 2]).expand(_BATCH, frames, 4)  # focal lengths and centre
    time = torch.full((_BATCH, 1, frames), 800.0)
    time[:, :, 0] = 0  # the first frame is given
    return {
        "hidden_states": draw(_BATCH, 4, frames, side, side),
        "timestep": time,
        "encoder_hidden_states": draw(_BATCH, 1, 6, 16),
        "mask": torch.ones(_BATCH, 6, dtype=torch.int64),
        "camera_conditions": torch.cat([pose.flatten(2), lens], dim=-1),
        "chunk_plucker": draw(_BATCH, 6, frames, side, side),
        "return_dict": False,
    }


def _skyreels_v2() -> nn.Module:
    return _built(
        diffusers.SkyReelsV2Transformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    )


def _skyreels_v2_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 2, 8, 8),
        "timestep": torch.full((_BATCH,), 800),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "return_dict": False,
    }


_STABLE_AUDIO3_MEMORY = 4  # tokens that stand before the audio


def _stable_audio3() -> nn.Module:
    return _built(
        diffusers.StableAudio3DiTModel,
        io_channels=4,
        embed_dim=32,
        depth=4,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        num_memory_tokens=_STABLE_AUDIO3_MEMORY,
    )


def _stable_audio3_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 12),
        "timestep": torch.full((_BATCH,), 0.8),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "global_hidden_states": draw(_BATCH, 16),
        "encoder_attention_mask": torch.ones(_BATCH, 6, dtype=torch.bool),
        "local_add_cond": draw(_BATCH, 5, 12),
        "return_dict": False,
    }


def _stable_audio() -> nn.Module:
    return _built(
        diffusers.StableAudioDiTModel,
        sample_size=12,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=16,
        cross_attention_input_dim=16,
    )


def _stable_audio_call() -> Call:
    draw = _draw()
    angle = draw(1 + 12, 2).repeat(1, 2)
    return {
        "hidden_states": draw(_BATCH, 4, 12),
        "timestep": torch.tensor([0.8]),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "global_hidden_states": draw(_BATCH, 1, 16),
        "rotary_embedding": (angle.cos(), angle.sin()),
        "return_dict": False,
    }


def _t5_film() -> nn.Module:
    return _built(
        diffusers.T5FilmDecoder,
        input_dims=8,
        targets_length=12,
        d_model=16,
        num_layers=4,
        num_heads=2,
        d_kv=8,
        d_ff=32,
    )


def _t5_film_call() -> Call:
    draw = _draw()
    return {
        "encodings_and_masks": [(draw(_BATCH, 6, 16), torch.ones(_BATCH, 6)) for _ in range(2)],
        "decoder_input_tokens": draw(_BATCH, 12, 8),
        "decoder_noise_time": torch.full((_BATCH,), 0.8),
    }


def _transformer_2d() -> nn.Module:
    return _built(
        diffusers.Transformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=4,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=12,
    )


def _transformer_2d_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(_BATCH, 6, 12),
        "timestep": torch.full((_BATCH,), 800),
        "encoder_attention_mask": torch.ones(_BATCH, 6),
        "return_dict": False,
    }


def _transformer_2d_vq() -> nn.Module:
    """Over the indices of a code book instead of latents."""
    return _built(
        diffusers.Transformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        cross_attention_dim=16,
        sample_size=4,
        num_vector_embeds=9,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm",
    )


def _transformer_2d_vq_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": torch.arange(_BATCH * 16).view(_BATCH, 16) % 9,
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "timestep": torch.tensor(800),
        "return_dict": False,
    }


_ANIMATE_FRAMES, _ANIMATE_PLACES = 2, 4  # of the reference, in tokens


def _wan_animate2() -> nn.Module:
    model = _built(
        diffusers.WanAnimate2Transformer3DModel,
        text_len=8,
        in_dim=8,
        dim=24,
        ffn_dim=32,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=4,
    )
    # The first call would make this mask with a compiled function, which takes longer than all the rest.
    size, animate = (_ANIMATE_FRAMES, _ANIMATE_PLACES), cast(Any, model)
    with torch._dynamo.config.patch(disable=True):
        animate.block_masks[size] = animate.create_mask(*size, torch.device("cpu"))
    return model


def _wan_animate2_call() -> Call:
    draw = _draw()
    frames = _ANIMATE_FRAMES + 1
    cache = WanAnimate2KVCache(num_layers=4)
    for layer in cache.layer_caches:
        reference = _ANIMATE_FRAMES * _ANIMATE_PLACES
        layer.store(draw(1, reference, 2, 12), draw(1, reference, 2, 12))
    return {
        "hidden_states": [draw(4, frames, 4, 4)],
        "timestep": torch.tensor([800.0]),
        "encoder_hidden_states": [draw(6, 16)],
        "condition_latents": [draw(4, frames, 4, 4)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": frames * _ANIMATE_PLACES,
        "encoder_hidden_states_image": draw(1, 5, 1280),
        "reference_grid_sizes": torch.tensor([[_ANIMATE_FRAMES, 2, 2]]),
        "origin_len": 4 * (_ANIMATE_FRAMES - 1) + 1,
        "origin_area": [32, 32],
        "return_dict": False,
    }


def _wan22() -> nn.Module:
    return _built(
        diffusers.WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    )


def _wan22_call() -> Call:
    draw = _draw()
    frames, places = 2, 4 * 4
    time = torch.full((_BATCH, frames, places), 800.0)
    time[:, 0] = 0  # the first frame is given
    return {
        "hidden_states": draw(_BATCH, 4, frames, 8, 8),
        "timestep": time.flatten(1),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "return_dict": False,
    }


def _flux_controlnet() -> nn.Module:
    return _built(
        diffusers.FluxTransformer2DModel,
        in_channels=4,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 4),
    )


def _flux_controlnet_call() -> Call:
    draw = _draw()
    tokens, words = 16, 6
    places = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4], dim=-1)
    return {
        "hidden_states": draw(_BATCH, tokens, 4),
        "encoder_hidden_states": draw(_BATCH, words, 16),
        "pooled_projections": draw(_BATCH, 16),
        "timestep": torch.full((_BATCH,), 0.8),
        "img_ids": places,
        "txt_ids": torch.zeros(words, 3),
        "controlnet_block_samples": [0.1 * draw(_BATCH, tokens, 24) for _ in range(2)],
        "controlnet_single_block_samples": [0.1 * draw(_BATCH, tokens, 24) for _ in range(2)],
        "return_dict": False,
    }


def _sd3_controlnet() -> nn.Module:
    return _built(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def _sd3_controlnet_call() -> Call:
    draw = _draw()
    return {
        "hidden_states": draw(_BATCH, 4, 8, 8),
        "encoder_hidden_states": draw(_BATCH, 6, 16),
        "pooled_projections": draw(_BATCH, 16),
        "timestep": torch.full((_BATCH,), 800.0),
        "block_controlnet_hidden_states": [0.1 * draw(_BATCH, 16, 32) for _ in range(2)],
        "return_dict": False,
    }


def _whole(x: int | str, h: int | None = None, y: int | None = None) -> tuple[Carried]:
    return (Carried(x=At(x), h=At(h), y=At(y)),)


def _part(x: int | str, start: int) -> tuple[Carried]:
    """The tokens from `start` on, of blocks that return the sequence itself."""
    return (Carried(x=At(x, start), h=At(None, start), y=At(None, start)),)


_MOTIF_VIDEO = ("transformer_blocks", "single_transformer_blocks")

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        _ltx2,
        _ltx2_call,
        trunk=("transformer_blocks",),
        streams=(
            Carried(x=At("hidden_states"), h=At(0), y=At(0)),
            Carried(x=At("audio_hidden_states"), h=At(1), y=At(1)),
        ),
    ),
    Entry(
        "longcat_audio",
        "LongCatAudioDiTTransformer",
        _longcat_audio,
        _longcat_audio_call,
        trunk=("blocks",),
        streams=_whole("hidden_states"),
    ),
    Entry(
        "lumina_next",
        "LuminaNextDiT2DModel",
        _lumina_next,
        _lumina_next_call,
        trunk=("layers",),
        streams=_whole(0),
    ),
    Entry(
        "motif_video",
        "MotifVideoTransformer3DModel",
        _motif_video,
        _motif_video_call,
        trunk=_MOTIF_VIDEO,
        streams=_whole(0, 0, 0),
    ),
    Entry(
        "motif_video_decoder",
        "MotifVideoTransformer3DModel",
        _motif_video_decoder,
        _motif_video_call,
        trunk=_MOTIF_VIDEO,
        streams=_whole(0, 0, 0),
    ),
    Entry(
        "omnigen",
        "OmniGenTransformer2DModel",
        _omnigen,
        _omnigen_call,
        trunk=("layers",),
        streams=_whole(0),  # text and image; the image is cut out after the output norm
        fullgraph=False,  # the rotary embedding asks for its largest position
    ),
    Entry("prx", "PRXTransformer2DModel", _prx, _prx_call, trunk=("blocks",), streams=_whole("hidden_states")),
    Entry(
        "prior",
        "PriorTransformer",
        _prior,
        _prior_call,
        trunk=("transformer_blocks",),
        streams=_whole(0),  # the answer is read off one learned token, but after the norm of all
    ),
    Entry(
        "qwenimage21",
        "QwenImage21Transformer2DModel",
        _qwenimage21,
        _qwenimage21_call,
        trunk=("transformer_blocks",),
        streams=_whole("hidden_states"),  # text and image; the model returns both
        fullgraph=False,  # masks become lists
    ),
    Entry(
        "rfd4_proteina",
        "RFD4ProteinaTransformer",
        _rfd4_proteina,
        _rfd4_proteina_call,
        trunk=("transformer_layers",),
        streams=_whole(0),
        latents="bb_ca",
        timestep="bb_ca_time",
    ),
    Entry(
        "sana_wm_refiner",
        "SanaWMLTX2RefinerTransformer3DModel",
        _sana_wm_refiner,
        _sana_wm_refiner_call,
        trunk=("transformer_blocks",),
        streams=_whole("hidden_states"),
    ),
    Entry("sana_wm", "SanaWMTransformer3DModel", _sana_wm, _sana_wm_call, trunk=("blocks",), streams=_whole(0)),
    Entry(
        "skyreels_v2",
        "SkyReelsV2Transformer3DModel",
        _skyreels_v2,
        _skyreels_v2_call,
        trunk=("blocks",),
        streams=_whole(0),
    ),
    Entry(
        "stable_audio3",
        "StableAudio3DiTModel",
        _stable_audio3,
        _stable_audio3_call,
        trunk=("transformer_blocks",),
        streams=_part(0, _STABLE_AUDIO3_MEMORY),
    ),
    Entry(
        "stable_audio",
        "StableAudioDiTModel",
        _stable_audio,
        _stable_audio_call,
        trunk=("transformer_blocks",),
        streams=_whole("hidden_states"),  # the timestep's token is cut off after the output projection
    ),
    Entry(
        "t5_film",
        "T5FilmDecoder",
        _t5_film,
        _t5_film_call,
        trunk=("decoders",),
        streams=_whole(0, 0, 0),
        latents="decoder_input_tokens",
        timestep="decoder_noise_time",
    ),
    Entry(
        "transformer_2d",
        "Transformer2DModel",
        _transformer_2d,
        _transformer_2d_call,
        trunk=("transformer_blocks",),
        streams=_whole(0),
    ),
    Entry(
        "transformer_2d_vq",
        "Transformer2DModel",
        _transformer_2d_vq,
        _transformer_2d_vq_call,
        trunk=("transformer_blocks",),
        streams=_whole(0),
    ),
    Entry(
        "wan_animate2",
        "WanAnimate2Transformer3DModel",
        _wan_animate2,
        _wan_animate2_call,
        trunk=("blocks",),
        streams=_whole(0),
        latents="hidden_states.0",
        fullgraph=False,
        refused="Dynamo broke the model's graph",  # sizes of grids become lists in every attention
    ),
    Entry("wan22", "WanTransformer3DModel", _wan22, _wan22_call, trunk=("blocks",), streams=_whole(0)),
    Entry(
        "flux_controlnet",
        "FluxTransformer2DModel",
        _flux_controlnet,
        _flux_controlnet_call,
        trunk=("transformer_blocks", "single_transformer_blocks"),
        streams=_whole("hidden_states", 1, 1),  # before the control samples are added
    ),
    Entry(
        "sd3_controlnet",
        "SD3Transformer2DModel",
        _sd3_controlnet,
        _sd3_controlnet_call,
        trunk=("transformer_blocks",),
        streams=_whole("hidden_states", 1, 1),  # before the control samples are added
    ),
)
