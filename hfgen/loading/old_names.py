"""State-dict keys of old checkpoints."""

import re
from collections.abc import Mapping

import torch

OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION_KEY = re.compile(r"(attentions\.\d+\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")


def rename_old_attention_keys(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict with the keys of today: `to_q, to_k, to_v, to_out.0` for `query, key, value, proj_attn`.

    Tensors keep their shape and their order.
    """

    def current(key: str) -> str:
        return OLD_ATTENTION_KEY.sub(lambda match: match[1] + OLD_ATTENTION_NAMES[match[2]], key)

    return {current(key): tensor for key, tensor in state_dict.items()}
