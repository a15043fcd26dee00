import shutil
import subprocess
import zipfile
from pathlib import Path

from lit_fedbabu.ground.system import program

ROOT = Path(__file__).parent.parent.parent


def test_the_flower_app_has_the_package_its_readme_and_its_license_and_nothing_else(tmp_path):
    app = tmp_path / "lit-fedbabu"
    shutil.copytree(ROOT / "lit_fedbabu", app / "lit_fedbabu", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app)
    for other in ("tb_logs", "tests"):
        (app / other).mkdir()
        (app / other / "README.md").write_text("of something else")
    done = subprocess.run([program("flwr"), "build"], cwd=app, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    (bundle,) = app.glob("*.fab")
    names = set(zipfile.ZipFile(bundle).namelist())
    modules = {path.relative_to(app).as_posix() for path in (app / "lit_fedbabu").rglob("*.py")}
    assert names == {*modules, "pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert bundle.stat().st_size < 2_000_000  # Flower takes ten
