"""A real node: Flower's SuperNode, and beside it the process that answers its messages.

Left to itself a SuperNode unpacks and runs whatever app a run of its SuperLink brings. Here it runs none
(``--isolation process``). The process beside it asks it for messages, for which both have a secret, and answers them
with the ClientApp of the package that is installed here.
"""

import json
import os
import platform
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging import WARNING
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.logger import log
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)  # fmt: skip
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, flower_supernode
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from lit_fedbabu import client_app
from lit_fedbabu.completion import complete
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OF_SERVER
from lit_fedbabu.engines.admission import PatientClient, RefusedError
from lit_fedbabu.ground.compat import look_soon_for_objects
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.stops import left_to_this_process
from lit_fedbabu.ground.waits import growing
from lit_fedbabu.workers.worker import ALONE, Warm, WorkerRaisedError

POLL_S = 0.5
"""Seconds between two questions for a message."""
SECRET_BYTES = 32
DONE = b"."
"""What a SuperNode and the process that answers for it write to one another: a message is here, or is answered."""


def serve(words: Sequence[str]) -> None:
    """Be a SuperNode until a signal comes.

    Args:
        words: options of ``flower-supernode``.

    Raises:
        InputError: one of them is not for a node that runs its own app, or the server never takes a site with this key,
            or takes it no longer.
    """
    sys.argv = ["lit-fedbabu supernode", *words]
    parser = _parse_args_run_supernode()
    complete(parser)
    asked = parser.parse_args()
    for option in ("ssl_certfile", "trusted_entities", "superexec_auth_secret_file"):
        if value := getattr(asked, option):
            raise InputError(f"--{option.replace('_', '-')}", str(value), "has no use here; leave it out")
    secret = secrets.token_bytes(SECRET_BYTES)
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    command = [sys.executable, *ALONE, "lit_fedbabu.engines.node", f"{host}:{asked.port}"]
    ours, theirs = socket.socketpair()
    with theirs, left_to_this_process():
        answers = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
    threading.Thread(target=_end_with, args=(answers,), daemon=True).start()
    with suppress(OSError):  # it has ended, which ends this process too
        ours.sendall(secret)
    readable, writable = os.pipe()
    os.write(writable, secret)
    os.close(writable)
    sys.argv += ["--isolation", "process", "--superexec-auth-secret-file", f"/dev/fd/{readable}"]
    fleet_http_connection.FleetHttpClient = PatientClient  # type: ignore[attr-defined] # imported there
    _be_quick(ours)
    try:
        flower_supernode()
    except RefusedError as refused:
        trigger_exit_handlers(run_before_force_exit=False)  # which end Flower's threads
        key = asked.auth_supernode_private_key
        raise InputError("--auth-supernode-private-key", key or "", refused.remedy) from None
    except SystemExit:
        if PatientClient.lost:
            remedy = "the server takes this key no longer; was it revoked, or is the clock of this machine wrong?"
            raise InputError("--auth-supernode-private-key", asked.auth_supernode_private_key or "", remedy) from None
        raise


def _be_quick(answers: socket.socket) -> None:
    """Look more often than Flower for a message, for which it waits 3 s, and for its answer, for which it waits 0.5 s.

    Args:
        answers: to the process that answers. It is told of each message that is here as a whole, and tells when it has
            answered one.
    """
    pull, answered = start_client_internal._pull_and_store_message, threading.Event()

    def listen() -> None:
        with suppress(OSError):  # as above
            while answers.recv(1):
                answered.set()

    def pulled(*arguments: Any, **options: Any) -> int:
        waits = growing()
        while (run := pull(*arguments, **options)) is None:
            time.sleep(next(waits))
        answered.clear()
        with suppress(OSError):  # as above
            answers.sendall(DONE)
        return run

    def wait(most: float) -> None:
        answered.wait(most)
        answered.clear()

    threading.Thread(target=listen, daemon=True).start()
    start_client_internal._pull_and_store_message = pulled
    start_client_internal.time = SimpleNamespace(sleep=wait)  # type: ignore[attr-defined, assignment] # imported there
    look_soon_for_objects()


def _end_with(answers: "subprocess.Popen[bytes]") -> None:
    status = answers.wait()
    say(f"error: the process that answers messages ended with exit status {status}", sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Answer the messages of the SuperNode at the address in the first argument, which writes its secret to stdin."""
    secret = sys.stdin.buffer.read(SECRET_BYTES)
    whole = Whole()
    threading.Thread(target=_listen, args=(whole,), daemon=True).start()
    look_soon_for_objects()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which Flower raises when a run was stopped; its answer is not taken
    acquire = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"})
    with Warm("lit_fedbabu.client_app:prepare") as client_app.warm:
        client_app.warm.start()
        client = _client(sys.argv[1], "SuperExec", acquire)
        while True:
            task = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
            if task.HasField("task") and task.token:
                asked = _client(sys.argv[1], "flwr-clientapp", RuntimeTokenHttpInterceptor(task.token))
                threading.Thread(target=receive, args=(asked, whole), daemon=True).start()
            with suppress(queue.Empty):
                if there := whole.get(timeout=POLL_S):
                    answer(*there)


def _tell() -> None:
    """Have the SuperNode look for an answer."""
    with suppress(OSError):  # it has ended
        os.write(sys.stdin.fileno(), DONE)


def _listen(whole: "Whole") -> None:
    """Have the queue looked at whenever the SuperNode has a message, and end with the SuperNode, also by a kill."""
    while sys.stdin.buffer.read(1):
        whole.put(None)
    os._exit(1)


def _client(
    address: str, component: str, who: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # within this machine
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), who],
        retry_invoker=make_simple_http_retry_invoker(),
    )


def refuse_unnamed_code(run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> None:
    """Raise ValueError where a run names code by an import path that the node-config does not name for the same key."""
    for key, path in Config.from_run_config(run_config).code().items():
        if key not in OF_SERVER and node_config.get(key) != path:
            remedy = f"start the SuperNode with {key}={json.dumps(path)} in its --node-config if you trust it"
            raise ValueError(f"{platform.node()} does not import {path} because a server says so; {remedy}")


Whole = queue.Queue[tuple[RuntimeHttpClient, HeartbeatSender, Message, Context] | None]
"""Messages that are here as a whole, and what they are answered by; None: there may be one to ask for."""


def receive(client: RuntimeHttpClient, whole: Whole) -> None:
    """Wait for a message and hand it on. Where its run was stopped, parts of it never come, which ends after hours."""
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        message, context, _, _ = pull_task_input(client)  # the app that came with the message stays where it is
    except Exception as error:  # whatever Flower raises
        log(WARNING, "a message was not received: %s", error)
        heartbeat.stop()
        client.close()
    else:
        whole.put((client, heartbeat, message, context))


def answer(client: RuntimeHttpClient, heartbeat: HeartbeatSender, message: Message, context: Context) -> None:
    """Answer one message. What the app raises is the answer; what the SuperNode no longer wants is dropped."""
    status, details = SubStatus.COMPLETED, ""
    try:
        try:
            refuse_unnamed_code(context.run_config, context.node_config)
            reply = client_app.app(message, context)
        except Exception as error:
            status = SubStatus.FAILED
            details = str(error) if isinstance(error, WorkerRaisedError) else f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, details), reply_to=message)
        push_message(client, reply, context)
        _tell()
        push_task_output(client, context, status, details)
    except (httpx.HTTPError, RuntimeError) as error:
        log(WARNING, "a message is left unanswered: %s", error)
    finally:
        heartbeat.stop()
        client.close()


if __name__ == "__main__":
    main()
