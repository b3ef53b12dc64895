"""Where requests go: addresses, proxies and keys, and what is said where they lead nowhere."""

import asyncio
import socket
from contextlib import closing

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

import batcher
from batcher.errors import JobError, NoAnswer
from batcher.job.endpoint import Endpoint, endpoint_of, proxy_of
from batcher.runtime import monitor
from batcher.send.http import Client
from tests.support.echo import running

KEY = {"MINE": "sk-0123456789abcdef"}
SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize(
    "address",
    [
        "aihubmix.com/v1", "//gateway.test", "http:gateway.test", "http:/gateway.test", "http://", "ftp://gateway.test",
        "http://gateway.test:99999/v1", "http://gateway.test:0/v1", "http://gateway.test:/v1", "http://gateway.test:x/v1",
        "http://gateway.test:-1", "http://[::1/v1", "http://::1:80/v1", "http://[::1]x/v1", "http://gate way.test/v1",
        "http://gateway.test/v 1", "http://gateway.test/v1\n", "http://gate\tway.test", "http://gateway.test/\x00", "http:\\\\gateway.test",
        "http://a..b/v1", "http://" + "a" * 64 + ".test/v1", "http://%67ateway.test/v1",
        "http://:80/v1", "http://@/v1", "http://./v1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["--base-url", "OPENAI_BASE_URL"])
def test_what_is_no_address_is_said_in_a_sentence(address, by):
    """With the name of what holds it, before anything is sent."""
    given_by = (
        (address, {}) if by == "--base-url" else (None, {by: address, "OPENAI_API_KEY": "k" * 9})
    )
    if address.endswith("\n"):  # A line end is easily copied along.
        assert endpoint_of(given_by[0], "MINE", KEY | given_by[1]).host
        return
    with pytest.raises(JobError, match=f"^{by} .*is not an address|^{by} must carry no"):
        endpoint_of(given_by[0], "OPENAI_API_KEY", {"OPENAI_API_KEY": "k" * 9, **given_by[1]})


def test_an_empty_base_url_is_no_other_host():
    """It is a variable that is not set: the rows and the key would go to the default gateway."""
    with pytest.raises(JobError, match=r"^--base-url '' is not an address"):
        endpoint_of("", "MINE", KEY)


def test_an_address_is_shown_as_it_was_given():
    """But for what may be a secret."""
    with pytest.raises(JobError, match=r"^--base-url 'ftp://gateway\.test:80/v1' is not"):
        endpoint_of("ftp://gateway.test:80/v1", "MINE", KEY)
    with pytest.raises(JobError, match=r"^--base-url 'http://user:\.\.\.' is not"):
        endpoint_of(f"http://user:{SECRET}", "MINE", KEY)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "https://gateway.test", "https://bücher.test/v1/", "HTTPS://gateway.test/v1",
        "https://gateway.test./v1", "https://gateway.test:65535/a/b/chat/completions",
    ],
)  # fmt: skip
def test_what_is_an_address_is_taken(address):
    """IPv6 and other scripts included."""
    endpoint = endpoint_of(address, "MINE", KEY)
    assert endpoint.url.endswith("/chat/completions")
    Client(endpoint)


