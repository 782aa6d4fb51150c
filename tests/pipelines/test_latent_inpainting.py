"""Inpainting in latents: what lies outside of the mask stays, whatever the mask is given as."""

import numpy as np
import torch
from PIL import Image

from tests.helpers import seed
from tests.pipelines.test_pipeline_latent_diffusion import make


def test_each_image_may_have_its_own_mask_as_a_picture_or_a_tensor() -> None:
    pipe, x = make(), torch.rand(2, 3, 8, 8)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :, 4:] = masks[1, :, :4] = 1
    pictures = [Image.fromarray(np.uint8(mask[0].numpy() * 255)) for mask in masks]
    made = [pipe(num_steps=4, image=x, mask=mask, generator=seed(0), output_type="pt").images
            for mask in (masks, masks.bool(), pictures)]  # fmt: skip
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    kept = masks.expand(-1, 3, -1, -1) == 0
    torch.testing.assert_close(made[0][kept], x[kept], atol=1e-6, rtol=0)
    assert ((made[0] - x)[~kept].abs() > 0.01).float().mean() > 0.9
    one = pipe(num_steps=4, image=x, mask=pictures[1], generator=seed(0), output_type="pt").images
    assert torch.equal(one[1], made[0][1]) and not torch.equal(one[0], made[0][0])


def test_inpainting_keeps_every_pixel_outside_the_mask_and_its_latents() -> None:
    pipe, x = make(), torch.rand(2, 3, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    images = pipe(num_steps=6, image=x, mask=mask, generator=seed(0), output_type="pt").images
    torch.testing.assert_close(images[..., :4], x[..., :4], atol=1e-6, rtol=0)
    assert (images[..., 4:] - x[..., 4:]).abs().amax((1, 2, 3)).min() > 0.05
    states = list(pipe.states(num_steps=6, image=x, mask=mask, generator=seed(0)))
    with torch.no_grad():
        z = pipe.vae.to_latents(2 * x - 1)
    assert len(states) == 7
    torch.testing.assert_close(states[-1][..., :2], z[..., :2], atol=1e-5, rtol=0)
    other = list(pipe.states(num_steps=6, image=x, mask=mask, generator=seed(1)))[-1]
    assert (other - states[-1])[..., 2:].abs().min() > 0 and torch.equal(other[..., :2], states[-1][..., :2])
