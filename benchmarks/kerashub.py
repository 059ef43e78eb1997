"""Small KerasHub backbones with random weights, for what the library has to understand beyond Keras's own layers.

The variants cover the structures that the configurations of KerasHub's image backbones give: blocks of plain layers,
blocks inside custom layers, nested models, several outputs. Needs `pip install keras-hub`.

BACKBONES holds the convolutional networks and the networks built around convolutions, TRANSFORMERS the vision
transformers, in which only patch embeddings, necks and heads are convolutions. Each value builds a model; nothing is
downloaded.
"""

from collections.abc import Callable
from functools import partial

import keras
import keras_hub
from keras_hub.src.models.vae.vae_backbone import VAEBackbone  # not part of the public interface

hub = keras_hub.models
SHAPE = (64, 64, 3)
SMALL_SHAPE = (32, 32, 3)


def resnet(block_type: str, blocks=(2, 2), filters=(64, 16), strides=(1, 2), stem=(64,), shape=SHAPE, **config):
    return hub.ResNetBackbone(
        input_conv_filters=list(stem),
        input_conv_kernel_sizes=[7] if len(stem) == 1 else [3] * len(stem),
        stackwise_num_filters=list(filters),
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=list(strides),
        block_type=block_type,
        image_shape=shape,
        **config,
    )


def pyramid_resnet(block_type="bottleneck_block", shape=SHAPE, **config):
    """Four stages, P2 to P5, as the detection and segmentation networks want them."""
    return resnet(block_type, (1, 2, 1, 1), (64, 8, 16, 16), (1, 2, 2, 2), (8,), shape, **config)


def cspnet(stage_type: str, block_type: str, **config):
    config = {"stem_filters": 8, "stem_kernel_size": 3, "stem_strides": 2, "stem_padding": "same"} | config
    return hub.CSPNetBackbone(
        stackwise_depth=[1, 2, 1],
        stackwise_strides=[2, 2, 2],
        stackwise_num_filters=[16, 24, 32],
        block_type=block_type,
        stage_type=stage_type,
        image_shape=SHAPE,
        **config,
    )


def efficientnet(block_types: list[str], expansions: list[int], se_ratios: list[float], **config):
    stacks = len(block_types)
    return hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * stacks,
        stackwise_depth_coefficients=[1.0] * stacks,
        stackwise_kernel_sizes=[3, 5, 3, 3][:stacks],
        stackwise_num_repeats=[2, 2, 2, 1][:stacks],
        stackwise_input_filters=[8, 8, 16, 24][:stacks],
        stackwise_output_filters=[8, 16, 24, 32][:stacks],
        stackwise_expansion_ratios=expansions,
        stackwise_squeeze_and_excite_ratios=se_ratios,
        stackwise_strides=[1, 2, 2, 1][:stacks],
        stackwise_block_types=block_types,
        num_features=32,
        input_shape=SHAPE,
        **config,
    )


