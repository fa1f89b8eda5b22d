"""Transformer classes of diffusers from Allegro to Kandinsky: a tiny configuration and a call of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from .entry import STEPS, At, Call, Carried, Entry


def _model(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, name)(**config)
    return _redrawn(model).eval().requires_grad_(False)


def _redrawn(model: nn.Module) -> nn.Module:
    """The model without parameters that are all zero.

    Many classes start their gates, modulations and output layers at zero and leave it to the checkpoint to fill them.
    As they start, blocks would give back what they got, or the model would give zeros whatever the blocks do.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return model


def _draws() -> Callable[..., Tensor]:
    """Gives normal tensors of the shapes asked for, the same ones in every call."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(shape, generator=generator)


def _grid(axes: int, *sizes: int) -> Tensor:
    """One row of `axes` indices for each place of a grid; missing leading axes are zero."""
    places = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))
    return nn.functional.pad(places, (axes - len(sizes), 0)).float()


def _allegro() -> nn.Module:
    return _model(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=4,
        cross_attention_dim=48,
        caption_channels=12,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
    )


def _allegro_call() -> Call:
    draw = _draws()
    *frequencies, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(24, ((0, 0), (4, 4)), (4, 4), 2)
    places = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long()).T.reshape(3, 1, -1)
    return {
        "hidden_states": draw(1, 4, 2, 8, 8),
        "encoder_hidden_states": draw(1, 5, 12),
        "timestep": torch.tensor([900]),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "image_rotary_emb": (tuple(frequencies), tuple(places.contiguous())),
        "return_dict": False,
    }


_ANYFLOW: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


def _anyflow() -> nn.Module:
    return _model("AnyFlowTransformer3DModel", **_ANYFLOW)


def _anyflow_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 3, 4, 8, 8),
        "timestep": torch.full((1, 3), 900.0),
        "r_timestep": torch.full((1, 3), 800.0),
        "encoder_hidden_states": draw(1, 5, 16),
        "return_dict": False,
    }


def _anyflow_far() -> nn.Module:
    return _model("AnyFlowFARTransformer3DModel", full_chunk_limit=2, chunk_partition=(1, 2), **_ANYFLOW)


def _anyflow_far_call() -> Call:
    """A step of the second chunk, two frames, with the keys and values of the first chunk, one frame, cached."""
    draw = _draws()
    # Per block: keys and values of two chunks of at most two frames, of 16 tokens each or compressed to 4.
    cache = {i: {"full_cache": draw(2, 1, 2, 64, 12), "compressed_cache": draw(2, 1, 2, 8, 12)} for i in range(4)}
    return {
        "hidden_states": draw(1, 2, 4, 8, 8),
        "timestep": torch.full((1, 2), 900.0),
        "r_timestep": torch.full((1, 2), 800.0),
        "encoder_hidden_states": draw(1, 5, 16),
        "chunk_partition": [1, 2],
        "kv_cache": cache,
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
        "return_dict": False,
    }


def _aura_flow() -> nn.Module:
    return _model(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    )


def _aura_flow_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 8, 8),
        "encoder_hidden_states": draw(1, 5, 16),
        "timestep": torch.tensor([0.9]),
        "return_dict": False,
    }


def _bria_fibo2() -> nn.Module:
    return _model(
        "BriaFibo2Transformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=12,
        injection_layer_ids=(2, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(16, 8, 8),
    )


def _bria_fibo2_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 8, 8),
        "timestep": torch.tensor([0.9]),
        "encoder_hidden_states": draw(1, 3, 6, 12),
        "return_dict": False,
    }


def _bria_fibo() -> nn.Module:
    return _model(
        "BriaFiboTransformer2DModel",
        in_channels=8,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=12,
    )


def _bria_fibo_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 16, 8),
        "encoder_hidden_states": draw(1, 5, 24),
        "text_encoder_layers": [draw(1, 5, 12) for _ in range(6)],
        "timestep": torch.tensor([900.0]),
        "img_ids": _grid(3, 4, 4),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


def _chrono_edit() -> nn.Module:
    return _model(
        "ChronoEditTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=8,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    )


def _chrono_edit_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 8, 2, 8, 8),
        "timestep": torch.tensor([900]),
        "encoder_hidden_states": draw(1, 5, 16),
        "return_dict": False,
    }


def _cogview4() -> nn.Module:
    return _model(
        "CogView4Transformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )


def _cogview4_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 8, 8),
        "encoder_hidden_states": draw(1, 5, 24),
        "timestep": torch.tensor([900]),
        "original_size": torch.tensor([[64.0, 64.0]]),
        "target_size": torch.tensor([[64.0, 64.0]]),
        "crop_coords": torch.zeros(1, 2),
        "return_dict": False,
    }


def _cosmos() -> nn.Module:
    return _model(
        "CosmosTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=18,
        num_layers=4,
        text_embed_dim=16,
        adaln_lora_dim=8,
        max_size=(4, 8, 8),
        concat_padding_mask=False,  # the mask would be resized with torchvision, which the tests do without
    )


def _cosmos_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 2, 8, 8),
        "timestep": torch.tensor([0.9]),
        "encoder_hidden_states": draw(1, 5, 16),
        "fps": 24,
        "return_dict": False,
    }


def _dream_lite() -> nn.Module:
    return _model(
        "DreamLiteTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        num_layers=4,
        norm_num_groups=4,
        cross_attention_dim=12,
    )


def _dream_lite_call() -> Call:
    """A part of DreamLite's U-Net, which gives it no timestep."""
    draw = _draws()
    return {"hidden_states": draw(1, 32, 4, 4), "encoder_hidden_states": draw(1, 5, 12), "return_dict": False}


