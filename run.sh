#!/bin/sh
# Starts yuegp on Linux and macOS: finds a Python and hands over to launch.py, which does everything else.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 4
for python in python3 python3.12 python3.11 python3.13 python; do
    if command -v "$python" >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
        exec "$python" "$here/launch.py" "$@"
    fi
done
if command -v uv >/dev/null 2>&1; then
    export UV_PYTHON_INSTALL_DIR="${UV_PYTHON_INSTALL_DIR:-$here/.launch/python}"
    exec uv run --no-cache --no-project --python 3.12 "$here/launch.py" "$@"
fi
echo "yuegp needs Python, and none was found (3.8 or newer to begin with, 3.12 is best)." >&2
case $(uname -s) in
Darwin) echo "Install it with: brew install python@3.12. Then start again." >&2 ;;
*) echo "Install python3.12 and python3.12-venv with your package manager. Then start again." >&2 ;;
esac
exit 4
