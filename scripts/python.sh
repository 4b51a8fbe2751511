# The Python of this repository: $PYTHON, or that of .venv, or python. Sourced by the other scripts.
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}

# usage COUNT "$@" -- TEXT: end with TEXT unless there are at least COUNT arguments
usage() {
  local wanted=$1 text=${*: -1} given=$(($# - 3))
  if [ "$given" -lt "$wanted" ]; then
    echo "usage: $0 $text" >&2
    exit 2
  fi
}
