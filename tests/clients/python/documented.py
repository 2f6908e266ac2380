"""The examples of the documents, to be run as they stand: only the server's address, and the key if need be, are others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT = 120
ROOT = Path(__file__).parents[3]
DOCUMENTS = ("README.md", "docs/clients.md")
ADDRESS = "http://127.0.0.1:8080/v1"
KEY = "none"
# Headings, and fenced blocks of a language.
PARTS = re.compile(r"^#+ ([^\n]+)$|^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(wanted=lambda code: True):
    """Each fenced block in Python, and each that calls curl, with the heading that it stands below."""
    found = []
    for document in DOCUMENTS:
        heading = ""
        for title, language, code in PARTS.findall((ROOT / document).read_text()):
            heading = title or heading
            if (language == "python" or code.startswith("curl ")) and wanted(code):
                found.append(pytest.param(language, code, id=f"{document}, {heading}"))
    return found


def start(language, code, url, folder, key=KEY):
    """A process that runs an example. It sees no settings of this shell, such as proxies."""
    assert ADDRESS in code, "an example of no server"
    code = code.replace(ADDRESS, url).replace(f'"{KEY}"', f'"{key}"').replace(f"Bearer {KEY}", f"Bearer {key}")
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    return subprocess.Popen(
        [*command, code],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # LiteLLM would ask the network for prices.
        env={"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )


def does_what_it_says(process, code):
    """Sees that a process ends well, and prints what the comments of its example promise."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out.strip()
    for promised in re.findall(r"# prints (.+)$", code, re.MULTILINE):
        assert promised in out, err
    return True
