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
    apt_update
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

# unpacked_packages PACKAGE ...: has the files of Debian's PACKAGE below .venv/peers/PACKAGE, and
# the libraries that it needs in the system. Nothing of PACKAGE itself is installed: Exim cannot
# stand beside Postfix, and HAProxy would start a service.
unpacked_packages() {
    local package folder library libraries
    for package in "$@"; do
        folder=.venv/peers/$package
        if [ ! -d "$folder" ]; then
            if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
                echo "$package comes as a Debian package: this needs apt-get and dpkg-deb" >&2
                exit 1
            fi
            apt_update
            rm -rf "$folder".new
            mkdir -p "$folder".new
            (cd "$folder".new && apt-get download -qq -o APT::Sandbox::User=root "$package") &&
                dpkg-deb -x "$folder".new/*.deb "$folder".new || {
                echo "could not download and unpack $package" >&2
                exit 1
            }
            # Exim's bit would cost it the environment that the tests give it.
            find "$folder".new -perm /6000 -type f -exec chmod ug-s {} +
            mv "$folder".new "$folder"
        fi
        libraries=()
        for library in $(dpkg-deb -f "$folder"/*.deb Depends | tr , '\n' |
            sed -n 's/^ *\(lib[a-z0-9.+-]*\).*/\1/p'); do
            libraries+=("package:$library=$library")
        done
        system_packages "${libraries[@]}"
    done
}

# unpacked_sdist NAME VERSION: has the source distribution of a package from PyPI in
# .venv/peers/NAME-VERSION: what comes with it and is not installed, tests above all.
unpacked_sdist() {
    local folder=.venv/peers/$1-$2
    [ ! -d "$folder" ] || return 0
    rm -rf "$folder".new
    mkdir -p "$folder".new
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary "$1" --dest "$folder".new "$1==$2" &&
        tar -xzf "$folder".new/*.tar.gz -C "$folder".new --strip-components=1 || {
        echo "could not download and unpack the source distribution of $1 $2" >&2
        exit 1
    }
    mv "$folder".new "$folder"
}

# apt_update: reads Debian's lists of packages, once a run and only as root.
apt_update() {
    if [ -z "${APT_UPDATED:-}" ] && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        APT_UPDATED=1
    fi
}

# tool_venv NAME REQUIREMENT: has a tool from PyPI in .venv/peers/NAME, away from the project's
# own packages, whose newest versions it does not take.
tool_venv() {
    local folder=.venv/peers/$1
    [ "$(cat "$folder/.installed" 2>/dev/null)" != "$2" ] || return 0
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$2"
    echo "$2" >"$folder/.installed"
}