@pytest.mark.parametrize(
    "address",
    [
        f"https://user:{SECRET}@gateway.test/v1", f"https://gateway.test/v1?key={SECRET}", f"https://gateway.test/#{SECRET}",
        f"https://user:{SECRET}", f"gateway.test/v1?key={SECRET}", f"user:{SECRET}@gateway.test", f"http://{SECRET}:99999@/x",
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_not_repeated(address):
    """It has no place there, and none in a message."""
    with pytest.raises(JobError) as error:
        endpoint_of(address, "MINE", KEY)
    assert SECRET not in str(error.value)


@given(
    st.text(st.characters(codec="utf-8"), max_size=30)
    | st.from_regex(r"http://[^ ]{0,20}", fullmatch=True)
)
@example("http://[v1.x]/")
@example("http://1.2.3.4.5.6/v1")
def test_any_text_is_an_address_or_is_refused(text):
    """Nothing else is raised, neither here nor where it is used."""
    for environment in (KEY, {"OPENAI_BASE_URL": text, **KEY}):
        try:
            endpoint = endpoint_of(text, "MINE", environment)
        except JobError:
            return
        Client(endpoint)


def test_another_address_in_the_environment_does_no_harm():
    """It is not used where --base-url is given."""
    environment = {"OPENAI_BASE_URL": "http://[::1", "OPENAI_API_KEY": "k" * 9}
    assert endpoint_of("http://127.0.0.1:1/v1", None, environment).key is None
    assert (
        endpoint_of(None, None, {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": "k" * 9}).host
        == "api.openai.com"
    )


URL = "https://gateway.test:8443/v1/chat/completions"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ("http://proxy:3128", None)),
        ({"https_proxy": "proxy:3128/", "HTTPS_PROXY": "socks5://other"}, ("http://proxy:3128", None)),
        ({"HTTPS_PROXY": f"user:{SECRET}@proxy:3128"}, ("http://proxy:3128", ("user", SECRET))),
        ({"HTTPS_PROXY": f"https://us%40er:p%3A%2F{SECRET}@proxy"}, ("https://proxy", ("us@er", f"p:/{SECRET}"))),
        ({"HTTPS_PROXY": " http://[::1]:3128 "}, ("http://[::1]:3128", None)),
        ({"ALL_PROXY": "http://proxy:1"}, ("http://proxy:1", None)),
        ({"ALL_PROXY": "socks5://proxy:1", "HTTPS_PROXY": "http://proxy:2"}, ("http://proxy:2", None)),
        ({"HTTP_PROXY": "http://proxy:1"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "  "}, None),
        ({"https_proxy": "", "ALL_PROXY": "http://proxy:1"}, None),
        ({"HTTPS_PROXY": "socks5://proxy", "NO_PROXY": "other, .gateway.test"}, None),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "gateway.test:8443"}, None),
    ],
)  # fmt: skip
def test_the_proxy_is_the_one_that_the_environment_names(environment, expected):
    """As for curl and Python."""
    proxy = proxy_of(URL, environment)
    assert (None if proxy is None else (proxy.url, proxy.login)) == expected
    assert SECRET not in repr(proxy)
    assert proxy_of("http://127.0.0.1:1/v1", environment) is None


@pytest.mark.parametrize(
    "value",
    [
        *(f"{kind}://user:{SECRET}@proxy:1080" for kind in ("socks", "socks4", "socks4a", "SOCKS5", "socks5h", "ftp", "quic", "")),
        f"http://user:{SECRET}@proxy:99999", f"http://user:{SECRET}@proxy:x", f"http://user:{SECRET}@", f"http://user:{SECRET}@:80",
        f"http://user:pa/{SECRET}@proxy:80", f"http://user:pa#{SECRET}@proxy:80", f"http://user:pa?{SECRET}@proxy:80", f"us%3Aer:{SECRET}@proxy",
        f"http://user:pa {SECRET}@proxy", f"http://user:{SECRET}\n@proxy", f"http://user:{SECRET}@pro xy:80", f"http://user:{SECRET}@[::1:80",
        f"http://user:{SECRET}\udcff@proxy:80", f"user:{SECRET}", f"http://http://user:{SECRET}@proxy",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_used_is_refused_before_anything_is_sent(value, name):
    """In a sentence that names the variable, and not what may be a password."""
    with pytest.raises(JobError, match=name) as error:
        endpoint_of(URL, "MINE", {name: value, **KEY})
    assert SECRET not in str(error.value)
    assert "pa" not in str(error.value).replace("batcher", "").split()


def rows_of(run, tmp_path, monkeypatch, url, **options):
    monkeypatch.setattr(monitor, "_WATCH_SECONDS", 0.05)
    for name in ("OPENAI_API_KEY", "AIHUBMIX_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    return run(
        [{"prompt": f"hi {n}"} for n in range(5)],
        output=tmp_path / "out.jsonl",
        models=["m"],
        base_url=url,
    )


def test_a_port_where_nobody_listens_ends_the_run_soon(tmp_path, monkeypatch):
    """Nothing of the run was ever answered, so that there is no outage to wait for."""
    monkeypatch.setattr(monitor, "_UNREACHED_SECONDS", 0.1)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with pytest.raises(
        JobError, match=f"m: {url} cannot be reached: no connection: .*{port}.* — check --base-url"
    ):
        rows_of(batcher.run, tmp_path, monkeypatch, url)


@pytest.mark.parametrize("base", ["", "/api"])
@pytest.mark.parametrize("status", [404, 405, 200])
def test_an_address_without_its_version_is_named_with_it(tmp_path, monkeypatch, base, status):
    """It is asked for once, with a body that costs nothing, and only said: the address is a request's identity."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, await request.read()))
        if request.path == f"{base}/v1/chat/completions":
            return web.json_response({"error": {"message": "messages is missing"}}, status=400)
        return web.Response(
            text="<!doctype html><p>Welcome", status=status, content_type="text/html"
        )

    with running(answer, path="/{tail:.*}") as gateway:
        url = gateway.url.removesuffix("/v1") + base
        with pytest.raises(JobError, match=f"write --base-url {url}/v1\\."):
            rows_of(batcher.run, tmp_path, monkeypatch, url)
    assert asked[:2] == [
        (f"{base}/chat/completions", asked[0][1]),
        (f"{base}/v1/chat/completions", b"{}"),
    ]
    assert [path for path, _ in asked].count(f"{base}/v1/chat/completions") == 1


def test_a_version_that_is_not_there_either_is_not_named(tmp_path, monkeypatch):
    """And an address that has one is not asked for with another."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"error": {"message": "nothing here"}}, status=404)

    with running(answer, path="/{tail:.*}") as gateway:
        for number, base in enumerate(("", "/v1", "/v1beta/openai", "/api/paas/v4")):
            url = gateway.url.removesuffix("/v1") + base
            (tmp_path / str(number)).mkdir()
            with pytest.raises(JobError, match="nothing here — check the model ID and --base-url"):
                rows_of(batcher.run, tmp_path / str(number), monkeypatch, url)
            probes = [path for path in asked if path.startswith(f"{base}/v1/")]
            assert len(probes) == (0 if base else 1)
            asked.clear()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (400, "No API key passed in."),
        (500, "Authorization header is missing"),
    ],
)
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "AIHUBMIX_API_KEY", None])
def test_a_key_that_was_not_sent_is_not_blamed(tmp_path, monkeypatch, status, words, name):
    """It belongs to another host; how it goes to this one is said."""

    async def answer(request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers
        return web.json_response({"error": {"message": words}}, status=status)

    options = {} if name is None else {name: "sk-0123456789abcdef"}
    with running(answer) as gateway, pytest.raises(JobError) as error:
        rows_of(batcher.run, tmp_path, monkeypatch, gateway.url, **options)
    host = gateway.url.split("/")[2]
    said = f"{words} — no API key was sent to {host}: "
    assert said in str(error.value)
    assert f"--api-key-env {name}" in str(error.value) or name is None
    assert "sk-0123456789abcdef" not in str(error.value)


def test_a_proxy_that_repeats_its_login_in_a_header_shows_no_password(monkeypatch):
    """The id of the request is written to the output."""

    async def work():
        async def serve(reader, writer):
            login = (await reader.readuntil(b"\r\n\r\n")).split(b"asic ")[1].split(b"\r\n")[0]
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nX-Request-Id: " + login)
            writer.write(b" %b\r\n\r\n" % SECRET.encode())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"user:{SECRET}@127.0.0.1:{port}")
        async with Client(Endpoint("http://gateway.test/v1", "")) as client:
            reply = await client.post(b"{}", 5.0)
        assert reply.headers["x-request-id"] == "[password] [password]"
        server.close()
        await server.wait_closed()

    asyncio.run(work())


