"""Generated images of earlier steps, shown to a discriminator again so that it does not forget them."""

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn

from hfgen.data.order import derive_seed
from hfgen.training.engine.noise import Noise


class ImagePool(nn.Module):
    """A pool of `size` images (C, H, W) (Shrivastava et al. 2017, section 2.3; 50 in Zhu et al. 2017, section 4).

    Each image of a batch gets a place of its own, drawn at random: an empty place takes it; from a full one, with
    probability 1/2, the image there comes back in exchange. So nothing depends on the order within a batch, and the
    result of a process and micro-batch is a function of (seed, step, row of the global batch). The buffers are part of
    every checkpoint, the same on all processes, and are restored with all others after a step that was not finite; an
    image that is not finite itself is never kept.
    """

    images: Tensor
    held: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the images in [-1, 1] that replace x (b, C, H, W), the rows of this process and micro-batch."""
        # gather images of all processes, and the places that they meet
        rows, first = everyones_rows(noise)
        everyones = gather(x)                                                            # (P b, C, H, W)
        places, exchanged = self.meetings(noise)
        met = torch.nonzero(places[rows] < self.size).flatten()                          # known without the device
        place, exchange = places[rows][met].to(x.device), exchanged[rows][met].to(x.device)
        met = met.to(x.device)
        # keep the new images, unless they stay in the batch
        new, old, exchange = everyones[met], self.images[place], exchange & self.held[place]
        finite = new.isfinite().flatten(1).all(1)                                        # NaN would stay for long
        stored = (exchange | ~self.held[place]) & finite
        self.images[place] = torch.where(stored.view(-1, 1, 1, 1), new, old)
        self.held[place] |= finite
        # take the old ones in exchange
        shown = everyones.clone()
        shown[met] = torch.where(exchange.view(-1, 1, 1, 1), old, new)
        return shown[first : first + len(x)]

    def meetings(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the place that each row of the global batch meets, and whether it is exchanged if that is full.

        (B,) int64 and (B,) bool. Places are all different numbers from 0 on; from `size` on there are none.
        """
        generator = torch.Generator().manual_seed(derive_seed(*noise.key, "history"))
        places = torch.randperm(max(self.size, noise.batch_size), generator=generator)[: noise.batch_size]
        return places, torch.rand(noise.batch_size, generator=generator) < 0.5


def everyones_rows(noise: Noise) -> tuple[Tensor, int]:
    """Return the rows of the global batch that all processes hold now, in order, and where this one's begin there.

    (P b,) int64 from 0 on, for P processes with b rows each.
    """
    processes, number = PartialState().num_processes, noise.rows.stop - noise.rows.start
    share = noise.batch_size // processes
    rank, offset = divmod(noise.rows.start, share)
    starts = torch.arange(processes) * share + offset
    return (starts[:, None] + torch.arange(number)).flatten(), rank * number
