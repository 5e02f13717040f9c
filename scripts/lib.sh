# What the scripts share. Sourced, not run; the caller stands in the checkout's top folder.

# project_venv EXTRAS: makes .venv with the project (editable) and the named extras of
# pyproject.toml, again whenever pyproject.toml or the wish changed.
project_venv() {
    local extras=${1:-} python=${PYTHON:-python3} stamp wish
    stamp=.venv/.installed${extras:+-${extras//,/-}}
    wish=$(sha256sum pyproject.toml | cut -d' ' -f1)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wish" ]; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "preforkmx needs Python 3.11 or newer; PYTHON=… names another one" >&2
        exit 1
    fi
    if [ ! -x .venv/bin/python ]; then
        "$python" -m venv .venv || {
            rm -rf .venv
            echo "could not make .venv: on Debian, 'apt-get install python3-venv' helps" >&2
            exit 1
        }
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --editable ".${extras:+[$extras]}"
    echo "$wish" >"$stamp"
}

# present PROBE: whether PROBE is there: a program's name, perl:MODULE, or package:NAME.
present() {
    case $1 in
        perl:*) perl -M"${1#perl:}" -e 1 2>/dev/null ;;
        package:*) dpkg-query -W -f '${db:Status-Status}' "${1#package:}" 2>/dev/null | grep -qx installed ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

# system_packages PROBE=PACKAGE ...: installs Debian's PACKAGE where PROBE is missing.
system_packages() {
    local pair missing=()
    for pair in "$@"; do
        present "${pair%%=*}" || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]} (Debian packages); install them, or run this as root on Debian" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Postfix is wanted for its test programs: no configuration, so no service starts.
    if command -v debconf-set-selections >/dev/null; then
        echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
        echo "could not install ${missing[*]} with apt-get" >&2
        exit 1
    }
    for pair in "$@"; do
        present "${pair%%=*}" || {
            echo "${pair%%=*} is still missing after the installation of ${pair#*=}" >&2
            exit 1
        }
    done
}
