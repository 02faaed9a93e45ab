"""The text half of composite models trains, the rest is frozen."""

from __future__ import annotations

import pytest

from minimind.model.text_half import freeze_other_parts
from tests.parity.families import tiny_config, tiny_model

# In git and phi4_multimodal the parts for other inputs are inside the backbone.
COMPOSITE = {
    "fuyu": {"model.vision_embed_tokens": 2},
    "gemma3": {"model.vision_tower": 48, "model.multi_modal_projector": 2},
    "git": {"git.image_encoder": 39, "git.visual_projection": 4},
    "got_ocr2": {"model.vision_tower": 37, "model.multi_modal_projector": 4},
    "phi4_multimodal": {"model.embed_tokens_extend": 147},
}


@pytest.mark.parametrize("model_type", COMPOSITE)
def test_parts_for_images_are_frozen_and_counted(model_type):
    model = tiny_model(tiny_config(model_type))
    assert freeze_other_parts(model) == COMPOSITE[model_type]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == sum(COMPOSITE[model_type].values())
    assert all(name.startswith(tuple(COMPOSITE[model_type])) for name in frozen)
    # Frozen already: nothing more to say.
    assert freeze_other_parts(model) == {}


@pytest.mark.parametrize("model_type", ["llama", "dbrx", "qwen3_5_text", "bart", "whisper"])
def test_a_model_of_text_alone_trains_whole(model_type):
    """Dbrx has configurations in its configuration, of attention and experts; Whisper's decoder reads text."""
    model = tiny_model(tiny_config(model_type))
    constants = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert freeze_other_parts(model) == {}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == constants


def test_a_tied_head_stays():
    model = tiny_model(tiny_config("gemma3"))
    freeze_other_parts(model)
    assert model.get_output_embeddings().weight.requires_grad
    assert model.get_input_embeddings().weight.requires_grad
