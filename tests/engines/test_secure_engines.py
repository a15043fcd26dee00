"""Secure aggregation over what carries messages for real."""

import subprocess
import sys

import psutil
import pytest

from lit_fedbabu import run
from lit_fedbabu.server.secure import SecureExchange
from tests.engines.deadly import FEW
from tests.engines.test_run import TINY
from tests.server.test_secure import check_by_hand, secure_config
from tests.support import failures_of, files_that_decide, partition


@pytest.mark.slow
def test_workers_that_are_killed_between_masking_and_unmasking_change_nothing(tmp_path, federate, monkeypatch, capsys):
    """Other processes find the secrets where those have left them."""
    config = secure_config(algorithm="fedper", num_clients=3, output_dir=str(tmp_path), run_name="local")
    whole, _ = federate(config)
    unmask, killed = SecureExchange._unmask, []

    def after_a_kill(exchange, alive, dead):
        for process in psutil.Process().children(recursive=True):
            if "lit_fedbabu.workers.warm" in " ".join(process.parent().cmdline()):
                process.kill()
                killed.append(process.pid)
        return unmask(exchange, alive, dead)

    monkeypatch.setattr(SecureExchange, "_unmask", after_a_kill)
    run(config)
    assert killed and capsys.readouterr().out.count("note: a worker died (its process was killed by SIGKILL)") >= 2
    assert files_that_decide(tmp_path / "local") == files_that_decide(whole)


@pytest.mark.slow
def test_clients_that_kill_their_workers_as_they_train_are_left_out_of_the_sum(tmp_path):
    config = secure_config(
        model_name="tests.engines.deadly:model", num_server_rounds=1, batch_size=50, dirichlet_alpha=0.3,
        min_client_images=2, num_finetune_epochs=0, output_dir=str(tmp_path), run_name="deadly",
    )  # fmt: skip
    sizes = [len(images) for images in partition(config).train]
    deadly = {client for client, size in enumerate(sizes) if 0 < size % 50 < FEW}
    assert 0 < len(deadly) <= 2
    run(config)
    assert {each["client"] for each in failures_of(tmp_path / "deadly")} == deadly
    left = [client for client in range(6) if client not in deadly]
    check_by_hand(config, tmp_path / "deadly", lambda _: list(range(6)), lambda _: left)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_both_engines_write_the_same_bytes(algorithm, tmp_path):
    options = {**TINY, "algorithm": algorithm, "num-server-rounds": 2, "fraction-train": 1.0}
    options |= {"output-dir": str(tmp_path), "secure-aggregation": "true"}
    for engine in ("local", "flower"):
        names = [f"{key}={value}" for key, value in {**options, "engine": engine, "run-name": engine}.items()]
        subprocess.run([sys.executable, "-m", "lit_fedbabu.run", *names], check=True, timeout=400)
    local = files_that_decide(tmp_path / "local")
    assert len(local) > 3 and local == files_that_decide(tmp_path / "flower")
