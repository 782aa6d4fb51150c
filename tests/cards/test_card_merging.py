"""Cards that somebody wrote: their text and keys stay, hfgen's are brought up to date, doubtful ones are left alone."""


import pytest
import yaml
from huggingface_hub import ModelCard

from hfgen.cards.metadata import BEGIN, END
from hfgen.cards.write import write_card
from hfgen.errors import ConfigError
from tests.cards.helpers import make_run


def test_what_somebody_wrote_stays_and_what_hfgen_wrote_is_brought_up_to_date(folder, tmp_path) -> None:
    theirs = {"name": "theirs", "results": [{
        "task": {"type": "other"}, "dataset": {"type": "x", "name": "X"}, "metrics": [{"type": "taste", "value": 3}],
    }]}  # fmt: skip
    head = {"license": "mit", "zebra": [1, {"two": None}], "tags": ["mine"], "model-index": [theirs]}
    before, after = "# My model\n\nWords --- with ``` of mine.\n\n", "\n\n## Mine too\n<b>as I like</b>\n"
    path = folder / "README.md"
    path.write_text(f"---\n{yaml.safe_dump(head)}---\n{before}")
    one, two = (make_run(tmp_path / name, {"hub": ["dataset"]}, dataset=f"owner/{name}") for name in ("one", "two"))
    text = write_card(folder, one, "owner/name").read_text()
    assert text.split("---\n", 2)[2].startswith(before + BEGIN) and text.endswith(f"{END}\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert found["model-index"][0] == theirs and len(found["model-index"]) == 2
    assert list(found)[:4] == sorted(head) and all(found[key] == head[key] for key in ("license", "zebra", "tags"))
    assert found["datasets"] == ["owner/one"] and found["library_name"] == "hfgen"
    path.write_text(text.replace("library_name: hfgen", "library_name: other") + after)
    text = write_card(folder, two, "owner/name").read_text()
    found = yaml.safe_load(text.split("---\n")[1])
    assert found["datasets"] == ["owner/two"] and found["library_name"] == "other" and "owner/one" not in text
    assert found["model-index"][0] == theirs and len(found["model-index"]) == 2
    assert before + BEGIN in text and text.endswith(END + "\n" + after) and text.count("# My model") == 1
    assert "\n# owner" not in text
    assert write_card(folder, two, "owner/name").read_text() == text
    text = write_card(folder, None, "owner/name").read_text()
    found = yaml.safe_load(text.split("---\n")[1])
    assert found["model-index"] == [theirs] and "datasets" not in found and text.endswith(END + "\n" + after)


@pytest.mark.parametrize(
    "text", ["Words.", "\n\nWords.\r\n", "---\r\nlicense: mit # ours\r\n---\r\n\r\nWords.\r\n", "---\n\n---\n", ""]
)
def test_any_card_is_written_once_and_then_stays_as_it_is(text: str, folder) -> None:
    path = folder / "README.md"
    path.write_bytes(text.encode())
    once = write_card(folder).read_bytes()
    changed = path.stat().st_mtime_ns
    assert write_card(folder).read_bytes() == once and path.stat().st_mtime_ns == changed
    assert (b"\r\n" in once) == ("\r\n" in text) and once.count(b"Words.") == text.count("Words.")
    assert ModelCard(once.decode()).data.library_name == "hfgen"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\na: [1\n---\nWords.", "is not the YAML"), ("---\n- a\n---\n", "is not the YAML"),
        ("---\nlicense: mit\n\nWords.", "does not end with one"), ("---\nmodel-index: 3\n---\n", "is not the YAML"),
        ("---\n1: 2\n---\n", "is not the YAML"), ("---\nx: !!python/object:os.x {}\n---\n", "is not the YAML"),
        (f"a\n{BEGIN}\n", "must each occur once"), (f"{END}\n{BEGIN}\n", "must each occur once"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", "must each occur once"),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_understood_is_left_as_it_is(text: str, message: str, folder) -> None:
    path = folder / "README.md"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_card(folder)
    assert path.read_text() == text
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        write_card(folder)
