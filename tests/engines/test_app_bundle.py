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


def test_what_a_server_or_a_site_reads_is_in_the_app():
    """Flower bundles no pages or style sheets. The report's own are read by a command that no Flower app runs."""
    others = {
        path.relative_to(ROOT / "lit_fedbabu").parts[0]
        for path in (ROOT / "lit_fedbabu").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others <= {"reporting", "bodies", "py.typed", "shipped_configs", "shipped_examples"}
