# What the scripts that make environments share; they source it.
#
# Environments lie outside the checkout, where checkouts share them, so that a name tells what is in one and nothing is
# changed once it is complete. None is ever removed: whoever wants the room back removes the folder.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/foveate

digest() { cat "$@" | sha256sum | cut -c 1-10; }

libraries() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# make_once FOLDER COMMAND...: COMMAND makes FOLDER, unless it is there already. What was interrupted is made anew.
make_once() {
  local folder=$1
  shift
  mkdir -p "$(dirname "$folder")"
  (
    flock 9 # another checkout may be making it
    [ ! -e "$folder/.complete" ] || exit 0
    if [ -e "$folder" ] && [ ! -e "$folder.unfinished" ]; then
      fail "$folder is not an environment of this script: remove it, or choose another path"
    fi
    touch "$folder.unfinished"
    rm -rf "$folder"
    "$@"
    touch "$folder/.complete"
    rm "$folder.unfinished"
  ) 9> "$folder.lock"
}

# make_own FOLDER STATE COMMAND...: COMMAND makes FOLDER, a checkout's own layer, unless it was made in this STATE.
make_own() {
  local folder=$1 state=$2
  shift 2
  if [ "$(cat "$folder/.complete" 2> /dev/null)" != "$state" ]; then
    rm -rf "$folder"
    "$@"
    echo "$state" > "$folder/.complete"
  fi
}

# What the interpreter of a command is, in the name of an environment.
interpreter_of() { "$1" -c 'import sys; print("py{}.{}".format(*sys.version_info))'; }

# borrow FROM TO: what is installed in the environment FROM can be imported in TO, too, behind what TO has itself and
# what it borrowed before.
borrow() {
  # Unlike a path in a .pth file, this reads the .pth files of the borrowed folder, too.
  echo "import site; site.addsitedir('$(libraries "$1")')" >> "$(libraries "$2")/borrowed.pth"
}
