"""Nothing secret is shown."""

from __future__ import annotations

import pytest
from helpers.servers import http_server
from helpers.shards import write_shards

from mmpretrain.data.errors import DataError
from mmpretrain.data.place import Remote, shown
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.redact import redact, redacted
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.data.sources import shards


@pytest.mark.parametrize(
    "text,safe",
    [
        ("https://me:hunter2@host/a.tar", "https://***@host/a.tar"),
        ("https://host/a.tar?X-Amz-Signature=abc%2F&part=12", "https://host/a.tar?X-Amz-Signature=***&part=12"),
        ("403, url='https://h/x?sig=s3cret' now", "403, url='https://h/x?sig=***' now"),
        ("pipe:curl -H 'Authorization: Bearer abc.def' https://u:p@h/x", "pipe:curl -H 'Authorization: Bearer ***' https://***@h/x"),
        ("pipe:get --token=abc x", "pipe:get --token=*** x"),
        ("s3://bucket/a/{000..012}.tar", "s3://bucket/a/{000..012}.tar"),
        ("https://h/a.tar?download=true", "https://h/a.tar?download=true"),
    ],
)
def test_addresses_are_shown_without_credentials(text, safe):
    assert redact(text) == safe and redact(safe) == safe


def test_configurations_keep_everything_else():
    config = {"data": {"train": ["https://u:p@h/a.tar", "scenes?n=200&seed=1"], "val": {"x": "s3://b/y.tar"}, "seed": 3}, "token": None}
    safe = redacted(config)
    assert safe["data"]["train"] == ["https://***@h/a.tar", "scenes?n=200&seed=1"]
    assert safe["data"]["val"] == {"x": "s3://b/y.tar"} and safe["data"]["seed"] == 3 and safe["token"] is None


def test_a_command_is_named_by_its_program_alone():
    assert shown("pipe:aws s3 cp s3://b/x --token abc -") == "pipe:aws ..."
    assert "hunter2" not in repr(Remote("https://me:hunter2@h/x.tar")) + str(Remote("https://me:hunter2@h/x.tar"))


def test_errors_of_servers_do_not_tell_credentials(tmp_path, own_cache):
    write_shards(tmp_path / "served", (2,))
    options = RemoteOptions(tries=2, deadline=120, timeout=60)
    with http_server(tmp_path / "served") as http:
        url = http.url("00000.tar?token=s3cret", user="me:hunter2")
        http.auth = "Basic bWU6aHVudGVyMg=="
        reader = ShardReader(shards(url, options=options), remote=options)
        assert len(reader) == 2
        http.auth = "other"
        messages = []
        for call in (lambda: shards(url, options=options), lambda: ShardReader(reader.paths, remote=options).read(0)):
            (own_cache / "shards" / reader.paths[0].cached).unlink(missing_ok=True)
            with pytest.raises(DataError, match="HTTP 401") as caught:
                call()
            messages.append(str(caught.value))
            assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)
    assert all("hunter2" not in text and "s3cret" not in text for text in messages)


def test_a_saved_address_without_its_credentials_says_so():
    with pytest.raises(DataError, match="credentials were removed when it was saved"):
        shards("https://***@host/a.tar")