def mobilenet(se_ratios: list[list[float | None]], activation: str, **config):
    return hub.MobileNetBackbone(
        stackwise_expansion=[[24, 32], [48, 48]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=se_ratios,
        stackwise_activation=[["relu", "relu"], [activation, activation]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=64,
        last_layer_filter=48,
        input_activation=activation,
        output_activation=activation,
        image_shape=SHAPE,
        **config,
    )


def mobilenet_v5(blocks: list[list[dict]], **config):
    """`blocks` lists the blocks of each stage by what differs from a 3x3 universal inverted residual of 16 channels."""
    default = {
        "block_types": "uir",
        "num_filters": 16,
        "strides": 1,
        "act_layers": "relu",
        "exp_ratios": 2.0,
        "se_ratios": 0.0,
        "dw_kernel_sizes": 3,
        "dw_start_kernel_sizes": 0,
        "dw_end_kernel_sizes": 0,
        "exp_kernel_sizes": 3,
        "pw_kernel_sizes": 1,
        "num_heads": 2,
        "key_dims": 8,
        "value_dims": 8,
        "kv_strides": 1,
        "use_cpe": False,
    }
    stackwise = {f"stackwise_{k}": [[(default | b)[k] for b in stage] for stage in blocks] for k in default}
    return hub.MobileNetV5Backbone(
        **stackwise,
        stackwise_num_blocks=[len(stage) for stage in blocks],
        num_features=32,
        msfa_output_resolution=8,
        image_shape=SHAPE,
        **config,
    )


EDGE = {"block_types": "er", "strides": 2}
WIDER = {"num_filters": 24, "strides": 2, "dw_start_kernel_sizes": 3, "dw_kernel_sizes": 5}
SAME = {"num_filters": 24}
MULTI_QUERY = {"block_types": "mqa", "num_filters": 24}


def hgnet(light: bool, affine: bool, **config):
    return hub.HGNetV2Backbone(
        depths=[1, 2, 1],
        embedding_size=16,
        hidden_sizes=[16, 24, 32],
        stem_channels=[3, 8, 16],
        hidden_act="relu",
        use_learnable_affine_block=affine,
        stackwise_stage_filters=[(16, 8, 16, 1, 2, 3), (16, 8, 24, 2, 2, 3), (24, 16, 32, 1, 2, 5)],
        apply_downsample=[False, True, True],
        use_lightweight_conv_block=[False, light, light],
        image_shape=SHAPE,
        **config,
    )


def d_fine():
    return hub.DFineBackbone(
        backbone=hgnet(True, True, out_features=["stage2", "stage3"]),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_labels=4,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=SHAPE[:2],
        feat_strides=[8, 16],
        num_feature_levels=2,
        hidden_dim=16,
        encoder_in_channels=[24, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage2", "stage3"],
        image_shape=SHAPE,
        seed=0,
    )


def mit():
    return hub.MiTBackbone(
        layerwise_depths=[1, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
        image_shape=SHAPE,
    )


def basnet(block_type: str):
    encoder = pyramid_resnet(block_type, shape=(None, None, 3))
    return hub.BASNetBackbone(image_encoder=encoder, num_classes=1, image_shape=SHAPE, projection_filters=8)


def deeplab(encoder: Callable[[], keras.Model], **config):
    return hub.DeepLabV3Backbone(
        image_encoder=encoder(),
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 3],
        projection_filters=8,
        image_shape=SHAPE,
        **config,
    )


def retinanet(use_p5: bool, batch_norm: bool, max_level: int = 7):
    return hub.RetinaNetBackbone(
        image_encoder=pyramid_resnet(),
        min_level=3,
        max_level=max_level,
        use_p5=use_p5,
        use_fpn_batch_norm=batch_norm,
        image_shape=SHAPE,
    )


def vae(sampler: str):
    return VAEBackbone(
        encoder_num_filters=[32, 64],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[64, 32],
        decoder_num_blocks=[1, 1],
        sampler_method=sampler,
        sample_channels=8,
    )


def dinov2(shape=SMALL_SHAPE, **config):
    return hub.DINOV2Backbone(
        patch_size=8,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=shape,
        position_embedding_shape=shape,
        **config,
    )


def depth_anything():
    return hub.DepthAnythingBackbone(
        image_encoder=dinov2(SHAPE, apply_layernorm=True),
        reassemble_factors=[2, 0.5],
        neck_hidden_dims=[8, 16],
        fusion_hidden_dim=16,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2"],
    )


def vit_det():
    return hub.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        image_shape=SMALL_SHAPE,
        patch_size=4,
        num_output_channels=8,
        window_size=2,
    )


def sam():
    sizes = {"hidden_size": 8, "image_embedding_size": (8, 8), "input_image_size": SMALL_SHAPE[:2]}
    return hub.SAMBackbone(
        image_encoder=vit_det(),
        prompt_encoder=keras_hub.layers.SAMPromptEncoder(**sizes, mask_in_channels=8),
        mask_decoder=keras_hub.layers.SAMMaskDecoder(
            num_layers=1,
            hidden_size=8,
            intermediate_dim=16,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    )


ENCODER = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "image_shape": SMALL_SHAPE}

BACKBONES: dict[str, Callable[[], keras.Model]] = {
    "ResNet v1 basic": partial(resnet, "basic_block"),
    "ResNet v1 bottleneck": partial(resnet, "bottleneck_block", stem=(8,)),
    "ResNet v2 basic": partial(resnet, "basic_block", use_pre_activation=True),
    "ResNet v2 bottleneck": partial(resnet, "bottleneck_block", stem=(8,), use_pre_activation=True),
    "ResNet vd basic": partial(resnet, "basic_block_vd", stem=(8, 8, 16)),
    "ResNet vd bottleneck": partial(resnet, "bottleneck_block_vd", stem=(8, 8, 16)),
    "VGG": lambda: hub.VGGBackbone([1, 2], [8, 16], SMALL_SHAPE),
    "DenseNet": lambda: hub.DenseNetBackbone([2, 3, 2], SMALL_SHAPE, growth_rate=8),
    "Xception": lambda: hub.XceptionBackbone(
        [[8, 16], [16, 24], [24, 24], [24, 32]], [True, True, False, False], SHAPE
    ),
    "CSPNet csp, dark": partial(
        cspnet,
        "csp",
        "dark_block",
        down_growth=True,
        bottle_ratio=[0.5, 1.0],
        block_ratio=[1.0, 0.5],
        expand_ratio=[2.0, 1.0],
    ),
    "CSPNet csp, bottleneck": partial(
        cspnet,
        "csp",
        "bottleneck_block",
        cross_linear=True,
        stem_strides=4,
        stem_pooling="max",
        bottle_ratio=[0.5],
        expand_ratio=[2.0],
    ),
    "CSPNet csp, grouped bottleneck": partial(
        cspnet, "csp", "bottleneck_block", groups=4, avg_down=True, expand_ratio=[2.0]
    ),
    "CSPNet dark, dark": partial(cspnet, "dark", "dark_block", bottle_ratio=[0.5]),
    "CSPNet dark, edge": partial(cspnet, "dark", "edge_block", activation="silu"),
    "CSPNet cs3, dark": partial(
        cspnet, "cs3", "dark_block", stem_filters=[8, 16], bottle_ratio=[0.5], block_ratio=[0.5]
    ),
    "CSPNet cs3, edge": partial(cspnet, "cs3", "edge_block", activation="silu", avg_down=True, block_ratio=[0.5]),
    "EfficientNet v1": partial(efficientnet, ["v1"] * 4, [1, 6, 6, 6], [0.25] * 4, use_depth_divisor_as_min_depth=True),
    "EfficientNet lite": partial(efficientnet, ["v1"] * 4, [1, 6, 6, 6], [0.0] * 4, activation="relu6"),
    "EfficientNet v2": partial(
        efficientnet, ["fused", "fused", "unfused", "unfused"], [1, 4, 4, 6], [0.0, 0.0, 0.25, 0.25]
    ),
    "EfficientNet v2, fused squeeze and excite": partial(
        efficientnet, ["fused", "fused", "fused", "unfused"], [1, 4, 4, 1], [0.25, 0.25, 0.0, 0.0], dropout=0.0
    ),
    "EfficientNet v2, cba": partial(
        efficientnet, ["cba", "fused", "unfused", "unfused"], [1, 4, 4, 6], [0.0, 0.0, 0.25, 0.25]
    ),
    "EfficientNet edge": partial(
        efficientnet,
        ["fused", "fused", "unfused", "unfused"],
        [4, 8, 8, 8],
        [0.0] * 4,
        activation="relu",
        stackwise_force_input_filters=[8, 0, 0, 0],
        stackwise_nores_option=[True, False, False, False],
    ),
    "MobileNet v3 small": partial(
        mobilenet,
        [[None, None], [0.25, 0.25]],
        "hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
    ),
    "MobileNet v3 large": partial(
        mobilenet,
        [[0.25, None], [0.3, 0.25]],
        "hard_swish",
        depthwise_filters=16,
        depthwise_stride=1,
        depthwise_residual=True,
    ),
    "MobileNetV5, batch norm": partial(
        mobilenet_v5, [[EDGE], [WIDER, SAME, SAME]], norm_layer="batch_norm", act_layer="relu", use_msfa=False
    ),
    "MobileNetV5, RMS norm": partial(mobilenet_v5, [[EDGE], [WIDER, SAME, SAME]], use_msfa=False),
    "MobileNetV5, layer scale and drop path": partial(
        mobilenet_v5,
        [[EDGE], [WIDER, SAME, {**SAME, "dw_kernel_sizes": 0, "dw_end_kernel_sizes": 3}]],
        layer_scale_init_value=0.1,
        drop_path_rate=0.1,
        use_msfa=False,
    ),
    "MobileNetV5, multi-query attention": partial(
        mobilenet_v5, [[EDGE], [WIDER, MULTI_QUERY, {**MULTI_QUERY, "kv_strides": 2, "use_cpe": True}]], use_msfa=False
    ),
    "MobileNetV5, multi-scale fusion": partial(mobilenet_v5, [[EDGE], [WIDER, SAME], [{**SAME, "strides": 2}]]),
    "HGNetV2": partial(hgnet, False, False),
    "HGNetV2, light": partial(hgnet, True, False),
    "HGNetV2, light and learnable affine": partial(hgnet, True, True),
    "MiT": mit,
    "SegFormer": lambda: hub.SegFormerBackbone(image_encoder=mit(), projection_filters=16),
    "DeepLabV3": partial(deeplab, pyramid_resnet),
    "DeepLabV3+": partial(deeplab, pyramid_resnet, low_level_feature_key="P2"),
    "DeepLabV3+, ResNet v2 encoder": partial(
        deeplab, partial(pyramid_resnet, use_pre_activation=True), low_level_feature_key="P2"
    ),
    "RetinaNet": partial(retinanet, False, False),
    "RetinaNet, P5 and batch norm": partial(retinanet, True, True),
    "RetinaNet, no coarser levels": partial(retinanet, False, False, max_level=5),
    "BASNet": partial(basnet, "bottleneck_block"),
    "BASNet, vd encoder": partial(basnet, "basic_block_vd"),
    "VAE, mode": partial(vae, "mode"),
    "VAE, sample": partial(vae, "sample"),
    "D-FINE": d_fine,
}

TRANSFORMERS: dict[str, Callable[[], keras.Model]] = {
    "ViT": lambda: hub.ViTBackbone(mlp_dim=32, **ENCODER),
    "ViT, no class token": lambda: hub.ViTBackbone(mlp_dim=32, use_class_token=False, **ENCODER),
    "DeiT": lambda: hub.DeiTBackbone(intermediate_dim=32, **ENCODER),
    "Swin": lambda: hub.SwinTransformerBackbone(SMALL_SHAPE, 8, (2, 2), (1, 2), window_size=4, patch_size=2),
    "DINOv2": dinov2,
    "DINOv2, SwiGLU and registers": partial(dinov2, use_swiglu_ffn=True, num_register_tokens=2, drop_path_rate=0.1),
    "DINOv3": lambda: hub.DINOV3Backbone(intermediate_dim=32, **ENCODER),
    "ViTDet": vit_det,
    "SAM": sam,
    "DepthAnything": depth_anything,
    "CLIP vision": lambda: hub.CLIPVisionEncoder(intermediate_dim=32, **ENCODER),
    "SigLIP vision": lambda: hub.SigLIPVisionEncoder(intermediate_dim=32, **ENCODER),
}