def _ernie_image() -> nn.Module:
    return _model(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=4,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=12,
        rope_axes_dim=(4, 6, 6),
    )


def _ernie_image_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(2, 8, 4, 4),
        "timestep": torch.tensor([900.0, 900.0]),
        "text_bth": draw(2, 5, 12),
        "text_lens": torch.tensor([5, 3]),
        "return_dict": False,
    }


def _flux3() -> nn.Module:
    return _model(
        "Flux3Transformer2DModel",
        in_channels=8,
        cond_in_channels=8,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux3_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 16, 8),
        "encoder_hidden_states": draw(1, 5, 24),
        "timestep": torch.tensor([0.9]),
        "img_ids": nn.functional.pad(_grid(3, 4, 4), (0, 1)),
        "txt_ids": _grid(4, 5),
        "return_dict": False,
    }


def _hidream_image() -> nn.Module:
    return _model(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[12, 20],
        text_emb_dim=10,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1, 2, 3, 3, 3],
    )


def _hidream_image_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 8, 8),
        "timesteps": torch.tensor([900]),
        "encoder_hidden_states_t5": draw(1, 4, 12),
        "encoder_hidden_states_llama3": draw(4, 1, 5, 20),
        "pooled_embeds": draw(1, 10),
        "return_dict": False,
    }


def _hunyuan_image() -> nn.Module:
    return _model(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=12,
        rope_axes_dim=(8, 8),
    )


def _hunyuan_image_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 4, 4, 4),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": draw(1, 5, 12),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "return_dict": False,
    }


def _joyimage_edit() -> nn.Module:
    return _model(
        "JoyImageEditTransformer3DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=12,
        num_layers=4,
        rope_dim_list=[4, 6, 6],
    )


def _joyimage_edit_call() -> Call:
    """One picture to edit and the latents: two items of one frame."""
    draw = _draws()
    return {
        "hidden_states": draw(1, 2, 4, 1, 8, 8),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": draw(1, 5, 12),
        "return_dict": False,
    }


def _kandinsky5() -> nn.Module:
    return _model(
        "Kandinsky5Transformer3DModel",
        in_text_dim=12,
        in_text_dim2=10,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
    )


def _kandinsky5_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 2, 8, 8, 4),
        "encoder_hidden_states": draw(1, 5, 12),
        "timestep": torch.tensor([900.0]),
        "pooled_projections": draw(1, 10),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(5),
        "return_dict": False,
    }


def _kandinsky6() -> nn.Module:
    return _model(
        "Kandinsky6Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=12,
        in_text_dim2=10,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        in_audio_dim=6,
        out_audio_dim=6,
        model_dim_a=16,
        ff_dim_a=32,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
    )


def _kandinsky6_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 2, 8, 8, 9),  # latents, those of a picture to start from, and a mask
        "encoder_hidden_states": draw(1, 5, 12),
        "pooled_projections": draw(1, 10),
        "timestep": torch.tensor([900.0]),
        "audio_hidden_states": draw(1, 7, 6),
        "return_dict": False,
    }


def _kandinsky6_sr() -> nn.Module:
    return _model(
        "Kandinsky6SRTransformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        nabla_window=(1, 1, 1),
    )


