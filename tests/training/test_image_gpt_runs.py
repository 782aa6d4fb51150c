"""A run whose network transformers has too: stopped and resumed, it goes on from the files of transformers."""

import json
import shutil
from pathlib import Path

from transformers import ImageGPTForCausalImageModeling

from tests.training import runs

WORDS = ("--dataset digits --batch-size 16 --width 16 --layers 1 --attention-head-dim 8 --positions learned "
         "--save-every 3 --preview-images 0 --threads 1 --log-every 1").split()  # fmt: skip


def test_a_resumed_run_with_learned_positions_ends_in_the_same_bits(tmp_path: Path) -> None:
    # one run, and one that is left at step 3
    runs.train_here("autoregressive", tmp_path / "whole", "--max-steps", "6", words=WORDS)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for later in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(tmp_path / "resumed" / later)
    home = tmp_path / "resumed/checkpoints/step-00000003/model/network"
    assert {path.name for path in home.iterdir()} == {"config.json", "model.safetensors"}
    # the second goes on
    runs.train_here("autoregressive", tmp_path / "resumed", words=["--resume"])
    runs.assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    # the trained network in transformers
    index = json.loads((tmp_path / "resumed/model/model_index.json").read_text())
    assert index["network"] == ["transformers", "ImageGPTForCausalImageModeling"]
    _, found = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "resumed/model/network",
                                                              output_loading_info=True)  # fmt: skip
    assert not any(found.values())
