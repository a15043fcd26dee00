"""The process of a study that speaks with Ray, which prints, catches signals and may end its process."""

import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lit_fedbabu.engines.ray_driver import line_of
from lit_fedbabu.ground import system
from lit_fedbabu.ground.compat import free_resources_of_ray
from lit_fedbabu.studies.on_node import work
from lit_fedbabu.workers.serving import end_with


def main() -> None:
    """Have nodes work until the process at the other end of the connection in the first argument is gone."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=end_with, args=(connection.fileno(),), daemon=True).start()
    address, *about = connection.recv()
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
        own = ray.get_runtime_context().get_node_id()
        nodes = [each for each in ray.nodes() if each["Alive"] and each["NodeID"] != own]  # type: ignore[no-untyped-call]
        free = free_resources_of_ray()
    except (Exception, SystemExit) as error:  # whatever Ray raises
        connection.send(("refused", line_of(error)))
        return
    nodes = [node for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    asked, names = {}, []
    for node in nodes:
        has, there = node["Resources"], NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {
            "num_cpus": has["CPU"],
            "num_gpus": has.get("GPU", 0),
            "max_retries": 0,
            "scheduling_strategy": there,
        }
        task: Any = ray.remote(work).options(**options)
        asked[task.remote(*about, system.installed(), len(nodes) + 1)] = node["NodeManagerHostname"]
        is_free = all(free.get(node["NodeID"], has).get(kind, 0) >= has.get(kind, 0) for kind in ("CPU", "GPU"))
        names.append(node["NodeManagerHostname"] + ("" if is_free else " (once its cores and GPUs are free)"))
    connection.send(("ready", names))
    while asked:
        (ended,), _ = ray.wait(list(asked), num_returns=1)
        name = asked.pop(ended)
        try:
            note = ray.get(ended)
        except Exception as error:  # as where a node is gone
            note = f"{name} is gone: {line_of(error)}"
        if note:
            connection.send(note)
    end_with(connection.fileno())


if __name__ == "__main__":
    main()
