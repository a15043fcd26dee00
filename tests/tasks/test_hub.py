import os
import subprocess
import sys


def test_the_hub_out_of_reach_is_told_within_ten_seconds(tmp_path):
    script = (
        "import sys, time; from lit_fedbabu.ground.errors import InputError; "
        "from lit_fedbabu.tasks.images import sources; start = time.monotonic()\n"
        "try: sources.load('uoft-cs/cifar10')\n"
        "except InputError as error: print(time.monotonic() - start, error)"
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    seconds, message = done.stdout.split(maxsplit=1)
    assert float(seconds) < 10
    assert message.count("\n") == 1 and 'dataset="digits"' in message, message
    assert not list(tmp_path.glob("lit_fedbabu/*"))
