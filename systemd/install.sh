#!/usr/bin/env bash
# Installs rsd as a systemd service, or takes the service away. Called by `make install`; all is said by environment:
#
#   IMAGES=DIR OUTPUT=DIR [SERVICE_USER=rsd] [PREFIX=/opt/rsd] [KEYFILE=FILE] [PYTHON=python3] install.sh install
#   [PREFIX=/opt/rsd] install.sh uninstall
#
# Again over an older one: code and unit are replaced, configuration, prompts, key and results stay.
# DESTDIR=DIR stages the files only (no root, no user, no systemctl).
set -euo pipefail
export LC_ALL=C
source=$(cd "$(dirname "$0")/.." && pwd)
DESTDIR=${DESTDIR:-} PREFIX=${PREFIX:-/opt/rsd} SERVICE_USER=${SERVICE_USER:-rsd} PYTHON=${PYTHON:-python3}
etc=$DESTDIR/etc/rsd unit=$DESTDIR/etc/systemd/system/rsd.service
copied=(daemon.py rsd prompts samples systemd requirements.txt rsd.example.toml LICENSE CHANGELOG.md README.md docs)

fail() { echo "rsd: $*" >&2; exit 2; }

# A path as unit files, TOML and ReadWritePaths= can all hold it.
usable() {
  [[ $2 == /* ]] || fail "$1 = $2: must be an absolute path"
  [[ $2 != *[\"\\:$'\n\t']* ]] || fail "$1 = $2: a path without quote, backslash, colon or tab, please"
}

inside() { [[ $1/ == "$2"/* ]]; }

# Folders that the unit hides (ProtectHome, PrivateTmp) are mounted into the service's view. The others are not: such a
# mount would go on showing a folder that has been removed and made again.
hidden() { inside "$1" /home || inside "$1" /root || inside "$1" /run/user || inside "$1" /tmp || inside "$1" /var/tmp; }

as_root() { [[ -n $DESTDIR || $(id -u) == 0 ]] || fail "needs root: sudo make $1 ..."; }

install_service() {
  [[ -n ${IMAGES:-} && -n ${OUTPUT:-} ]] || fail "make install needs two folders: make install IMAGES=DIR OUTPUT=DIR"
  IMAGES=$(realpath -m -- "$IMAGES") OUTPUT=$(realpath -m -- "$OUTPUT")
  usable IMAGES "$IMAGES"; usable OUTPUT "$OUTPUT"; usable PREFIX "$PREFIX"
  [[ $PREFIX =~ ^[A-Za-z0-9/._+-]+$ && $PREFIX != / ]] || fail "PREFIX = $PREFIX: a path of letters, digits and /._+- please"
  [[ $SERVICE_USER =~ ^[a-z_][a-z0-9_-]*$ ]] || fail "USER = $SERVICE_USER: is no user name"
  ! inside "$OUTPUT" "$IMAGES" || fail "OUTPUT = $OUTPUT: must not lie inside IMAGES = $IMAGES"
  as_root install
  [[ -n $DESTDIR || -d $IMAGES ]] || fail "IMAGES = $IMAGES: no such folder"
  [[ -z ${KEYFILE:-} || -r ${KEYFILE:-} ]] || fail "KEYFILE = $KEYFILE: cannot be read"
  "$PYTHON" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail "PYTHON = $PYTHON: must be Python 3.11 or newer with venv (Debian: apt install python3-venv)"
  python=$(realpath -- "$("$PYTHON" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)')")
  ! hidden "$python" || fail "PYTHON = $python: the service cannot see it there; use one of the system, as PYTHON=/usr/bin/python3"
  [[ -n $DESTDIR ]] || command -v systemctl >/dev/null || fail "there is no systemctl here"

  was_active=no
  if [[ -z $DESTDIR ]]; then
    if ! getent passwd "$SERVICE_USER" >/dev/null; then
      useradd --system --user-group --home-dir /var/lib/rsd --no-create-home --shell /usr/sbin/nologin "$SERVICE_USER"
    fi
    if systemctl --quiet is-active rsd; then
      was_active=yes
      echo "rsd: stopping the running service (requests in flight may end first)"
      systemctl stop rsd
    fi
  fi
  copy_files
  write_configuration
  write_unit
  [[ -n $DESTDIR ]] || systemctl daemon-reload
  next_steps
}

copy_files() {
  local target=$DESTDIR$PREFIX name
  mkdir -p "$target"
  if [[ ! $source -ef $target ]]; then
    for name in "${copied[@]}"; do
      rm -rf "${target:?}/$name"
      [[ ! -e $source/$name ]] || cp -R -- "$source/$name" "$target/"
    done
  fi
  chmod -R u=rwX,go=rX "$target"
  "$python" -m venv "$target/.venv"
  "$target/.venv/bin/python" -m pip install -q --disable-pip-version-check --root-user-action=ignore -r "$target/requirements.txt"
  "$target/.venv/bin/python" -m compileall -q "$target/rsd" "$target/daemon.py"
}

write_configuration() {
  local group=root name
  [[ -n $DESTDIR ]] || group=$(id -gn "$SERVICE_USER")
  mkdir -p "$etc/prompts"
  chmod 0755 "$etc" "$etc/prompts"
  for name in "$source"/prompts/*.json; do
    [[ -e $etc/prompts/${name##*/} ]] || install -m 0644 "$name" "$etc/prompts/"
  done
  if [[ ! -e $etc/rsd.toml ]]; then
    IMAGES=$IMAGES OUTPUT=$OUTPUT "$python" - "$source/rsd.example.toml" "$etc/rsd.toml" <<'PY'
