"""Fuzz one target with atheris, guided by the coverage of the code under test, until the time is over.

    python -m fuzz.run decoder|connection|frames SECONDS [FILE ...]

With files it runs only these inputs, as found and stored by an earlier run. Exit code 0: nothing was found.
"""

import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("the fuzzer, atheris, is not installed: it has wheels for Linux on x86-64 only")

with atheris.instrument_imports(include=["airy_trio.stomp", "airy_trio.websocket.frames", "fuzz.targets"]):
    from fuzz import targets

INPUT_BYTES_MAX = 512
FOUND = Path(__file__).parent / "found"


def main(name: str, seconds: str, *files: str) -> None:
    """Pass everything to libFuzzer, which ends the process."""
    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(targets.SEEDS):
            (corpus / f"seed{number}").write_bytes(seed)
        dictionary = Path(folder) / "dictionary"
        dictionary.write_text("".join(f"{_quoted(word)}\n" for word in targets.DICTIONARY))
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-len_control=0",
            f"-dict={dictionary}",
            f"-artifact_prefix={FOUND}/{name}-",
            "-timeout=5",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, *(files or [str(corpus)])], targets.TARGETS[name])
        atheris.Fuzz()


def _quoted(word: bytes) -> str:
    """Return a word in the format of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{octet:02x}" for octet in word) + '"'


if __name__ == "__main__":
    main(*sys.argv[1:])
