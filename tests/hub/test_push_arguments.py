"""Arguments of `push_to_hub` and `save_pretrained(push_to_hub=True)`, as diffusers and transformers have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.models import digest, make
from tests.hub.standin import TOKEN, USER, Standin
from tests.hub.worker import Ask, worker

SECOND = "hf_canary_of_another_user"
HEAD = """
from pathlib import Path
import hfgen
from hfgen.errors import HfgenError
from tests.hub.models import digest, make, make_component
pipe = make("gan")
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Standin]:
    """Return a Hub of two users for all tests of this file, which give their repositories names of their own."""
    with Standin(tokens={TOKEN: USER, SECOND: "second"}) as standin:
        yield standin


@pytest.fixture(scope="module")
def ask(hub: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Return a function that runs code that sets `answer`, in another process."""
    with worker(hub, tmp_path_factory.mktemp("home")) as ask:
        yield ask


def pushed(ask: Ask, line: str, token: str | None = TOKEN) -> str:
    """Return the text of the published commit that `line` makes of the GAN `pipe`, or of its error."""
    code = f"""{HEAD}
try:
    answer = str({line})
except HfgenError as error:
    answer = f"error: {{error}}"
"""
    return ask(code, token)


def test_a_token_given_in_the_call_takes_the_place_of_the_stored_one(ask: Ask, hub: Standin) -> None:
    assert "published second/mine (private)" in pushed(ask, f"pipe.push_to_hub('second/mine', token={SECOND!r})")
    assert "published second/net (private)" in pushed(
        ask, f"make_component('UNet').push_to_hub('second/net', token={SECOND!r})", token=None
    )
    assert "second/x: the Hub refuses it with 403" in pushed(ask, "pipe.push_to_hub('second/x')")
    assert "not logged in" in pushed(ask, "pipe.push_to_hub('user/x')", token=None)
    assert hub.repo("second/mine").private and ("model", "second/x") not in hub.repos


def test_the_token_given_in_the_call_is_never_published(ask: Ask, hub: Standin) -> None:
    hub.put("second/leak", {"README.md": f"my token is {SECOND}".encode()}, private=True)
    said = pushed(ask, f"pipe.push_to_hub('second/leak', token={SECOND!r})")
    assert "README.md holds your access token" in said and len(hub.commits("second/leak")) == 2


def test_a_name_without_an_owner_is_a_repository_of_the_user(ask: Ask, hub: Standin) -> None:
    assert "published user/alone (private)" in pushed(ask, "pipe.push_to_hub('alone')")
    assert "published second/alone (private)" in pushed(ask, f"pipe.push_to_hub('alone', token={SECOND!r})")
    assert hub.repo("user/alone").private and hub.repo("second/alone").private


@pytest.mark.parametrize(
    ("word", "visibility"), [("", "private"), ("private=True", "private"), ("private=None", "private"),
                             ("private=False", "public")],
)  # fmt: skip
def test_only_private_false_makes_a_public_repository(ask: Ask, hub: Standin, word: str, visibility: str) -> None:
    name = f"user/is-{word.replace('=', '-') or 'default'}".lower()
    assert f"published {name} ({visibility})" in pushed(ask, f"pipe.push_to_hub({name!r}, {word})")
    assert hub.repo(name).private == (visibility == "private")


def test_a_revision_is_a_branch_that_is_created_and_the_main_branch_stays(ask: Ask, hub: Standin) -> None:
    pushed(ask, "pipe.push_to_hub('user/branches')")
    before = hub.commits("user/branches")
    line = "make('vae').push_to_hub('user/branches', revision='other', commit_message='Another')"
    said = pushed(ask, line)
    assert "published user/branches" in said and "unchanged" in pushed(ask, line)
    assert hub.commits("user/branches") == before
    assert [one.title for one in hub.commits("user/branches", "other")] == ["Another", *[one.title for one in before]]
    loaded = f"""{HEAD}
answer = [digest(hfgen.AutoPipeline.from_pretrained("user/branches", revision=name)) for name in ("main", "other")]
"""
    assert ask(loaded) == [digest(make("gan")), digest(make("vae"))]


def test_a_request_leaves_the_branches_as_they_are_and_is_read_back(ask: Ask, hub: Standin) -> None:
    pushed(ask, "pipe.push_to_hub('user/asked')")
    before = hub.commits("user/asked")
    said = pushed(ask, "make('gan', seed=1).push_to_hub('user/asked', create_pr=True)")
    assert f"request   {hub.url}/user/asked/discussions/1" in said and "every bit is the same" in said
    assert hub.commits("user/asked") == before and len(hub.commits("user/asked", "refs/pr/1")) == len(before) + 1
    theirs = f"make('gan', seed=2).push_to_hub('user/open', create_pr=True, private=False, token={SECOND!r})"
    pushed(ask, "pipe.push_to_hub('user/open', private=False)")
    assert f"request   {hub.url}/user/open/discussions/1" in pushed(ask, theirs)
    component = "make_component('UNet').push_to_hub('user/part', create_pr=True)"
    assert f"request   {hub.url}/user/part/discussions/1" in pushed(ask, component)


@pytest.mark.parametrize("what", ["make('gan')", "make_component('DCGANGenerator')", "make_component('DDPMScheduler')"])
def test_saving_with_push_to_hub_publishes_the_model_alone_and_not_the_other_files_of_the_folder(
    ask: Ask, hub: Standin, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / f"model-{len(hub.repos)}"
    code = f"""{HEAD}
folder, part = Path({str(folder)!r}), {what}
part.save_pretrained(folder)
(folder / "secret.txt").write_text("mine")
part.save_pretrained(folder, push_to_hub=True, commit_message="Saved")
part.save_pretrained(folder, push_to_hub=True, repo_id="user/named-" + folder.name, private=False)
answer = sorted(file.name for file in folder.iterdir())
"""
    assert "secret.txt" in ask(code)
    for name, private in ((f"user/{folder.name}", True), (f"user/named-{folder.name}", False)):
        files = hub.files(name)
        assert "README.md" in files and "secret.txt" not in files and hub.repo(name).private is private
        on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        counted = {"config.json"} - on_disk                              # by which the Hub counts downloads
        assert set(files) - {".gitattributes", "README.md"} - counted == on_disk - {"secret.txt"}
    assert hub.commits(f"user/{folder.name}")[0].title == "Saved"


def test_a_variant_is_published_alone(ask: Ask, hub: Standin) -> None:
    pushed(ask, "pipe.push_to_hub('user/half', variant='fp16')")
    assert "generator/diffusion_pytorch_model.fp16.safetensors" in hub.files("user/half")
    assert "generator/diffusion_pytorch_model.safetensors" not in hub.files("user/half")


def test_files_in_the_cache_are_downloaded_again_if_that_is_requested(ask: Ask, hub: Standin) -> None:
    pushed(ask, "pipe.push_to_hub('user/cached')")
    code = HEAD + "answer = digest(hfgen.{}.from_pretrained('user/cached'{}))"
    for loader in ("GANPipeline", "AutoPipeline"):
        for words in ("", "", ", force_download=True"):
            hub.requests.clear()
            assert ask(code.format(loader, words)) == digest(make("gan"))
        assert hub.seen("GET .*user/cached/resolve/.*safetensors")
    hub.requests.clear()
    ask(code.format("GANPipeline", ""))
    assert not hub.seen("GET .*user/cached/resolve/.*safetensors")