def _kandinsky6_sr_call() -> Call:
    draw = _draws()
    return {
        "hidden_states": draw(1, 2, 8, 8, 9),  # latents, those of the small video, and a mask
        "timestep": torch.tensor([900.0]),
        "return_dict": False,
    }


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="allegro",
        model="AllegroTransformer3DModel",
        build=_allegro,
        call=_allegro_call,
        trunk=("transformer_blocks",),
        streams=(Carried(x=At("hidden_states"), h=At(), y=At()),),
    ),
    Entry(
        name="anyflow",
        model="AnyFlowTransformer3DModel",
        build=_anyflow,
        call=_anyflow_call,
        trunk=("blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="anyflow_far",
        model="AnyFlowFARTransformer3DModel",
        build=_anyflow_far,
        call=_anyflow_far_call,
        trunk=("blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="aura_flow",
        model="AuraFlowTransformer2DModel",
        build=_aura_flow,
        call=_aura_flow_call,
        trunk=("joint_transformer_blocks", "single_transformer_blocks"),
        # In front of the image: 8 register tokens and 5 of text.
        streams=(Carried(x=At("hidden_states"), h=At(1), y=At(start=13)),),
    ),
    Entry(
        name="bria_fibo",
        model="BriaFiboTransformer2DModel",
        build=_bria_fibo,
        call=_bria_fibo_call,
        trunk=("transformer_blocks", "single_transformer_blocks"),
        streams=(Carried(x=At("hidden_states"), h=At(1), y=At(start=5)),),
    ),
    Entry(
        name="bria_fibo2",
        model="BriaFibo2Transformer2DModel",
        build=_bria_fibo2,
        call=_bria_fibo2_call,
        trunk=("layers",),
        # In front of the image: the 6 tokens that the text is squeezed into.
        streams=(Carried(x=At(0, start=6), h=At(start=6), y=At(start=6)),),
        fullgraph=False,  # in the first call: it makes the tables of its positions under `torch.device("cpu")`
    ),
    Entry(
        name="chrono_edit",
        model="ChronoEditTransformer3DModel",
        build=_chrono_edit,
        call=_chrono_edit_call,
        trunk=("blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="cogview4",
        model="CogView4Transformer2DModel",
        build=_cogview4,
        call=_cogview4_call,
        trunk=("transformer_blocks",),
        streams=(Carried(x=At(0), h=At(0), y=At(0)),),
    ),
    Entry(
        name="cosmos",
        model="CosmosTransformer3DModel",
        build=_cosmos,
        call=_cosmos_call,
        trunk=("transformer_blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="dream_lite",
        model="DreamLiteTransformer2DModel",
        build=_dream_lite,
        call=_dream_lite_call,
        trunk=("transformer_blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
        timestep=None,
        config={"streams": 1, "num_steps": STEPS},  # a part of a U-Net, which alone has the timestep
    ),
    Entry(
        name="ernie_image",
        model="ErnieImageTransformer2DModel",
        build=_ernie_image,
        call=_ernie_image_call,
        trunk=("layers",),
        # Image and text, tokens first; the text is dropped only after the output layer.
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="flux3",
        model="Flux3Transformer2DModel",
        build=_flux3,
        call=_flux3_call,
        # `mode_blocks` and `txt_mode_blocks` refine image and text apart, before they meet (5 and 28 blocks in full).
        trunk=("single_transformer_blocks",),
        streams=(Carried(x=At("hidden_states"), h=At(1), y=At(1)),),
    ),
    Entry(
        name="hidream_image",
        model="HiDreamImageTransformer2DModel",
        build=_hidream_image,
        call=_hidream_image_call,
        trunk=("double_stream_blocks", "single_stream_blocks"),
        # Behind the 16 tokens of the image: those of T5 and of Llama.
        streams=(Carried(x=At("hidden_states"), h=At(0), y=At(length=16)),),
        timestep="timesteps",
        fullgraph=False,
        refused="Dynamo broke the model's graph",  # the experts' tokens are counted on the host in every block
    ),
    Entry(
        name="hunyuan_image",
        model="HunyuanImageTransformer2DModel",
        build=_hunyuan_image,
        call=_hunyuan_image_call,
        trunk=("transformer_blocks", "single_transformer_blocks"),
        streams=(Carried(x=At(0), h=At(0), y=At(0)),),
    ),
    Entry(
        name="joyimage_edit",
        model="JoyImageEditTransformer3DModel",
        build=_joyimage_edit,
        call=_joyimage_edit_call,
        trunk=("double_blocks",),
        streams=(Carried(x=At("hidden_states"), h=At(0), y=At(0)),),
    ),
    Entry(
        name="kandinsky5",
        model="Kandinsky5Transformer3DModel",
        build=_kandinsky5,
        call=_kandinsky5_call,
        trunk=("visual_transformer_blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
    Entry(
        name="kandinsky6",
        model="Kandinsky6Transformer3DModel",
        build=_kandinsky6,
        call=_kandinsky6_call,
        trunk=("visual_transformer_blocks",),
        # The video and its sound.
        streams=(Carried(x=At(0), h=At(0), y=At(0)), Carried(x=At(1), h=At(1), y=At(1))),
    ),
    Entry(
        name="kandinsky6_sr",
        model="Kandinsky6SRTransformer3DModel",
        build=_kandinsky6_sr,
        call=_kandinsky6_sr_call,
        trunk=("visual_transformer_blocks",),
        streams=(Carried(x=At(0), h=At(), y=At()),),
    ),
)