def test_a_proxy_that_is_not_there_or_refuses_shows_no_password(monkeypatch):
    """Neither in what the connection fails with, nor in what the proxy says."""

    async def work():
        async def serve(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 407 No, "
                + head.split(b"asic ")[1].split(b"\r\n")[0]
                + b" "
                + SECRET.encode()
                + b"\r\n\r\n"
            )
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for to in (port, 1):
            monkeypatch.setenv("HTTPS_PROXY", f"user:{SECRET}@127.0.0.1:{to}")
            async with Client(Endpoint("https://gateway.test/v1", "")) as client:
                with pytest.raises(NoAnswer) as error:
                    await client.post(b"{}", 5.0)
            assert not error.value.sent
            assert error.value.lasting == (
                to == port
            )  # Another password does not come by waiting.
            assert "the proxy of the environment (HTTPS_PROXY)" in str(error.value)
            assert SECRET not in str(error.value)
            assert "dXNlcjpz" not in str(error.value)
        server.close()
        await server.wait_closed()

    asyncio.run(work())


@pytest.mark.parametrize("status", ["302 Found", "407 No", "502 Bad"])
def test_a_proxy_that_repeats_its_password_in_headers_is_not_quoted(monkeypatch, status):
    """As a request id, say, or in the address of a page to log in at."""

    async def work():
        async def serve(reader, writer):
            login = (await reader.readuntil(b"\r\n\r\n")).split(b"asic ")[1].split(b"\r\n")[0]
            told = f"HTTP/1.1 {status}\r\nX-Request-Id: {SECRET}\r\nLocation: http://in.test/?".encode()
            writer.write(told + login + b"\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        monkeypatch.setenv(
            "HTTP_PROXY", f"user:{SECRET}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        )
        async with Client(Endpoint("http://gateway.test/v1", "")) as client:
            reply = await client.post(b"{}", 5.0)
        assert reply.headers["X-Request-Id"] == "[password]"
        assert reply.headers["Location"] == "http://in.test/?[password]"
        server.close()
        await server.wait_closed()

    asyncio.run(work())
