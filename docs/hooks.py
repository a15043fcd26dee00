"""What the site has beside the pages of this folder: pages of the repository's root, and files that pages link to."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
PAGES |= {"SECURITY.md": "SECURITY.md", "results/digits/differences.md": "results/digits/differences.md"}
EXAMPLES = [f"examples/{name}/README.md" for name in ("timeseries", "regression", "photographs", "schools", "text")]
PAGES |= {path: path for path in EXAMPLES}
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""Commands after a prompt, and what they print."""
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add those pages, and the files outside of docs/ that pages link to, under their paths in the repository."""
    linked = set()
    for source in [*(ROOT / "docs").glob("*.md"), *(ROOT / page for page in PAGES)]:
        for link in LINK.findall(source.read_text()):
            target = (source.parent / link).resolve()
            if target.is_file() and not target.is_relative_to(ROOT / "docs"):
                linked.add(target.relative_to(ROOT).as_posix())
    sys.path.insert(0, str(ROOT / "docs"))
    import messages

    files.append(File.generated(config, "messages.md", content=messages.page()))
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    for path in sorted(linked - set(PAGES)):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links fit the site, in which the pages of docs/ lie beside those of the root."""
    markdown = CONSOLE.sub(lambda found: without_prompts(found[1]), markdown)
    if page.file.src_uri.startswith("adr/") or page.file.src_uri == "messages.md":  # whose links stay within docs/
        return markdown
    prefix = "docs/" if page.file.generated_by else "../"
    return markdown.replace(f"]({prefix}", "](").replace("](README.md", "](index.md")


def without_prompts(block: str) -> str:
    """Blocks of commands, which can be copied as they are, and between them what they print."""
    parts: list[tuple[str, list[str]]] = []
    continued = False
    for line in block.splitlines():
        prompt = re.match(r"(?:\w+)?[$] ", line)
        kind = "bash" if prompt or continued else "text"
        continued = kind == "bash" and line.endswith("\\")
        text = line[prompt.end() :] if prompt else line
        if not parts or parts[-1][0] != kind:
            parts.append((kind, []))
        parts[-1][1].append(text)
    return "\n\n".join("\n".join([f"```{kind}", *lines, "```"]) for kind, lines in parts)
