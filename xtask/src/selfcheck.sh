#!/bin/sh
# Checks the GPU of this machine, and measures it: `realm-worker selfcheck` with the libtorch of a Python, python3 or the
# one in PYTHON, which must have torch @TORCH@ of CUDA 13. It writes to the cache of this user what it compiles.
#
#     ./selfcheck [--device cuda:N] [--json]
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
# Torch is not imported: that takes a while, and it may lack what only Python needs.
found=$("$python" -c '
import importlib.metadata, importlib.util
print(importlib.util.find_spec("torch").submodule_search_locations[0])
print(importlib.metadata.version("torch"))
' 2>/dev/null) || found=
torch=$(printf '%s\n' "$found" | sed -n 1p)
version=$(printf '%s\n' "$found" | sed -n 2p)
case $version in
    @TORCH@ | @TORCH@+*) ;;
    *)
        echo "selfcheck: torch @TORCH@ is needed, and $python has ${version:-none}:" \
            "pip install torch==@TORCH@, or name another Python in PYTHON" >&2
        exit 1
        ;;
esac
LD_LIBRARY_PATH=$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/realm-worker" selfcheck "$@"
