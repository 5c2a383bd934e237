from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.registry import Registry
from edgeloop.errors import ConfigError, RejectedError, TransientError

ABSENT = "0" * 64


@pytest.fixture(params=["folder", "file-url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "registry"),
        "file-url": f"file://{tmp_path}/registry",
        "memory": f"memory://{tmp_path.name}",
    }[request.param]


def blob_file(registry: Registry, digest: str) -> Path:
    return Path(registry.url, "sha256", digest[:2], digest)


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=5000))
def test_what_was_put_comes_back_under_its_sha256(data: bytes) -> None:
    registry = Registry("memory://property")
    digest = registry.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert registry.get(digest) == data
    assert registry.size(digest) == len(data)
    assert registry.exists(digest)


def test_every_backend_stores_and_misses_alike(url: str) -> None:
    registry = Registry(url)
    assert not registry.exists(ABSENT)
    for read in (registry.get, registry.size):
        with pytest.raises(RejectedError, match=ABSENT) as caught:
            read(ABSENT)
        assert caught.value.code == "registry-missing"
    digest = registry.put(b"weights")
    assert registry.put(b"weights") == digest
    assert registry.get(digest) == b"weights"


def test_equal_urls_are_the_same_registry_in_another_process(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Registry(url).put(b"weights")
    copy = pickle.loads(pickle.dumps(Registry(url)))
    monkeypatch.chdir(tmp_path)
    assert copy.get(digest) == b"weights"


def test_a_relative_folder_stays_the_same_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = Registry("state/registry")
    digest = registry.put(b"weights")
    monkeypatch.chdir("/")
    assert registry.get(digest) == b"weights"
    assert Path(registry.url) == tmp_path / "state" / "registry"


@pytest.mark.parametrize("damage", [b"", b"weightz", b"weights and more"], ids=["empty", "flipped", "longer"])
def test_damage_is_never_served_and_putting_again_heals_it(tmp_path: Path, damage: bytes) -> None:
    registry = Registry(str(tmp_path))
    digest = registry.put(b"weights")
    blob_file(registry, digest).write_bytes(damage)
    with pytest.raises(RejectedError, match="damaged") as caught:
        registry.get(digest)
    assert caught.value.code == "registry-altered"
    registry.put(b"weights")
    assert registry.get(digest) == b"weights"


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    registry = Registry(str(tmp_path))
    for method in (registry.get, registry.exists, registry.size):
        with pytest.raises(RejectedError) as caught:
            method(digest)
        assert caught.value.code == "registry-digest"


def test_a_writer_killed_half_way_leaves_no_blob_and_its_rest_is_swept(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    data = b"x" * 100_000
    digest = hashlib.sha256(data).hexdigest()
    pid = os.fork()
    if pid == 0:  # the child dies at the moment between writing and naming
        Path.replace = lambda *_: os._exit(9)  # type: ignore[method-assign,assignment]  # a stand-in for the kill
        registry.put(data)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not registry.exists(digest)
    (left,) = (tmp_path / "incoming").iterdir()
    Registry(str(tmp_path))
    assert left.exists(), "it might belong to a writer that is alive"
    os.utime(left, (time.time() - 7200,) * 2)
    Registry(str(tmp_path))
    assert not left.exists()
    assert registry.put(data) == digest
    assert registry.get(digest) == data


def test_writers_of_the_same_blob_never_show_a_torn_one(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    digest = hashlib.sha256(data).hexdigest()
    registry, stop, torn = Registry(str(tmp_path)), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                registry.get(digest)
            except RejectedError as error:
                if error.code != "registry-missing":
                    torn.append(error)

    def write() -> None:
        for _ in range(15):
            blob_file(registry, digest).unlink(missing_ok=True)
            registry.put(data)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(3)]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert not torn


def test_a_full_disk_is_worth_a_retry_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientError, match="No space left") as caught:
        registry.put(b"weights")
    assert caught.value.code == "registry-unavailable"
    assert not list((tmp_path / "incoming").iterdir())


@pytest.mark.parametrize(
    "bad", ["", "nosuch://bucket/x", "/proc/version/registry"], ids=["empty", "scheme", "not-a-folder"]
)
def test_a_registry_that_cannot_be_used_names_the_field(bad: str) -> None:
    with pytest.raises(ConfigError, match="registry_url") as caught:
        Registry(bad)
    assert caught.value.code == "registry-url"
