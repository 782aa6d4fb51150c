"""The stand-in Hub itself: the real client makes, fills, reads, tags and breaks repositories over HTTP."""

import urllib.request

from tests.hub.standin import TOKEN, run_client

PROGRAM = """
    import sys, hashlib, pathlib, tempfile
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    api = HfApi()
    assert api.whoami()["name"] == "user"
    big, card = bytes(range(256)) * 4000, b"---\\nlicense: mit\\n---\\nHello\\n"
    for kind in ("model", "dataset"):
        url = api.create_repo("user/a", private=True, repo_type=kind, exist_ok=True)
        assert str(url).endswith("user/a") and url.repo_type == kind
        assert str(api.create_repo("user/a", repo_type=kind, exist_ok=True)) == str(url)
        def push(message, files, **more):
            adds = [CommitOperationAdd(name, content) for name, content in files.items()]
            return api.create_commit("user/a", adds, commit_message=message, repo_type=kind, **more)
        first = push("one", {"README.md": card, "x/w.safetensors": big, "x/small.json": b"{}", "x/empty.txt": b""})
        assert push("same", {"README.md": card, "x/w.safetensors": big}).oid == first.oid
        second = push("two", {"x/w.safetensors": big + b"1", "x/copy.bin": big}, parent_commit=first.oid)
        try:
            push("late", {"x/small.json": b"[]"}, parent_commit=first.oid)
        except HfHubHTTPError as error:
            assert error.response.status_code == 412
        else:
            raise SystemExit("no parent check")
        deletion = [CommitOperationDelete("x/small.json"), CommitOperationDelete("x/empty.txt")]
        third = api.create_commit("user/a", deletion, commit_message="three", repo_type=kind)
        api.create_tag("user/a", tag="v1", revision=first.oid, repo_type=kind)
        api.create_branch("user/a", branch="dev/x", revision="v1", repo_type=kind)
        titles = [commit.title for commit in api.list_repo_commits("user/a", repo_type=kind)]
        assert titles == ["three", "two", "one", "initial commit"]
        refs = api.list_repo_refs("user/a", repo_type=kind)
        assert {b.name: b.target_commit for b in refs.branches} == {"main": third.oid, "dev/x": first.oid}
        names = set(api.list_repo_files("user/a", repo_type=kind))
        assert names == {".gitattributes", "README.md", "x/w.safetensors", "x/copy.bin"}, names
        info = {f.path: f for f in api.list_repo_tree("user/a", recursive=True, revision="v1", repo_type=kind)}
        assert info["x/w.safetensors"].lfs.sha256 == hashlib.sha256(big).hexdigest() and info["x"].path == "x"
        [entry] = api.get_paths_info("user/a", ["x/copy.bin", "none"], repo_type=kind)
        assert entry.size == len(big)
        for revision, content in (("main", big + b"1"), ("v1", big), ("dev/x", big), (second.oid, big + b"1")):
            path = hf_hub_download("user/a", "x/w.safetensors", revision=revision, repo_type=kind)
            assert pathlib.Path(path).read_bytes() == content, revision
        folder = pathlib.Path(snapshot_download("user/a", revision="v1", repo_type=kind))
        assert folder.name == first.oid and (folder / "x/empty.txt").read_bytes() == b""
        found = api.repo_info("user/a", files_metadata=True, repo_type=kind)
        assert found.private and found.sha == third.oid and found.card_data["license"] == "mit"
        for call, kindred in (
            (lambda: api.repo_info("user/a", revision="no", repo_type=kind), RevisionNotFoundError),
            (lambda: api.repo_info("user/none", repo_type=kind), RepositoryNotFoundError),
            (lambda: HfApi(token=False).repo_info("user/a", repo_type=kind), RepositoryNotFoundError),
            (lambda: push("bad card", {"README.md": b"---\\n{:\\n---\\n"}), ValueError),
            (lambda: api.create_repo("other/a", repo_type=kind), HfHubHTTPError),
            (lambda: HfApi(token="wrong").repo_info("user/a", repo_type=kind), HfHubHTTPError),
        ):
            try:
                call()
            except kindred:
                continue
            raise SystemExit(f"no {kindred}")
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    (folder / "w.bin").write_bytes(big)
    api.upload_folder(repo_id="user/a", folder_path=folder, path_in_repo="up", commit_message="folder")
    api.create_repo("user/cut")
    push = lambda content: api.upload_file(repo_id="user/cut", path_or_fileobj=content, path_in_repo="w.bin")
    push(big + b"x")
    try:
        push(b"\\0" * 1000)
    except HfHubHTTPError as error:
        assert error.response.status_code == 500
    else:
        raise SystemExit("no 500")
    again = push(b"\\0" * 1000)
    path = pathlib.Path(hf_hub_download("user/cut", "w.bin", revision=again.oid))
    assert path.read_bytes() == b"\\0" * 1000
    old = hf_hub_download("user/cut", "w.bin", revision="v1")
    assert pathlib.Path(old).read_bytes() == big + b"x"
    api.delete_repo("user/cut")
    assert not api.repo_exists("user/cut")
"""


def test_the_real_client_pushes_to_it_and_pulls_from_it(hub, tmp_path):
    hub.cut("PUT /storage/.*user/cut", times=2)
    hub.fail("POST /api/models/user/cut/commit", nth=2)
    hub.cut("GET /user/cut/resolve", times=1)
    hub.before("POST .*user/cut/commit", lambda: hub.tag("user/cut", "v1"), nth=2)
    run_client(hub, PROGRAM, tmp_path, tmp_path / "up", token=TOKEN)
    for kind in ("model", "dataset"):
        titles = [commit.title for commit in hub.commits("user/a", kind=kind)]
        assert titles == ["folder"] * (kind == "model") + ["three", "two", "one", "initial commit"]
        assert hub.repo("user/a", kind).private
    assert hub.files("user/a")["up/w.bin"] == bytes(range(256)) * 4000
    uploads = hub.seen("PUT /storage/.*user/cut")
    assert [request.status for request in uploads] == [0, 0, 200, 200] and not any(r.authorised for r in uploads)
    assert [request.status for request in hub.seen("POST .*user/cut/commit")] == [200, 500, 200]
    cut, *rest = hub.seen("GET /user/cut/resolve")
    assert cut.status == 0 and [request.status for request in rest] == [200, 200]
    assert len(hub.seen("PUT /storage/.*user/a")) == 2                        # what is stored is not sent again


def test_a_part_of_a_file_can_be_asked_for(hub):
    hub.put("user/a", {"w.bin": bytes(range(100))})
    for asked, first, last in (("bytes=10-19", 10, 19), ("bytes=90-", 90, 99)):
        request = urllib.request.Request(f"{hub.url}/user/a/resolve/main/w.bin", headers={"Range": asked})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206 and answer.headers["Content-Range"] == f"bytes {first}-{last}/100"
            assert answer.read() == bytes(range(first, last + 1))
