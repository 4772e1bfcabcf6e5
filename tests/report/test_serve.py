"""The page while runs go on: what the server answers, to whom, and what it refuses."""

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from labelemb.errors import InputError
from labelemb.report.serve import LivePage, make_server
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
Ask = Callable[..., tuple[int, str]]


@contextmanager
def serving(folder: Path, bind: str = "127.0.0.1") -> Iterator[tuple[str, Ask]]:
    """The path of the page, and a way to ask: method, path, headers -> status, text."""
    server, address = make_server(LivePage([folder]), bind, 0)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    with server:
        yield urlsplit(address).path, ask
        server.shutdown()
        thread.join()


def test_the_page_grows_with_its_runs(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with serving(tmp_path / "runs") as (path, ask):
        assert path == "/"
        assert "Nothing to show yet: no runs" in ask("/")[1]
        versions = [ask("/version")[1]]
        run = make_run("emb", 0, done=3)
        versions.append(ask("/version")[1])
        status, text = ask("/")
        assert (status, "at epoch 3 of 30" in text) == (200, True)
        assert versions[-1] in text  # what the page compares with what it asks for
        run.append_metrics({"epoch": 4, "test_error": 0.5})
        versions.append(ask("/version")[1])
        assert "at epoch 4 of 30" in ask("/")[1]
    assert len(set(versions)) == 3


def test_serving_writes_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    before = sorted(tmp_path.rglob("*"))
    with serving(tmp_path) as (path, ask):
        assert ask(path)[0] == 200
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_run_is_told_on_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    (make_run("emb", 0).path / "config.yaml").write_text("[")
    with serving(tmp_path) as (path, ask):
        status, text = ask(path)
    assert (status, "is damaged" in text) == (200, True)


@pytest.mark.parametrize("path", ["/summary.json", "/../../etc/passwd", "/?a=b", "/version/", "http://x/"])
def test_other_paths_are_not_there(tmp_path: Path, path: str) -> None:
    with serving(tmp_path) as (_, ask):
        assert ask(path) == (404, "not found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods_are_refused(tmp_path: Path, method: str) -> None:
    with serving(tmp_path) as (_, ask):
        assert ask("/", method)[0] == 405


def test_a_foreign_name_that_leads_here_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, ask):
        assert ask("/", Host="evil.example")[0] == 404
        assert ask("/", Host="localhost:8765")[0] == 200


def test_elsewhere_only_who_knows_the_token_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "0.0.0.0") as (path, ask):
        assert len(path) > 30
        assert ask(path, Host="a.machine")[0] == ask(f"{path}version")[0] == 200
        assert {ask(other)[0] for other in ("/", "/version", path[:-2] + "/", path.rstrip("/"))} == {404}


def test_two_servers_have_two_tokens(tmp_path: Path) -> None:
    servers = [make_server(LivePage([tmp_path]), "0.0.0.0", 0) for _ in range(2)]
    assert len({urlsplit(address).path for _, address in servers}) == 2
    for server, _ in servers:
        server.server_close()


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--bind 192.0.2.1 --port 0: cannot listen there"):
        make_server(LivePage([tmp_path]), "192.0.2.1", 0)
