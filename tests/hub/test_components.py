"""Hub ids of one component: an autoencoder alone, and a whole CLIP model in one flat folder, for latent diffusion."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from hfgen.models.text import build_tokenizer, token_ids
from tests.hub.standin import Standin, run_client

WORDS = build_tokenizer(["a large filled red circle at the top left on white"])
TEXTS = ["a red circle", "white"]
PROGRAM = """
    import sys
    import torch
    from safetensors.torch import save_file
    from hfgen.models.text import token_ids
    from hfgen.training.denoiser import load_text
    from hfgen.training.engine.latents import load_autoencoder

    encoder, tokenizer = load_text("stock/clip")
    x = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    with torch.no_grad():
        features = encoder(input_ids=token_ids(tokenizer, sys.argv[2:])).last_hidden_state
        latents = load_autoencoder("stock/vae").to_latents(x)
    save_file({"features": features, "latents": latents}, sys.argv[1])
"""


def test_an_autoencoder_and_a_clip_model_alone_are_read_by_their_hub_ids(hub: Standin, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae: Any = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2,
    ).eval()  # fmt: skip
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=9, bos_token_id=0, eos_token_id=1, **sizes)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    clip: Any = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    for name, parts in (("vae", (vae,)), ("clip", (clip, WORDS))):
        for part in parts:
            part.save_pretrained(tmp_path / name)
        others = {"README.md": b"A card\n", "pytorch_model.bin": b"x", "evil.py": b"raise SystemExit\n"}
        hub.put(f"stock/{name}", tmp_path / name)
        hub.put(f"stock/{name}", others)
    assert not (tmp_path / "vae" / "model_index.json").exists()
    run_client(hub, PROGRAM, tmp_path, tmp_path / "found.safetensors", *TEXTS)
    found = load_file(tmp_path / "found.safetensors")
    x = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    WORDS.model_max_length = 9                                      # what the encoder has positions for
    with torch.no_grad():
        expected = clip.text_model(input_ids=token_ids(WORDS, TEXTS)).last_hidden_state
        latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(found["features"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["latents"], latents, atol=1e-5, rtol=0)
    fetched = {request.path.rsplit("/", 1)[1] for request in hub.seen("GET /stock/.*/resolve/")}
    assert fetched == {"config.json", "model.safetensors", "diffusion_pytorch_model.safetensors", "tokenizer.json",
                       "tokenizer_config.json"}