import os, pathlib, sys
text = pathlib.Path(sys.argv[1]).read_text("utf-8")
for key, value in (
    ("image_dir", os.environ["IMAGES"]),
    ("output_dir", os.environ["OUTPUT"]),
    ("prompts", "/etc/rsd/prompts/generation_prompts.json"),
    ("grading_prompt", "/etc/rsd/prompts/grading_prompt.json"),
):
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"# {key} = "))
    lines[at] = f'{key} = "{value}"'
    text = "\n".join(lines) + "\n"
pathlib.Path(sys.argv[2]).write_text(text, "utf-8")
PY
    # not for everybody: someone will write a key into it
    chmod 0640 "$etc/rsd.toml"
    [[ -n $DESTDIR ]] || chgrp "$group" "$etc/rsd.toml"
  else
    "$python" - "$etc/rsd.toml" "$IMAGES" "$OUTPUT" <<'PY'
import os, pathlib, sys, tomllib
data = tomllib.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))
for key, given in zip(("image_dir", "output_dir"), sys.argv[2:]):
    have = data.get(key, "")
    if os.path.realpath(have) != given:
        print(f"rsd: {sys.argv[1]} was kept, but its {key} is {have!r}, not {given!r}: make them agree")
PY
  fi
  [[ -z ${KEYFILE:-} ]] || install -m 0600 -- "$KEYFILE" "$etc/grading-key"
  if [[ -z $DESTDIR && ! -e $OUTPUT ]]; then
    mkdir -p -- "$OUTPUT"
    chown "$SERVICE_USER:$group" -- "$OUTPUT"
    chmod 0755 -- "$OUTPUT"
  fi
}

write_unit() {
  local images=${IMAGES//%/%%} output=${OUTPUT//%/%%} see_images="" see_output=ReadWritePaths
  if hidden "$IMAGES"; then see_images=BindReadOnlyPaths=\"$images\"; fi
  if hidden "$OUTPUT"; then see_output=BindPaths; fi
  mkdir -p "$unit.d"
  sed -e "s|/opt/rsd|$PREFIX|g" -e "s|^User=.*|User=$SERVICE_USER|" "$source/systemd/rsd.service" >"$unit"
  {
    echo "# Written by make install: the folders of rsd.toml, made visible (and OUTPUT writable) to the service."
    echo "[Unit]"
    echo "RequiresMountsFor=\"$images\" \"$output\""
    echo
    echo "[Service]"
    if [[ -n $see_images ]]; then echo "$see_images"; fi
    echo "$see_output=\"$output\""
  } >"$unit.d/paths.conf"
  chmod 0644 "$unit" "$unit.d/paths.conf"
}

next_steps() {
  local check how name path
  if [[ -z $DESTDIR ]]; then
    for check in "-r IMAGES $IMAGES" "-w OUTPUT $OUTPUT"; do
      read -r how name path <<<"$check"
      if hidden "$path"; then continue; fi
      setpriv --reuid "$SERVICE_USER" --regid "$(id -gn "$SERVICE_USER")" --init-groups test "$how" "$path" \
        || echo "rsd: $name = $path: user $SERVICE_USER has no access to it (test $how); grant it before you start"
    done
    if [[ $was_active == yes ]]; then systemctl start rsd; echo "rsd: updated and running again"; return; fi
  fi
  echo "rsd is installed in $PREFIX. Next:"
  echo "  1. /etc/rsd/rsd.toml: [generation] api, [grading] api, and whatever else you want"
  [[ -n ${KEYFILE:-} ]] || echo "  2. /etc/rsd/grading-key: the grader's key, if it needs one (mode 0600, root)"
  echo "  3. systemctl enable --now rsd"
  echo "  4. $PREFIX/.venv/bin/python $PREFIX/daemon.py status"
}

uninstall_service() {
  usable PREFIX "$PREFIX"
  [[ $PREFIX != / ]] || fail "PREFIX = /: no"
  as_root uninstall
  [[ -e $unit || -e $DESTDIR$PREFIX/daemon.py ]] || fail "nothing is installed in $PREFIX"
  [[ -n $DESTDIR ]] || systemctl disable --quiet --now rsd 2>/dev/null || true
  rm -rf "$unit.d" "$unit"
  local name
  for name in "${copied[@]}" .venv __pycache__; do rm -rf "${DESTDIR}${PREFIX:?}/$name"; done
  rmdir --ignore-fail-on-non-empty "$DESTDIR$PREFIX" 2>/dev/null || true
  [[ -n $DESTDIR ]] || systemctl daemon-reload
  echo "rsd is uninstalled. /etc/rsd, the results and the user $SERVICE_USER are left as they are."
}

case ${1:-} in
install) install_service ;;
uninstall) uninstall_service ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
