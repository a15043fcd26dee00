"""The engine ``local``: Flower's messages go to worker processes of this machine, without SuperLink and Ray."""

import logging
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from lit_fedbabu import client_app
from lit_fedbabu.config import Config
from lit_fedbabu.engines.resources import nodes_of, worker_environments
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.learning.devices import spread
from lit_fedbabu.protocol.wire import clients_of
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import LOG, StartError, Warm

ANSWER = "lit_fedbabu.engines.local:answer"


class Answers(Protocol):
    """What carries requests to where they are answered, as ``Pool`` does."""

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]: ...


class LocalGrid(Grid):
    """Nodes that are answered for by the workers of a pool.

    Args:
        config: the experiment.
        nodes: how many nodes there are.
        pool: of the workers, or what answers as it does.
        progress: is told of the clients that have answered.
    """

    def __init__(self, config: Config, nodes: int, pool: Answers, progress: Lines) -> None:
        run_config = config.to_run_config()
        self._contexts = {
            place + 1: Context(1, place + 1, {"partition-id": place, "num-partitions": nodes}, RecordDict(), run_config)
            for place in range(nodes)
        }
        self._pool = pool
        self._progress = progress
        identify_process()

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """The nodes' replies, as they come. A node whose worker died twice, or that was late, replies with an error.

        Raises:
            RunError: no worker can be started.
        """
        messages = list(messages)
        arrays = next((found for each in messages if (found := each.content.array_records.get("arrays"))), None)
        requests = [(message, self._contexts[message.metadata.dst_node_id]) for message in messages]
        try:
            for place, answered in self._pool.answers(ANSWER, requests, arrays, timeout):
                died = isinstance(answered, Exception)
                if messages[place].metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE):
                    self._progress.advance(len(clients_of(messages[place])))
                yield _crashed(answered, messages[place]) if died else answered
        except StartError as error:
            raise RunError(str(error)) from None

    def set_run(self, run: Run) -> None:
        """There is one run alone."""

    @property
    def run(self) -> Run:
        raise NotImplementedError("this engine has no records of runs")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("this engine answers messages when they are sent: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("this engine answers messages when they are sent: use send_and_receive")


def _crashed(why: Exception, message: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(why)), reply_to=message)


@contextmanager
def started(config: Config, warm: Warm, folder: Path, progress: Lines) -> Iterator[LocalGrid]:
    """A grid whose workers end with it.

    Args:
        config: the experiment.
        warm: where workers come from.
        folder: the run's, in which they log what they print.
        progress: is told of clients that have answered, and of workers that died.
    """
    environments = worker_environments(config)
    with (
        quiet_flower(), logged(folder) as log,
        Pool(warm, len(environments), environments, str(log), progress.say, once=config.devices > 1) as pool,
    ):  # fmt: skip
        yield LocalGrid(config, nodes_of(config), pool, progress)


@contextmanager
def logged(folder: Path) -> Iterator[Path]:
    """The file in a run's folder for what workers print. It is removed afterwards if they have printed nothing."""
    try:
        yield folder / LOG
    finally:
        if (log := folder / LOG).exists() and not log.stat().st_size:
            log.unlink()


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Silence Flower's strategy, which logs each step of a round."""
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.WARNING)
    try:
        yield
    finally:
        flower.setLevel(level)


def answer(message: Message, context: Context) -> Message:
    """In a worker: the ClientApp's reply, or as in Flower an error where it raised an exception."""
    identify_process()
    training = message.metadata.message_type == MessageType.TRAIN
    try:
        with spread(Config.from_run_config(context.run_config).devices if training else 1):
            return client_app.app(message, context)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
