"""A server with many failures reveals neither its secrets nor payloads in logs, pages and messages.

Everything is logged, all pages of the admin port are read, and the commands are run on the same settings.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient, connect
from tests.admin.serving import HOST, Port, free_port
from tests.application import Application
from tests.certificates import issue, trusting
from tests.processes import Server, run, server

TIMEOUT_S = 110.0
PASSWORD, ANN, BOB, LATER, WRONG = (f"hunter-{name}-secret" for name in ("database", "ann", "bob", "later", "wrong"))
PAYLOAD = "what-ann-wrote-to-eve"
SECRETS = (PASSWORD, ANN, BOB, LATER, WRONG, PAYLOAD)
PAGES = ("/livez", "/readyz", "/metrics", "/api/figures", "/api/connections", "/api/clients?position=x", "/nowhere")
COMMANDS: Sequence[list[str]] = ([], ["check"], ["migrate"], ["tail"], ["explain"], ["verify"], ["demo"])


def settings(url: str, listener: str, admin: int, more: str = "") -> str:
    return (
        f'[database]\nurl = "{url}"\n[listener]\nport = 0\n{listener}allowed_origins = ["https://airy.example"]\n'
        f'[auth]\nmode = "tokens"\ncookie = "airy"\ntokens = {{ ann = "{ANN}", bob = "${{BOB}}" }}\n'
        f'[admin]\nport = {admin}\n[logging]\nlevel = "debug"\nformat = "json"\n{more}'
    )


async def listen(serving: Server, *, connecting: Sequence[tuple[str, str]] = (), **headers: str) -> StompClient:
    sent = [(name.capitalize(), value) for name, value in headers.items()]
    stream = await trio.open_tcp_stream(HOST, serving.port)
    client = StompClient(trio.SSLStream(stream, trusting(), server_hostname="localhost", https_compatible=True))
    await client.upgrade(headers=sent)
    await client.connect(headers=connecting)
    await client.subscribe()
    return client


async def be_refused(serving: Server, token: str) -> None:
    for headers in ([("passcode", token)], [("Authorization", f"Bearer {token}")]):
        with pytest.raises(Closed):
            await connect("localhost", serving.port, headers=headers, tls=trusting())


async def admin_pages(admin: int) -> str:
    answers = [await Port(admin).get(page) for page in PAGES]
    return "\n".join(f"{answer.headers}\n{answer.text}" for answer in answers)


@pytest.mark.timeout(120)
async def test_no_secret_is_revealed(any_application: Application, tmp_path: Path) -> None:
    url = sa.make_url(any_application.url)
    if url.get_backend_name() != "sqlite":  # the Postgres of the tests trusts all clients and accepts any password
        url = url.set(password=PASSWORD)
    text = url.render_as_string(hide_password=False)
    files, config, admin = issue(tmp_path), tmp_path / "airy-trio.toml", free_port()
    any_application.migrate()
    config.write_text(settings(text, files.listener, admin))
    environ, texts = {"BOB": BOB}, []
    with trio.fail_after(TIMEOUT_S):
        async with server(config, environ=environ) as serving:
            clients = [
                await listen(serving, connecting=[("passcode", ANN)]),
                await listen(serving, connecting=[("Authorization", f"Bearer {BOB}")]),
                await listen(serving, authorization=f"Bearer {ANN}"),
                await listen(serving, cookie=f"airy={BOB}"),
            ]
            await be_refused(serving, WRONG)
            any_application.message(content=f'{{"text": "{PAYLOAD}"}}')
            for client in clients:
                assert PAYLOAD.encode() in (await client.receive()).body
            any_application.message(id="fault", content=PAYLOAD, delivery_state="lost")  # a row fault
            await serving.record("row fault")
            texts.append(await admin_pages(admin))
            config.write_text(settings(text, files.listener, admin, f'[auth.more]\n"{LATER}" = "{LATER}"\n'))
            os.kill(serving.process.pid, signal.SIGHUP)
            await serving.record("settings not renewed")
            config.write_text(settings(text, files.listener, admin).replace(ANN, LATER))
            os.kill(serving.process.pid, signal.SIGHUP)
            await serving.record("connection closed", error="401-unauthorized", user="ann")
            await clients[1].send(Frame("SEND", (("destination", "/events"), ("x", WRONG)), PAYLOAD.encode()))
            await serving.record("connection closed", error="403-send-not-allowed")
            texts.append(await admin_pages(admin))
            for client in clients:
                await trio.aclose_forcefully(client.stream)
            assert await serving.terminate() == 0
        texts += [*serving.out.all, *serving.err.all]
        for command in COMMANDS if url.get_backend_name() == "sqlite" else ():  # the same for each database
            helped = await run(*command, "--help", environ=environ)
            texts += [helped.out, helped.err]
        for command in (["check"], ["explain"]):
            subject = ["message", "fault"] if command == ["explain"] else []
            ran = await run(*command, "--config", str(config), *subject, environ=environ)
            assert ran.code != 2, ran.err  # its arguments were accepted
            texts += [ran.out, ran.err]
    everything = "\n".join(texts)
    assert "credentials refused" in everything
    assert [secret for secret in SECRETS if secret in everything] == []
